"""Prunes the smallest units of several weights together, none below its floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.shards import WHOLE, Shards
from lightning_compress.pruning.masks import count_kept, pack, stacked, unpack
from lightning_compress.pruning.patterns import Pattern
from lightning_compress.pruning.prunable import Prunable
from lightning_compress.pruning.ranking.smallest import Pool, prune_pools


@dataclass
class Job:
    """Sites that are ranked together.

    Attributes:
        sites: Sites whose units are alike in size.
        scores: Scores of the entries, of the weights' shapes; entries pruned before must be the smallest.
        count: Units to prune over all sites.
        absolute: Rank by absolute value of the scores; for single entries only.
    """

    sites: Sequence[Prunable]
    scores: Sequence[Tensor]
    count: int | Tensor
    absolute: bool = False


def check_floors(sites: Sequence[Prunable], count: int | Tensor, field: str) -> None:
    """Refuse to prune more units than the floors leave; a count on an accelerator is what was pruned before.

    Raises:
        CompressionError: With both numbers.
    """
    if not isinstance(count, Tensor) and count > sum(site.cap for site in sites):
        raise CompressionError(
            f"{field}.layer_floor: the sparsity asked for prunes {count} units, but the floors leave only "
            f"{sum(site.cap for site in sites)} to prune. Lower layer_floor or final_sparsity."
        )


def prune_together(jobs: Sequence[Job], field: str, shards: Shards = WHOLE) -> None:
    """Prune the ``count`` smallest units of each job over all its sites, none beyond its cap, and write the masks.

    A site that a free choice would cut below its floor is held at the floor and the others make up for it.

    Args:
        jobs: What to prune; jobs share no site.
        field: Name of the owner, for messages.
        shards: The processes that hold the weights.

    Raises:
        CompressionError: The floors leave too little to prune, or a score is NaN.
    """
    ranked = [_Ranked.of(job, field) for job in jobs]
    waiting = ranked
    while waiting:
        prune_pools([job.free_pool() for job in waiting] + [pool for job in waiting for pool in job.held], shards)
        for job in waiting:
            job.held = []
        capped = [(job, i) for job in waiting if job.before for i in job.free]
        pruned = stacked([job.kept[i].numel() - count_kept(job.kept[i]) for job, i in capped])
        over: dict[int, list[int]] = {}
        if capped:
            total = shards.total(pruned)
            within = torch.stack([n <= job.sites[i].cap for (job, i), n in zip(capped, total.unbind(), strict=True)])
            # An accelerator is waited for once, unless a floor binds.
            if not bool(within.all()):
                for (job, i), holds in zip(capped, within.tolist(), strict=True):
                    if not holds:
                        over.setdefault(id(job), []).append(i)
        waiting = [job for job in waiting if id(job) in over]
        for job in waiting:
            job.hold(over[id(job)])
    for job in ranked:
        job.write()


@dataclass
class _Ranked:
    """A job's units, and which sites may still take a free part."""

    sites: Sequence[Prunable]
    scores: Sequence[Tensor]
    ranks: list[Tensor]
    kept: list[Tensor]
    before: list[Tensor]
    free: list[int]
    held: list[Pool]
    count: int | Tensor
    absolute: bool

    @classmethod
    def of(cls, job: Job, field: str) -> _Ranked:
        check_floors(job.sites, job.count, field)
        if type(job.sites[0].pattern) is Pattern:
            ranks, kept = list(job.scores), [site.mask for site in job.sites]
        else:
            ranks = [site.pattern.unit_scores(score) for site, score in zip(job.sites, job.scores, strict=True)]
            kept = [rank != -math.inf for rank in ranks]
        # A floor can bind only where a free choice could go beyond it.
        most = sum(site.units for site in job.sites) if isinstance(job.count, Tensor) else job.count
        # Of a single site ``check_floors`` has seen to it, and what was pruned before lies within its cap.
        alone = len(job.sites) == 1 and isinstance(job.count, Tensor)
        capped = not alone and any(site.cap < min(site.units, most) for site in job.sites)
        # One bit an entry; an accelerator would have to wait for the packing.
        before = [pack(mask) if mask.device.type == "cpu" else mask.clone() for mask in kept] if capped else []
        return cls(job.sites, job.scores, ranks, kept, before, list(range(len(job.sites))), [], job.count, job.absolute)

    def pool(self, members: Sequence[int], count: int | Tensor) -> Pool:
        return Pool(
            [self.ranks[i] for i in members],
            [self.kept[i] for i in members],
            count,
            self.absolute,
            [self.sites[i].name for i in members],
        )

    def free_pool(self) -> Pool:
        return self.pool(self.free, self.count)

    def hold(self, over: Sequence[int]) -> None:
        """Start again, with the sites that went below their floors held at them."""
        for i in self.free:
            kept, before = self.kept[i], self.before[i]
            kept.copy_(before if before.dtype == torch.bool else unpack(before, kept.shape))
        self.held = [self.pool([i], self.sites[i].cap) for i in over]
        self.count -= sum(self.sites[i].cap for i in over)
        self.free = [i for i in self.free if i not in over]

    def write(self) -> None:
        if type(self.sites[0].pattern) is Pattern:
            return
        for site, score, kept in zip(self.sites, self.scores, self.kept, strict=True):
            site.mask.copy_(site.pattern.expand(kept, score))
