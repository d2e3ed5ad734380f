"""Dynamic sparse training: connections move, their number stays."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_compress.pruning.masks import count_kept
from lightning_compress.pruning.schedule import SparsitySchedule
from lightning_compress.pruning.smallest import prune_smallest


def drop_fraction_at(step: int, schedule: SparsitySchedule, initial: float) -> float:
    """Share of the connections to move at an update: a cosine from ``initial`` to 0 (Evci et al. 2020, eq. 1).

    Example:
        >>> from lightning_compress.pruning.schedule import CURVES
        >>> drop_fraction_at(50, SparsitySchedule(0.9, 0.9, 0, 100, 10, CURVES["constant"]), 0.3)
        0.15
    """
    if step <= schedule.start or step >= schedule.end:
        return 0.0
    t = (step - schedule.start) / (schedule.end - schedule.start)
    return initial / 2 * (1 + math.cos(math.pi * t))


def move_connections(weight: Tensor, mask: Tensor, growth: Tensor, fraction: float, name: str) -> int:
    """Drop the smallest kept weights and grow as many of the pruned entries with the largest growth score.

    As in the reference implementation of RigL, an entry that was just dropped may grow again and then keeps its
    weight; all other grown entries start at zero.

    Args:
        weight: The weights, zero where pruned.
        mask: ``bool`` of the same shape, ``True`` = kept; written in place.
        growth: Non-negative scores of the same shape: |gradient| (RigL) or random numbers (SET).
        fraction: Share of the kept weights to drop.
        name: What to call the weight in messages.

    Returns:
        How many connections are in another place than before.
    """
    kept = count_kept(mask)
    dropped = int(fraction * kept)
    if not dropped:
        return 0
    before = mask.clone()
    prune_smallest([weight], [mask], mask.numel() - kept + dropped, absolute=True, names=[name])
    score = growth.masked_fill(mask, math.inf)
    prune_smallest([score], [mask], mask.numel() - kept, names=[f"the gradient of {name}"])
    return int(torch.logical_xor(before, mask).count_nonzero())
