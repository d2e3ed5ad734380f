"""A pruner's state as tensors and primitives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.shards import Shards, gather
from lightning_compress.pruning.criteria import name_of
from lightning_compress.pruning.masks import pack, unpack
from lightning_compress.pruning.prunable import Site
from lightning_compress.pruning.schedule import SparsitySchedule
from lightning_compress.pruning.settings import Settings

VERSION = 2


def describe(settings: Settings, schedule: SparsitySchedule) -> dict[str, Any]:
    """Everything that decides what a pruner does, as primitives, for the checkpoint.

    Callables are described by their qualified name.
    """
    return {
        "final_sparsity": settings.final_sparsity,
        "initial_sparsity": settings.initial_sparsity,
        "start": schedule.start,
        "end": schedule.end,
        "every": schedule.every,
        "schedule": settings.schedule_name,
        "distribution": settings.distribution,
        "pattern": settings.pattern.text,
        "criterion": name_of(settings.criterion),
        "regrow": settings.regrow,
        "drop_fraction": settings.drop_fraction,
        "layer_floor": settings.layer_floor,
        "channel_multiple": settings.channel_multiple,
        "freeze": settings.freeze,
        "targets": None if settings.targets is None else list(settings.targets),
        "ignore": list(settings.ignore),
        "overrides": {
            name: own if own is None else {k: getattr(v, "text", v) for k, v in own.items()}
            for name, own in settings.overrides.items()
        },
        "seed": settings.seed,
    }


def refuse_strange(state: Mapping[str, Any], names: set[str], field: str, *, accept_changes: bool) -> None:
    """Refuse a state that is not a pruner's, of another version, or of other weights unless changes are accepted.

    Raises:
        CompressionError: It is one of these.
    """
    if state.get("version") != VERSION or not {"settings", "masks", "last_update"} <= state.keys():
        raise CompressionError.field(
            field, expected=f"the state of a pruner, version {VERSION}", got=sorted(state), fix=""
        )
    saved = set(state["masks"])
    if saved != names and not accept_changes:
        raise CompressionError(
            f"{field}: the checkpoint has masks for other weights. Only there: {sorted(saved - names)}; only in "
            f"this model: {sorted(names - saved)}."
        )


def packed_masks(sites: Sequence[Site]) -> dict[str, dict[str, Any]]:
    """Whole masks, one bit a weight, whatever process holds which rows."""
    return {
        site.name: {"shape": list(site.parameter.shape), "bits": pack(gather(site.parameter, site.mask))}
        for site in sites
    }


def restore_masks(sites: Sequence[Site], saved: Mapping[str, Any], shards: Shards, field: str) -> None:
    """Write the masks that :func:`packed_masks` made, for weights that have one.

    Raises:
        CompressionError: A mask is of another shape than its weight.
    """
    for site in sites:
        if site.name not in saved:
            continue
        shape = saved[site.name]["shape"]
        if list(shape) != list(site.parameter.shape):
            raise CompressionError(
                f"{field}: the checkpoint's mask for {site.name} has shape {list(shape)}, the weight has "
                f"{list(site.parameter.shape)}."
            )
        site.mask.copy_(shards.rows(unpack(saved[site.name]["bits"], shape)))


def whole_sums(sites: Sequence[Site], sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a criterion has summed up, as whole tensors."""
    return {site.name: gather(site.parameter, sums[site.name]) for site in sites if site.name in sums}


def local_sums(sites: Sequence[Site], saved: Mapping[str, Tensor], shards: Shards) -> dict[str, Tensor]:
    """Undo :func:`whole_sums`."""
    return {
        site.name: shards.rows(saved[site.name]).to(site.weight.device, copy=True)
        for site in sites
        if site.name in saved
    }
