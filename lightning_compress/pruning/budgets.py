"""How many units each weight or group of channels loses at an update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_compress.pruning.channels.group import ChannelGroup
from lightning_compress.pruning.distributions import layer_sparsity
from lightning_compress.pruning.patterns import Pattern
from lightning_compress.pruning.prunable import Prunable, check_floors, prune_together
from lightning_compress.pruning.settings import Settings


def prune_to(
    settings: Settings,
    sites: Sequence[Prunable],
    sparsity: Callable[[float, float], float],
    score: Callable[[Prunable], Tensor],
    *,
    absolute: bool,
) -> dict[str, float]:
    """Prune up to the sparsity in force.

    Args:
        settings: The pruner's settings.
        sites: What there is to prune.
        sparsity: Initial and final sparsity → sparsity in force.
        score: Scores of a site's entries.
        absolute: Rank single entries by the scores' absolute value.

    Returns:
        Site name → sparsity asked of it, where something is asked of it alone.
    """
    asked: dict[str, float] = {}
    common = [site for site in sites if not site.own]
    shared = sparsity(settings.initial_sparsity, settings.final_sparsity)
    for site in sites:
        if site.own:
            asked[site.name] = sparsity(site.initial, site.final)
    if settings.distribution == "global":
        if common:
            _prune(settings, common, shared, score, absolute)
    else:
        shapes = {site.name: tuple(site.mask.shape) for site in common}
        asked |= layer_sparsity(settings.distribution, shapes, shared)
    for site in sites:
        if site.name in asked:
            _prune(settings, [site], asked[site.name], score, absolute)
    return asked


def refuse_floors(settings: Settings, sites: Sequence[Prunable]) -> None:
    """Find floors that cannot be met now, rather than at the end of training.

    Raises:
        CompressionError: The floors leave too little to prune.
    """
    common = [site for site in sites if not site.own]
    pools = [[site] for site in sites if site.own]
    if settings.distribution == "global" and common:
        pools.append(common)
    elif settings.distribution == "uniform":
        pools += [[site] for site in common]
    for pool in pools:
        check_floors(pool, _units(pool, pool[0].final), settings.field)


def _units(pool: Sequence[Prunable], asked: float) -> int:
    units = sum(site.units for site in pool)
    return min(units, round(asked / pool[0].pattern.prunable() * units))


def _prune(
    settings: Settings,
    pool: Sequence[Prunable],
    asked: float,
    score: Callable[[Prunable], Tensor],
    absolute: bool,
) -> None:
    count = _units(pool, asked)
    if len(pool) == 1:
        # ERK knows nothing of floors: the floor wins.
        count = min(count, pool[0].cap)
    at_least = _pruned_units(pool)
    if count or (not isinstance(at_least, Tensor) and at_least):
        single = absolute and type(pool[0].pattern) is Pattern
        scores = [score(site) for site in pool]
        prune_together(pool, scores, count, at_least, absolute=single, field=settings.field)
        for site, ranks in zip(pool, scores, strict=True):
            if settings.channel_multiple > 1 and type(site) is ChannelGroup and not site.grouped:
                site.keep_multiple(settings.channel_multiple, ranks)


def _pruned_units(pool: Sequence[Prunable]) -> int | Tensor:
    """Units pruned now, which stay so: a curve may dip, or a checkpoint be sparser than asked.

    On accelerators the count stays there.
    """
    found = [
        (site.mask.numel() - site.kept_count(), site.mask.numel() * site.pattern.prunable() / site.units)
        for site in pool
        if site.units
    ]
    on_device = [pruned for pruned, _ in found if isinstance(pruned, Tensor)]
    if not on_device:
        return sum(math.ceil(round(float(pruned / size), 6)) for pruned, size in found)
    units = [
        (pruned.to(on_device[0].device).double() / size - 1e-6).ceil().long()
        for (_, size), pruned in zip(found, on_device, strict=True)
    ]
    return torch.stack(units).sum()
