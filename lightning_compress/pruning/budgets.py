"""How many units each weight or group of channels loses at an update."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_compress.foundation.shards import Shards
from lightning_compress.pruning.channels.group import ChannelGroup
from lightning_compress.pruning.distributions import layer_sparsity
from lightning_compress.pruning.prunable import Prunable
from lightning_compress.pruning.ranking.together import Job, check_floors, prune_together
from lightning_compress.pruning.schedule import SparsitySchedule
from lightning_compress.pruning.scores import Scores
from lightning_compress.pruning.settings import Settings


def asked_at(
    settings: Settings, sites: Sequence[Prunable], schedule: SparsitySchedule, step: int
) -> tuple[dict[str, float], float]:
    """What sparsity is in force at an update.

    Returns:
        Site name → sparsity asked of it alone, and the sparsity asked of all others together.
    """
    own = {site.name: site for site in sites if site.own}
    asked = {
        name: dataclasses.replace(schedule, initial=site.initial, final=site.final).at(step)
        for name, site in own.items()
    }
    if settings.distribution != "global":
        shapes = {site.name: _shape(site) for site in sites if not site.own}
        asked |= layer_sparsity(settings.distribution, shapes, schedule.at(step))
    return asked, schedule.at(step)


@dataclass(frozen=True)
class Budget:
    """Sites that are ranked together, and how many of their units have to be pruned.

    On accelerators the count is a tensor (int64, ``[]``), so that nothing waits for the device.
    """

    sites: Sequence[Prunable]
    units: int | Tensor


def budgets(
    sites: Sequence[Prunable], asked: Mapping[str, float], common: float, pruned: Mapping[str, int | Tensor]
) -> list[Budget]:
    """Count units.

    Args:
        sites: What there is to prune.
        asked: Site name → sparsity asked of it alone.
        common: Sparsity asked of all others together.
        pruned: Site name → entries that are pruned now. No budget is below them: a curve that dips, or a checkpoint
            that is sparser than asked, brings nothing back.
    """
    pools = [([site], asked[site.name]) for site in sites if site.name in asked]
    shared = [site for site in sites if site.name not in asked]
    found = []
    for pool, sparsity in [*([(shared, common)] if shared else []), *pools]:
        count = _units(pool, sparsity)
        if len(pool) == 1:
            # ERK knows nothing of floors: the floor wins.
            count = min(count, pool[0].cap)
        now = [_whole_units(site, pruned[site.name]) for site in pool if site.units]
        on_device = [units for units in now if isinstance(units, Tensor)]
        if on_device:
            total = torch.stack([units.to(on_device[0].device) for units in on_device]).sum()
            found.append(Budget(pool, total.clamp(min=count)))
        elif count := max(count, sum(units for units in now if isinstance(units, int))):
            found.append(Budget(pool, count))
    return found


def prune_to(settings: Settings, found: Sequence[Budget], scores: Scores, step: int, shards: Shards) -> None:
    """Prune each budget's smallest units, and write the masks."""
    # Processes that hold shards take all at once, for a constant number of collectives; others save memory.
    for batch in [list(found)] if shards.size > 1 else [[budget] for budget in found]:
        jobs = [
            Job(
                budget.sites,
                [scores.of(site, step) for site in budget.sites],
                budget.units,
                absolute=scores.by_absolute_value(budget.sites[0]),
            )
            for budget in batch
        ]
        if jobs:
            prune_together(jobs, settings.field, shards)
        for job in jobs if settings.channel_multiple > 1 else []:
            for site, ranks in zip(job.sites, job.scores, strict=True):
                if isinstance(site, ChannelGroup) and not site.grouped:
                    site.keep_multiple(settings.channel_multiple, ranks)


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


def _whole_units(site: Prunable, pruned: int | Tensor) -> int | Tensor:
    size = site.entries * site.pattern.prunable() / site.units
    if isinstance(pruned, Tensor):
        return (pruned.double() / size - 1e-6).ceil().long()
    return math.ceil(round(pruned / size, 6))


def _shape(site: Prunable) -> tuple[int, ...]:
    return (site.entries,) if isinstance(site, ChannelGroup) else tuple(site.parameter.shape)  # type: ignore[attr-defined]
