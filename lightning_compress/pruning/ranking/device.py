"""``prune_smallest`` on accelerators, without a wait: threshold, ties and masks never leave the device.

The same radix selection as on the CPU, in PyTorch's own operations: the bits of a score order like the score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_CHUNK = 1 << 24
_DIGIT = 1 << 16


def prune_smallest(scores: Sequence[Tensor], masks: Sequence[Tensor], count: int | Tensor, *, absolute: bool) -> Tensor:
    """Mark the ``count`` smallest scores as pruned; where a score is NaN, all masks stay as they are.

    Args:
        scores: Floating point tensors.
        masks: ``bool``, of the same shapes, ``True`` = kept; read for ties and overwritten.
        count: How many: an int, or int64 ``[]`` on any device.
        absolute: Rank by absolute value.

    Returns:
        How many scores of each tensor are NaN: int64, ``[n]``, on the first one's device.
    """
    device = scores[0].device
    wide = any(score.dtype == torch.float64 for score in scores)
    if not isinstance(count, Tensor):
        count = torch.full((1,), count, dtype=torch.int64, device=device)
    remaining = count = count.to(device).reshape(1)
    prefix = torch.zeros(1, dtype=torch.int64, device=device)
    for shift in range(48 if wide else 16, -1, -16):
        histogram = torch.zeros(_DIGIT, dtype=torch.int64, device=device)
        for score in scores:
            histogram += _histogram(score, prefix.to(score.device), shift, wide, absolute).to(device)
        below = histogram.cumsum(0)
        # Where nothing is to be pruned, the prefix stays below every score.
        digit = torch.searchsorted(below, remaining).clamp_(max=_DIGIT - 1)
        remaining = remaining - (below - histogram).gather(0, digit)
        prefix = (prefix << 16) | digit
    nans = torch.stack([score.isnan().sum().to(device) for score in scores])
    _write(scores, masks, prefix, remaining, count == 0, nans.any().reshape(1), wide, absolute)
    return nans


def _histogram(score: Tensor, prefix: Tensor, shift: int, wide: bool, absolute: bool) -> Tensor:
    """How many keys that begin with a prefix have each digit: int64, ``[65536]``."""
    found = torch.zeros(_DIGIT + 1, dtype=torch.int64, device=score.device)
    for chunk in _chunks(score):
        key = _key(chunk, wide, absolute)
        digit = (key >> shift) & (_DIGIT - 1)
        if shift < (48 if wide else 16):
            above = (key >> (shift + 16)) & ((1 << (48 - shift)) - 1)
            digit = torch.where(above == prefix, digit, _DIGIT)
        found.scatter_add_(0, digit, torch.ones_like(digit))
    return found[:_DIGIT]


def _write(
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    threshold: Tensor,
    ties_pruned: Tensor,
    keep_all: Tensor,
    spoiled: Tensor,
    wide: bool,
    absolute: bool,
) -> None:
    """Write the masks that a threshold implies: of equal scores those pruned already go first, then the first ones."""
    already = torch.zeros_like(ties_pruned)
    for score, mask in zip(scores, masks, strict=True):
        own = threshold.to(score.device)
        for chunk, kept in zip(_chunks(score), _chunks(mask), strict=True):
            already = already + ((_key(chunk, wide, absolute) == own) & ~kept).sum().to(already.device)
    budgets = torch.minimum(ties_pruned, already), ties_pruned - torch.minimum(ties_pruned, already)
    seen = [torch.zeros_like(already), torch.zeros_like(already)]
    for score, mask in zip(scores, masks, strict=True):
        device = score.device
        own, all_kept, stays = threshold.to(device), keep_all.to(device), spoiled.to(device)
        parts = []
        for chunk, kept in zip(_chunks(score), _chunks(mask), strict=True):
            key = _key(chunk, wide, absolute)
            tied = key == own
            new = _above(key, own, wide) | all_kept
            for i, group in enumerate((tied & ~kept, tied & kept)):
                place = group.cumsum(0) + seen[i].to(device)
                new |= group & (place > budgets[i].to(device))
                seen[i] = seen[i] + group.sum().to(seen[i].device)
            parts.append(torch.where(stays, kept, new))
        mask.copy_(torch.cat(parts).reshape(mask.shape))


def _above(key: Tensor, threshold: Tensor, wide: bool) -> Tensor:
    """Whether keys, read as unsigned numbers, are larger than one of them."""
    if not wide:
        return key > threshold
    top = -(2**63)
    return (key ^ top) > (threshold ^ top)


def _key(chunk: Tensor, wide: bool, absolute: bool) -> Tensor:
    """Integers whose bits, read as an unsigned number, order like the floats: int64."""
    chunk = chunk.to(torch.float64 if wide else torch.float32)
    # abs() clears the sign; adding +0.0 turns -0.0 into +0.0, so that both zeros are one value.
    bits = (chunk.abs() if absolute else chunk + 0.0).view(torch.int64 if wide else torch.int32).to(torch.int64)
    if not absolute:
        # Positive numbers get the top bit, negative ones have all bits inverted.
        bits = bits ^ ((bits >> 63) | (-(2**63) if wide else 2**31))
    return bits if wide else bits & (2**32 - 1)


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        yield flat[start : start + _CHUNK]
