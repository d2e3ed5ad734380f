"""Exact selection of the smallest scores over many tensors, without sorting or copying them.

The bit pattern of a float, read as an integer, orders like the float. A histogram of the top 16 bits over all
tensors finds the bucket that holds the k-th value, further passes look only inside that bucket, and a last pass
writes the masks. Work proceeds in chunks, so the extra memory is a fixed few megabytes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.pruning import smallest_on_device
from lightning_compress.pruning.nan_checks import refuse_nan

CHUNK = 1 << 20
"""Elements handled at a time: small enough that the temporaries stay in the processor's cache."""

_DIGIT = 1 << 16


@dataclass(frozen=True)
class Threshold:
    """The value that separates what is pruned from what is kept.

    Attributes:
        value: Everything below is pruned, everything above is kept.
        ties_pruned: How many entries equal to ``value`` are pruned.
        ties: How many entries equal ``value``.
    """

    value: float
    ties_pruned: int
    ties: int


def prune_smallest(
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    count: int | Tensor,
    *,
    absolute: bool = False,
    names: Sequence[str] | None = None,
) -> None:
    """Mark the ``count`` smallest scores as pruned, over all tensors together.

    Of equal scores, those pruned already go first, then those that come first: by tensor, then by position in
    the tensor's logical (row-major) order. So the result is the same everywhere.

    Args:
        scores: Floating point tensors of any shape.
        masks: ``bool`` tensors of the same shapes, ``True`` = kept; read for ties and overwritten.
        count: How many entries to prune, from 0 to the number of scores; a tensor (int64, ``[]``) for scores on an
            accelerator, where nothing is waited for but a NaN (see ``nan_checks``).
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
    total = sum(score.numel() for score in scores)
    if not isinstance(count, Tensor) and not 0 <= count <= total:
        raise CompressionError.field("count", expected=f"a number from 0 to {total}", got=count)
    names = names or [f"tensor {i}" for i in range(len(scores))]
    if any(score.device.type != "cpu" for score in scores):
        nans = smallest_on_device.prune_smallest(scores, masks, count, absolute=absolute)
        for score, name, bad in zip(scores, names, nans.unbind(), strict=True):
            refuse_nan(bad, _nan_message(name, score))
        return
    count = int(count)
    threshold = find_threshold(scores, count, absolute=absolute, names=names)
    if threshold is None:
        for mask in masks:
            mask.fill_(True)
        return
    # Chunks are taken in logical order; a mask in another memory layout is written by way of a copy.
    flat = [mask.contiguous() for mask in masks]
    _write(scores, flat, threshold, absolute)
    for mask, written in zip(masks, flat, strict=True):
        if written is not mask:
            mask.copy_(written)


def find_threshold(scores: Sequence[Tensor], count: int, *, absolute: bool, names: Sequence[str]) -> Threshold | None:
    """Find the ``count``-th smallest score by radix selection, 16 bits at a time.

    Returns:
        The threshold, or ``None`` when nothing is pruned.

    Raises:
        CompressionError: A score is NaN.
    """
    bits = _bits(scores)
    prefix = 0
    remaining = count
    ties = 0
    for shift in range(bits - 16, -1, -16):
        histogram = torch.zeros(_DIGIT, dtype=torch.int64)
        for score in scores:
            partial = torch.zeros(_DIGIT, dtype=torch.int64, device=score.device)
            for digits in _digits(score, shift, prefix, bits, absolute):
                partial += torch.bincount(digits, minlength=_DIGIT)
            histogram += partial.cpu()
        if shift == bits - 16:
            _refuse_nan(histogram, scores, names, bits, absolute)
            if count == 0:
                return None
        cumulative = histogram.cumsum(0)
        digit = int(torch.searchsorted(cumulative, remaining))
        ties = int(histogram[digit])
        remaining -= int(cumulative[digit]) - ties
        prefix = prefix << 16 | digit
    return Threshold(_value(prefix, bits, absolute), ties_pruned=remaining, ties=ties)


def _bits(scores: Sequence[Tensor]) -> int:
    return 64 if any(score.dtype == torch.float64 for score in scores) else 32


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), CHUNK):
        yield flat[start : start + CHUNK]


def _digits(score: Tensor, shift: int, prefix: int, bits: int, absolute: bool) -> Iterator[Tensor]:
    """The 16-bit digits at ``shift`` of those keys that begin with ``prefix``, chunk by chunk."""
    first = shift == bits - 16
    if absolute and bits == 32 and score.dtype == torch.float32 and sys.byteorder == "little":
        # The two halves of float32 numbers can be read where they lie.
        for chunk in _chunks(score):
            halves = chunk.view(torch.int16)
            top = halves[1::2] & 0x7FFF
            yield top if first else halves[0::2][top == prefix].to(torch.int32) & 0xFFFF
        return
    for chunk in _chunks(score):
        key = _key(chunk, bits, absolute)
        if not first:
            key = key[_shifted(key, shift + 16, bits) == prefix]
        yield _shifted(key, shift, bits) & 0xFFFF


def _key(chunk: Tensor, bits: int, absolute: bool) -> Tensor:
    """Integers whose bits, read as an unsigned number, order like the floats."""
    # abs() clears the sign; adding +0.0 turns -0.0 into +0.0, so that both zeros are one value.
    chunk = _ranked(chunk, bits, absolute)
    key = (chunk if absolute else chunk + 0.0).view(torch.int64 if bits == 64 else torch.int32)
    if absolute:
        return key
    # Positive numbers get the top bit, negative ones have all bits inverted.
    return key ^ ((key >> (bits - 1)) | -(2 ** (bits - 1)))


def _shifted(key: Tensor, shift: int, bits: int) -> Tensor:
    """Shift right without dragging the sign bit along."""
    return (key >> shift) & (2 ** (bits - shift) - 1) if shift else key


def _value(key: int, bits: int, absolute: bool) -> float:
    """The float that has this key."""
    if not absolute:
        top = 1 << (bits - 1)
        key = key ^ top if key & top else ~key & (2**bits - 1)
    signed = key - 2**bits if key >> (bits - 1) else key
    integer = torch.tensor(signed, dtype=torch.int64 if bits == 64 else torch.int32)
    return float(integer.view(torch.float64 if bits == 64 else torch.float32))


def _refuse_nan(histogram: Tensor, scores: Sequence[Tensor], names: Sequence[str], bits: int, absolute: bool) -> None:
    # Only infinities and NaN have an exponent of all ones, so finite scores cost nothing here.
    exponent = 0x7FF0 if bits == 64 else 0x7F80
    offset = 0 if absolute else 0x8000
    unusual = int(histogram[offset + exponent : offset + 0x8000].sum())
    if not absolute:
        unusual += int(histogram[: 0x8000 - exponent].sum())
    if not unusual:
        return
    for score, name in zip(scores, names, strict=True):
        bad = sum(int(chunk.isnan().sum()) for chunk in _chunks(score))
        if bad:
            raise CompressionError(_nan_message(name, score).format(bad=bad))


def _nan_message(name: str, score: Tensor) -> str:
    return (
        f"{name}: {{bad}} of {score.numel()} scores are NaN, so they cannot be ranked for pruning. "
        "Training has diverged, or the criterion divides by zero."
    )


def _write(scores: Sequence[Tensor], masks: Sequence[Tensor], threshold: Threshold, absolute: bool) -> None:
    """Write the masks that a threshold implies."""
    bits = _bits(scores)
    if threshold.ties_pruned == threshold.ties:
        for chunk, kept in _pairs(scores, masks):
            torch.gt(_ranked(chunk, bits, absolute), threshold.value, out=kept)
    elif threshold.ties <= CHUNK:
        _write_few_ties(scores, masks, threshold, absolute)
    else:
        _write_many_ties(scores, masks, threshold, absolute)


def _write_few_ties(scores: Sequence[Tensor], masks: Sequence[Tensor], threshold: Threshold, absolute: bool) -> None:
    """Write the masks in one pass, setting ties aside to decide on them at the end."""
    bits = _bits(scores)
    tied: list[tuple[Tensor, Tensor, Tensor]] = []
    for chunk, kept in _pairs(scores, masks):
        ranked = _ranked(chunk, bits, absolute)
        index = (ranked == threshold.value).nonzero().squeeze(1)
        if index.numel():
            tied.append((kept, index, kept[index]))
        torch.gt(ranked, threshold.value, out=kept)
    remaining = threshold.ties_pruned
    # First those that were pruned before, then the others.
    for kept_before in (False, True):
        for kept, index, before in tied:
            candidates = index[before == kept_before]
            kept[candidates[remaining:]] = True
            remaining = max(0, remaining - candidates.numel())


def _write_many_ties(scores: Sequence[Tensor], masks: Sequence[Tensor], threshold: Threshold, absolute: bool) -> None:
    """Write the masks in two passes, without remembering where ties are; for weights that are mostly zero."""
    bits = _bits(scores)
    already = 0
    for chunk, kept in _pairs(scores, masks):
        tied = _ranked(chunk, bits, absolute) == threshold.value
        already += int(tied.logical_and_(~kept).count_nonzero())
    from_pruned = min(threshold.ties_pruned, already)
    from_kept = threshold.ties_pruned - from_pruned
    for chunk, kept in _pairs(scores, masks):
        ranked = _ranked(chunk, bits, absolute)
        tied = ranked == threshold.value
        pruned_before = (tied & ~kept).nonzero().squeeze(1)
        kept_before = (tied & kept).nonzero().squeeze(1)
        torch.gt(ranked, threshold.value, out=kept)
        kept[pruned_before[from_pruned:]] = True
        kept[kept_before[from_kept:]] = True
        from_pruned = max(0, from_pruned - pruned_before.numel())
        from_kept = max(0, from_kept - kept_before.numel())


def _pairs(scores: Sequence[Tensor], masks: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for score, mask in zip(scores, masks, strict=True):
        yield from zip(_chunks(score), _mask_chunks(mask), strict=True)


def _ranked(chunk: Tensor, bits: int, absolute: bool) -> Tensor:
    # Widened, since comparing a narrow tensor with a number rounds the number to the narrow type.
    chunk = chunk.to(torch.float64 if bits == 64 else torch.float32)
    return chunk.abs() if absolute else chunk


def _mask_chunks(mask: Tensor) -> Iterator[Tensor]:
    # A view, so that writing to a chunk writes to the mask.
    flat = mask.view(-1)
    for start in range(0, flat.numel(), CHUNK):
        yield flat[start : start + CHUNK]
