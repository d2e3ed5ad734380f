"""What is pruned as one: a weight with its mask, its pattern and its own settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.masks import count_kept, new_mask
from lightning_compress.pruning.patterns import Pattern
from lightning_compress.pruning.smallest import prune_smallest


class Prunable(Protocol):
    """What :func:`prune_together` needs to know of a weight or a group of channels; see :class:`Site`."""

    name: str
    mask: Tensor
    pattern: Pattern
    initial: float
    final: float
    floor: float
    own: bool

    @property
    def units(self) -> int:
        """Units that are kept or pruned as one."""

    @property
    def cap(self) -> int:
        """The most units that may be pruned."""

    def pruned(self) -> int:
        """Entries of the mask pruned now."""

    def kept_count(self) -> int | Tensor:
        """Entries kept now; left on the device (int64, ``[]``) where looking at it would wait for one."""


@dataclass
class Site:
    """A weight to prune.

    Attributes:
        name: The parameter's full name.
        parameter: The parameter itself.
        mask: ``bool``, of the parameter's shape, ``True`` = kept.
        pattern: What is pruned as one unit.
        initial: Sparsity at the start of the schedule.
        final: Sparsity at its end.
        floor: Share of the units that is always kept.
        own: Whether it follows its own sparsity instead of a share in the common one.
    """

    name: str
    parameter: nn.Parameter
    mask: Tensor
    pattern: Pattern
    initial: float
    final: float
    floor: float
    own: bool

    @classmethod
    def of(
        cls,
        name: str,
        parameter: nn.Parameter,
        pattern: Pattern,
        *,
        initial: float,
        final: float,
        floor: float,
        own: bool,
    ) -> Site:
        """Make a site whose mask keeps everything."""
        return cls(name, parameter, new_mask(parameter), pattern, initial, final, floor, own)

    @property
    def units(self) -> int:
        """Units that are kept or pruned as one."""
        return self.pattern.units(self.parameter.shape)

    @property
    def cap(self) -> int:
        """The most units that may be pruned."""
        return self.units - math.ceil(round(self.floor * self.units, 6))

    def pruned(self) -> int:
        """Entries pruned now."""
        return self.mask.numel() - count_kept(self.mask)

    def kept_count(self) -> int | Tensor:
        """Entries kept now; left on the device (int64, ``[]``) where looking at it would wait for one."""
        return count_kept(self.mask) if self.mask.device.type == "cpu" else self.mask.count_nonzero()

    def move(self) -> None:
        """Follow the parameter to its device."""
        if self.mask.device != self.parameter.device:
            self.mask = self.mask.to(self.parameter.device)


def check_floors(sites: Sequence[Prunable], count: int, field: str) -> None:
    """Refuse to prune more units than the floors leave.

    Raises:
        CompressionError: With both numbers.
    """
    if count > sum(site.cap for site in sites):
        raise CompressionError(
            f"{field}.layer_floor: the sparsity asked for prunes {count} units, but the floors leave only "
            f"{sum(site.cap for site in sites)} to prune. Lower layer_floor or final_sparsity."
        )


def prune_together(
    sites: Sequence[Prunable],
    scores: Sequence[Tensor],
    count: int,
    at_least: int | Tensor = 0,
    *,
    absolute: bool,
    field: str,
) -> None:
    """Prune the ``count`` smallest units over all sites, none beyond its cap, and write the masks.

    A site that a free choice would cut below its floor is held at the floor and the others make up for it.

    Args:
        sites: Sites whose units are alike in size.
        scores: Scores of the entries, of the weights' shapes; entries pruned before must be the smallest.
        count: Units to prune over all sites.
        at_least: Units pruned before; a tensor (int64, ``[]``) where the sites lie on an accelerator.
        absolute: Rank by absolute value of the scores; for single entries only.
        field: Name of the owner, for messages.

    Raises:
        CompressionError: The floors leave too little to prune, or a score is NaN.
    """
    if not isinstance(at_least, Tensor):
        count, at_least = max(count, at_least), 0
    check_floors(sites, count, field)
    wanted = at_least.clamp(min=count) if isinstance(at_least, Tensor) else count
    single = type(sites[0].pattern) is Pattern
    if single:
        ranks = list(scores)
        kept = [site.mask for site in sites]
    else:
        ranks = [site.pattern.unit_scores(score) for site, score in zip(sites, scores, strict=True)]
        kept = [rank != -math.inf for rank in ranks]
    capped = any(site.cap < site.units for site in sites)
    before = [mask.clone() for mask in kept] if capped else []
    free = list(range(len(sites)))
    while free:
        prune_smallest(
            [ranks[i] for i in free],
            [kept[i] for i in free],
            wanted,
            absolute=absolute,
            names=[sites[i].name for i in free],
        )
        over = _beyond_caps([(kept[i], sites[i].cap) for i in free]) if capped else []
        if not any(over):
            break
        over = [i for i, beyond in zip(free, over, strict=True) if beyond]
        for i in free:
            kept[i].copy_(before[i])
        for i in over:
            prune_smallest([ranks[i]], [kept[i]], sites[i].cap, absolute=absolute, names=[sites[i].name])
            wanted = wanted - sites[i].cap
        free = [i for i in free if i not in over]
    if not single:
        for site, score, mask in zip(sites, scores, kept, strict=True):
            site.mask.copy_(site.pattern.expand(mask, score))


def _beyond_caps(masks: Sequence[tuple[Tensor, int]]) -> list[bool]:
    """Whether each mask prunes more than its cap; an accelerator is waited for once, unless one does."""
    device = masks[0][0].device
    beyond = torch.stack([(mask.numel() - mask.count_nonzero() > cap).to(device) for mask, cap in masks])
    return beyond.tolist() if bool(beyond.any()) else []


def infer_mask(site: Site) -> None:
    """Take weights that are exactly zero as pruned already."""
    torch.ne(site.parameter.detach(), 0, out=site.mask)
