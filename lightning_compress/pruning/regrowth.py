"""Dynamic sparse training (RigL, SET): connections are dropped and regrown, their number stays the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_compress.foundation.shards import Shards
from lightning_compress.pruning.prunable import Site
from lightning_compress.pruning.ranking.smallest import Pool, prune_pools
from lightning_compress.pruning.schedule import SparsitySchedule


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


def move_connections(
    sites: Sequence[Site], growth: Sequence[Tensor], fraction: float, pruned: Sequence[int], shards: Shards
) -> int:
    """Drop the smallest kept weights of each layer and grow as many pruned entries with the largest growth score.

    As in the reference implementation of RigL, an entry that was just dropped may grow again and then keeps its
    weight; all other grown entries start at zero.

    Args:
        sites: Weights, zero where pruned; their masks are written.
        growth: Non-negative scores of the same shapes: |gradient| (RigL) or random numbers (SET).
        fraction: Share of the kept weights to drop.
        pruned: Entries of each that are pruned now, over all processes.
        shards: The processes that hold the weights.

    Returns:
        How many connections are in another place than before, in this process.
    """
    before = [site.mask.clone() for site in sites]
    dropped = [int(fraction * (site.entries - gone)) for site, gone in zip(sites, pruned, strict=True)]
    drop = [
        Pool([site.weight], [site.mask], gone + more, True, [site.name])
        for site, gone, more in zip(sites, pruned, dropped, strict=True)
        if more
    ]
    prune_pools(drop, shards)
    grow = [
        Pool([score.masked_fill(site.mask, math.inf)], [site.mask], gone, False, [f"the gradient of {site.name}"])
        for site, score, gone, more in zip(sites, growth, pruned, dropped, strict=True)
        if more
    ]
    prune_pools(grow, shards)
    return sum(int(torch.logical_xor(old, site.mask).count_nonzero()) for old, site in zip(before, sites, strict=True))
