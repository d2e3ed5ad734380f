"""A pruner's state as tensors and primitives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.schedule import SparsitySchedule
from lightning_compress.pruning.settings import Settings, name_of

VERSION = 1


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
