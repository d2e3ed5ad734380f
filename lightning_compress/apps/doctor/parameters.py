"""What happens to each parameter, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_compress.pruning import Pruner
from lightning_compress.pruning.candidates import candidates
from lightning_compress.pruning.settings import Settings
from lightning_compress.quantization import Quantization
from lightning_compress.quantization.candidates import weights
from lightning_compress.quantization.settings import QuantizationSettings
from lightning_compress.targets import Candidate, rank


@dataclass(frozen=True)
class ParameterPlan:
    """One parameter, tied ones once.

    Attributes:
        name: Full name, the first one of a tied parameter.
        module_type: Class of the module that holds it.
        shape: Shape.
        pruned: Whether it is pruned.
        pruning: How, or why not.
        sparsity: Share of zeros at the end, as its present weights would give; ``None`` where it is not known.
        quantized: Whether it is quantized.
        quantization: How, or why not.
        weight_bits: Bits; ``None`` for float.
        input_bits: Bits of the activations that its layer reads; ``None`` for float.
    """

    name: str
    module_type: str
    shape: tuple[int, ...]
    pruned: bool
    pruning: str
    sparsity: float | None
    quantized: bool
    quantization: str
    weight_bits: int | None
    input_bits: int | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "shape": list(self.shape)}


def plan(
    model: nn.Module,
    *,
    pruning: Settings | None,
    pruner: Pruner | None,
    expected: Mapping[str, float],
    wanted: QuantizationSettings | None,
    quantization: Quantization | None,
) -> list[ParameterPlan]:
    """Say for every parameter of a model what happens to it.

    Args:
        model: The model, as the pruner and the quantizers know it.
        pruning: What was asked of pruning.
        pruner: The pruner of the rehearsal.
        expected: Parameter's name → share of zeros at the end.
        wanted: What was asked of quantization.
        quantization: The quantizers of the rehearsal.
    """
    modules = dict(model.named_modules())
    prunable = {candidate.names[0]: candidate for candidate in candidates(model)}
    quantizable = {candidate.names[0]: candidate for candidate in weights(model)}
    folded = set(quantization.placement.folds.values()) if quantization and quantization.placement else set()
    plans = []
    for name, parameter in model.named_parameters():
        module = modules[name.rpartition(".")[0]]
        pruned, how = _pruning(name, prunable.get(name), pruning, pruner)
        quantizer = quantization.layers.get(name) if quantization else None
        site = quantization.layer_input.get(name) if quantization else None
        text = _quantization(name, module, quantizable.get(name), wanted, quantization, folded)
        plans.append(
            ParameterPlan(
                name=name,
                module_type=type(module).__name__,
                shape=tuple(parameter.shape),
                pruned=pruned,
                pruning=how,
                sparsity=expected.get(name),
                quantized=quantizer is not None,
                quantization=text,
                weight_bits=None if quantizer is None else quantizer.spec.bits,
                input_bits=None if site is None or quantization is None else quantization.activations[site].bits,
            )
        )
    return plans


def tied(model: nn.Module) -> list[tuple[str, ...]]:
    """Names that stand for the same parameter."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [tuple(group) for group in names.values() if len(group) > 1]


def _pruning(
    name: str, candidate: Candidate[Any] | None, settings: Settings | None, pruner: Pruner | None
) -> tuple[bool, str]:
    if settings is None:
        return False, "pruning is off"
    if pruner is None:
        return False, "pruning cannot be set up"
    if name in pruner.patterns:
        pattern = pruner.patterns[name]
        return True, pattern if settings.freeze else f"{pattern}, {settings.distribution}"
    if name in pruner.skipped:
        return False, pruner.skipped[name]
    if candidate is None:
        return False, "not a floating-point number"
    reason = _left_out(candidate, settings.targets, settings.ignore, settings.overrides)
    return False, reason or next(
        (f"in group {group}: {why}" for group, why in pruner.skipped.items() if name.startswith(f"{group}.")),
        "no layer's weight: only if a target names it",
    )


def _quantization(
    name: str,
    module: nn.Module,
    candidate: Candidate[Any] | None,
    settings: QuantizationSettings | None,
    quantization: Quantization | None,
    folded: set[str],
) -> str:
    if settings is None:
        return "quantization is off"
    if quantization is None:
        return "quantization cannot be set up"
    quantizer = quantization.layers.get(name)
    if quantizer is not None:
        return f"{quantizer.spec.bits} bits per {quantizer.spec.granularity}"
    if candidate is not None:
        reason = _left_out(candidate, settings.targets, settings.ignore, settings.overrides or {})
        return reason or "weight_bits is null"
    owner, _, attribute = name.rpartition(".")
    if owner in folded:
        return "folded into its layer at export"
    for weight, layer in quantization.layers.items():
        if any(bias is module._parameters[attribute] for bias in layer.biases):
            with_input = weight in quantization.layer_input
            return "32-bit integer at export" if with_input else "float: its layer's input is float"
    return "norms stay float" if _is_norm(module) else f"{type(module).__name__} has no integer form here"


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm | nn.LayerNorm | nn.GroupNorm) or "Norm" in type(module).__name__


def _left_out(
    candidate: Candidate[Any],
    targets: Iterable[str] | None,
    ignore: Iterable[str],
    overrides: Mapping[str, Mapping[str, Any] | None],
) -> str | None:
    """Which pattern left a candidate out, if one did."""
    for pattern, settings in overrides.items():
        if settings is None and rank(pattern, candidate, "overrides") is not None:
            return f"overrides[{pattern!r}] is null"
    for pattern in ignore:
        if rank(pattern, candidate, "ignore") is not None:
            return f"ignored by {pattern!r}"
    return "no target names it" if targets is not None else None
