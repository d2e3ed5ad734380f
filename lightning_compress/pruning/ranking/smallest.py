"""Exact selection of the smallest scores over many tensors, without sorting or copying them.

The bit pattern of a float, read as an integer, orders like the float. A histogram of the top 16 bits over all
tensors finds the bucket that holds the k-th value, further passes look only inside that bucket, and a last pass
writes the masks. Work proceeds in chunks, so the extra memory is a fixed few megabytes. Where processes hold shards of
the tensors, they sum up their histograms, and the masks are those of one process, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.shards import WHOLE, Shards
from lightning_compress.pruning.ranking import device, radix
from lightning_compress.pruning.ranking.nan_checks import refuse_nan
from lightning_compress.pruning.ranking.radix import chunks, ranked


@dataclass
class Pool:
    """Scores that are ranked together.

    Attributes:
        scores: Floating point tensors of any shape.
        masks: ``bool`` tensors of the same shapes, ``True`` = kept; read for ties and overwritten.
        count: How many entries to prune, from 0 to the number of scores; over all processes. A tensor (int64, ``[]``)
            on accelerators alone.
        absolute: Rank by absolute value.
        names: What to call each tensor in messages.
    """

    scores: Sequence[Tensor]
    masks: Sequence[Tensor]
    count: int | Tensor
    absolute: bool = False
    names: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class Threshold:
    """The value that separates what is pruned from what is kept.

    Attributes:
        value: Everything below is pruned, everything above is kept.
        ties_pruned: How many entries equal to ``value`` are pruned.
        ties: How many entries equal ``value``.
        bits: Bits of the keys among which it was found, 32 or 64.
    """

    value: float
    ties_pruned: int
    ties: int
    bits: int


def prune_smallest(
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    count: int,
    *,
    absolute: bool = False,
    names: Sequence[str] | None = None,
) -> None:
    """Mark the ``count`` smallest scores as pruned, over all tensors together.

    Of equal scores, those pruned already go first, then those that come first: by tensor, then by position in
    the tensor's logical (row-major) order. So the result is the same everywhere.

    Args:
        scores: See :class:`Pool`, as for the other arguments.
        masks: Written in place.
        count: How many entries to prune.
        absolute: Rank by absolute value.
        names: What to call each tensor in messages.

    Raises:
        CompressionError: A score is NaN, or the count is out of range.

    Example:
        >>> scores, kept = torch.tensor([3.0, -1.0, 2.0, 1.0]), torch.ones(4, dtype=torch.bool)
        >>> prune_smallest([scores], [kept], 2, absolute=True)
        >>> kept
        tensor([ True, False,  True, False])
    """
    names = names or [f"tensor {i}" for i in range(len(scores))]
    prune_pools([Pool(scores, masks, count, absolute, names)])


def prune_pools(pools: Sequence[Pool], shards: Shards = WHOLE) -> None:
    """Prune several pools, each for itself.

    Processes that hold shards take all pools at once, so that the number of collectives does not depend on theirs: one
    for each 16 bits of a score, and one more where equal scores lie at a threshold.

    Args:
        pools: What to prune. Every process gives the same pools with its own rows of each tensor.
        shards: The processes.

    Raises:
        CompressionError: A score is NaN, or a count is out of range; the same in every process.
    """
    if shards.size == 1:
        for pool in pools:
            if any(score.device.type != "cpu" for score in pool.scores):
                _prune_on_device(pool)
        pools = [pool for pool in pools if all(score.device.type == "cpu" for score in pool.scores)]
    for batch in [list(pools)] if shards.size > 1 else [[pool] for pool in pools]:
        thresholds = _find_thresholds(batch, shards)
        # Chunks are taken in logical order; a mask in another memory layout is written by way of a copy.
        flat = [[mask.contiguous() for mask in pool.masks] for pool in batch]
        _write(batch, flat, thresholds, shards)
        for pool, written in zip(batch, flat, strict=True):
            for mask, copy in zip(pool.masks, written, strict=True):
                if copy is not mask:
                    mask.copy_(copy)


def _prune_on_device(pool: Pool) -> None:
    """Prune where the scores lie, waiting for nothing; NaN is noted for later (see ``nan_checks``)."""
    total = sum(score.numel() for score in pool.scores)
    if not isinstance(pool.count, Tensor) and not 0 <= pool.count <= total:
        raise CompressionError.field("count", expected=f"a number from 0 to {total}", got=pool.count)
    nans = device.prune_smallest(pool.scores, pool.masks, pool.count, absolute=pool.absolute)
    for score, name, bad in zip(pool.scores, pool.names, nans.unbind(), strict=True):
        refuse_nan(bad, _nan_message(name, score.numel()))


def _nan_message(name: str, numel: int) -> str:
    return (
        f"{name}: {{bad}} of {numel} scores are NaN, so they cannot be ranked for pruning. "
        "Training has diverged, or the criterion divides by zero."
    )


def _find_thresholds(pools: Sequence[Pool], shards: Shards) -> list[Threshold | None]:
    """Find the ``count``-th smallest score of each pool by radix selection, 16 bits at a time."""
    if not pools:
        return []
    bits = 64 if any(score.dtype == torch.float64 for pool in pools for score in pool.scores) else 32
    prefix, remaining, ties = [0] * len(pools), [int(pool.count) for pool in pools], [0] * len(pools)
    for shift in range(bits - 16, -1, -16):
        histograms = torch.stack(
            [radix.histogram(pool.scores, shift, prefix[i], bits, pool.absolute) for i, pool in enumerate(pools)]
        )
        histograms = shards.total(histograms)
        if shift == bits - 16:
            _refuse(pools, histograms, bits, shards)
        for i, histogram in enumerate(histograms):
            cumulative = histogram.cumsum(0)
            digit = int(torch.searchsorted(cumulative, remaining[i]))
            if remaining[i] == 0:
                continue
            ties[i] = int(histogram[digit])
            remaining[i] -= int(cumulative[digit]) - ties[i]
            prefix[i] = prefix[i] << 16 | digit
    return [
        Threshold(radix.value(prefix[i], bits, pool.absolute), ties_pruned=remaining[i], ties=ties[i], bits=bits)
        if pool.count
        else None
        for i, pool in enumerate(pools)
    ]


def _refuse(pools: Sequence[Pool], histograms: Tensor, bits: int, shards: Shards) -> None:
    for pool, histogram in zip(pools, histograms, strict=True):
        total = int(histogram.sum())
        if not 0 <= pool.count <= total:
            raise CompressionError.field("count", expected=f"a number from 0 to {total}", got=pool.count)
        # Infinities, too, are among these, and finite scores cost nothing here.
        if not radix.unusual(histogram, bits, pool.absolute):
            continue
        found = torch.tensor(
            [[sum(int(c.isnan().sum()) for c in chunks(score)), score.numel()] for score in pool.scores]
        )
        for name, (bad, numel) in zip(pool.names, shards.total(found).tolist(), strict=True):
            if bad:
                raise CompressionError(_nan_message(name, numel).format(bad=bad))


class _Ties:
    """Entries of one tensor that equal the threshold: where they are, if they are few."""

    def __init__(self, score: Tensor, mask: Tensor, threshold: Threshold, absolute: bool) -> None:
        self._score, self._mask, self._threshold, self._absolute = score, mask, threshold, absolute
        few = threshold.ties <= radix.CHUNK
        self._found: list[tuple[Tensor, Tensor, Tensor]] | None = [] if few else None
        self.counts = [0, 0]
        for chunk, kept in self._pairs():
            values = ranked(chunk, threshold.bits, absolute)
            index = (values == threshold.value).nonzero().squeeze(1)
            before = kept[index]
            if self._found is not None:
                if index.numel():
                    self._found.append((kept, index, before))
                torch.gt(values, threshold.value, out=kept)
            kept_before = int(before.count_nonzero())
            self.counts[0] += before.numel() - kept_before
            self.counts[1] += kept_before

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Views, so that writing to a chunk writes to the mask.
        yield from zip(chunks(self._score), chunks(self._mask), strict=True)

    def write(self, pruned: Sequence[int]) -> None:
        """Prune the first so many of those pruned before and of those kept before; keep the other ties."""
        left = list(pruned)
        for kept, index, before in self._found if self._found is not None else self._again():
            for kept_before in (0, 1):
                tied = index[before == bool(kept_before)]
                kept[tied[left[kept_before] :]] = True
                left[kept_before] = max(0, left[kept_before] - tied.numel())

    def _again(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A second pass, for weights that are mostly zero, so that positions of all ties are never held at once."""
        for chunk, kept in self._pairs():
            values = ranked(chunk, self._threshold.bits, self._absolute)
            index = (values == self._threshold.value).nonzero().squeeze(1)
            before = kept[index]
            torch.gt(values, self._threshold.value, out=kept)
            yield kept, index, before


