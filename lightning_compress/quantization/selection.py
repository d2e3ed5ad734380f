"""Which weights of a model the settings select."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.candidates import Weight, complex_weights, computed, loose, weights
from lightning_compress.quantization.settings import QuantizationSettings
from lightning_compress.targets import Candidate, select


@dataclass(frozen=True)
class Selected:
    """What the settings select.

    Attributes:
        weights: Weights of layers, each with its overrides.
        loose: Parameters that functions may read as weights, which only a recorded forward tells → their overrides.
        computed: Computed weights of layers, which a recorded forward may show where to quantize → their overrides.
        unquantizable: Weights that are selected and stay float else → the reason.
    """

    weights: list[tuple[Weight, Mapping[str, Any]]]
    loose: dict[str, Mapping[str, Any]]
    computed: dict[str, Mapping[str, Any]]
    unquantizable: dict[str, str]


def select_weights(model: nn.Module, settings: QuantizationSettings) -> Selected:
    """Find what is quantized.

    Raises:
        CompressionError: A pattern matches nothing, or nothing that is selected can be quantized.
    """
    by_wrapper = computed(model)
    made = {candidate.names[0] for candidate in by_wrapper}
    candidates: list[Candidate[Any]] = [*weights(model), *loose(model), *by_wrapper, *complex_weights(model)]
    selections = select(
        candidates,
        targets=settings.targets,
        ignore=settings.ignore,
        overrides=settings.overrides,
        field=settings.field,
    )
    found = Selected(
        weights=[(s.value, s.overrides) for s in selections if isinstance(s.value, Weight)],
        loose={s.name: s.overrides for s in selections if s.value is None},
        computed={s.name: s.overrides for s in selections if s.name in made},
        unquantizable={s.name: s.value for s in selections if isinstance(s.value, str)},
    )
    recorded = found.computed and settings.activation_bits is not None
    if not found.weights and not found.loose and not recorded:
        reasons = "".join(f" {name}: {reason}." for name, reason in found.unquantizable.items())
        raise CompressionError(
            f"{settings.field}: nothing to quantize: {type(model).__name__} has no Conv or Linear layer that the "
            f"targets select, with a weight of its own.{reasons}"
        )
    return found


def refuse_unread(settings: QuantizationSettings, loose: Collection[str], read: Collection[str]) -> None:
    """Refuse parameters that are asked for by name and that no function reads as a weight.

    Args:
        settings: What was asked for.
        loose: The parameters of no layer.
        read: Those that a recorded forward reads.

    Raises:
        CompressionError: There is one.
    """
    for part in ("targets", "overrides"):
        for name in getattr(settings, part) or ():
            if name in loose and name not in read:
                raise CompressionError.field(
                    f"{settings.field}.{part}",
                    expected="layers, and parameters that functions read as weights",
                    got=name,
                    fix="In the recorded forward no F.linear, F.conv*, matmul, addmm or einsum read it.",
                )