def _write(
    pools: Sequence[Pool], masks: Sequence[Sequence[Tensor]], thresholds: Sequence[Threshold | None], shards: Shards
) -> None:
    """Write the masks that thresholds imply."""
    undecided: list[tuple[Threshold, list[_Ties]]] = []
    for pool, flat, threshold in zip(pools, masks, thresholds, strict=True):
        if threshold is None:
            for mask in flat:
                mask.fill_(True)
        elif threshold.ties_pruned == threshold.ties:
            for score, mask in zip(pool.scores, flat, strict=True):
                for chunk, kept in zip(chunks(score), chunks(mask), strict=True):
                    torch.gt(ranked(chunk, threshold.bits, pool.absolute), threshold.value, out=kept)
        else:
            ties = [_Ties(s, m, threshold, pool.absolute) for s, m in zip(pool.scores, flat, strict=True)]
            undecided.append((threshold, ties))
    if not undecided:
        return
    mine = torch.tensor([tie.counts for _, ties in undecided for tie in ties], dtype=torch.int64)
    # [kept before, tensor, process]: the order in which ties go.
    counts = shards.gathered(mine).permute(2, 1, 0)
    first = 0
    for threshold, ties in undecided:
        part = counts[:, first : first + len(ties)]
        ahead = (part.flatten().cumsum(0) - part.flatten()).reshape(part.shape)[..., shards.rank]
        for i, tie in enumerate(ties):
            tie.write((threshold.ties_pruned - ahead[:, i]).clamp(min=0).tolist())
        first += len(ties)
