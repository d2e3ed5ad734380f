"""What compression would do to a model, found without training: the core of ``doctor``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_compress.apps.doctor.estimates import memory, sizes
from lightning_compress.apps.doctor.parameters import ParameterPlan, plan, tied
from lightning_compress.errors import CompressionError
from lightning_compress.foundation.example_inputs import call_arguments
from lightning_compress.foundation.recorded_forward import recording
from lightning_compress.metrics.zero_patterns import empty_channels
from lightning_compress.monitoring import phases
from lightning_compress.pruning import Pruner
from lightning_compress.pruning.criteria import kind_of
from lightning_compress.pruning.schedule import SparsitySchedule
from lightning_compress.pruning.settings import Settings
from lightning_compress.quantization import Quantization, strip
from lightning_compress.quantization.attach import install
from lightning_compress.quantization.candidates import weights
from lightning_compress.quantization.settings import QuantizationSettings
from lightning_compress.timeline import Run, Time

__all__ = ["Diagnosis", "ParameterPlan", "diagnose"]

_LATE = 0.95


@dataclass
class Diagnosis:
    """Everything that was found.

    Attributes:
        run: Length of the run.
        parameters: What happens to each parameter.
        phases: The timeline.
        updates: Optimizer steps after which masks are updated.
        sites: Where activations are quantized: name → bits.
        stays_float: What stays float though it could be quantized, with the reason.
        sizes: Expected bytes: ``dense``, ``packed``, ``onnx``; empty if something cannot be set up.
        memory: What training takes more, in bytes.
        errors: What was asked for and cannot happen.
        warnings: What is likely not meant.
        notes: What is good to know.
    """

    run: Run = field(default_factory=Run)
    parameters: list[ParameterPlan] = field(default_factory=list)
    phases: list[phases.Phase] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    sites: dict[str, int] = field(default_factory=dict)
    stays_float: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "total_steps": self.run.total_steps,
            "steps_per_epoch": self.run.steps_per_epoch,
            "phases": [asdict(phase) for phase in self.phases],
            "mask_updates": self.updates,
            "parameters": [item.as_dict() for item in self.parameters],
            "activations": self.sites,
            "stays_float": self.stays_float,
            "sizes": self.sizes,
            "memory": self.memory,
            "errors": self.errors,
            "warnings": self.warnings,
            "notes": self.notes,
        }


def diagnose(
    model: nn.Module,
    run: Run,
    *,
    pruning: Settings | None = None,
    quantization: QuantizationSettings | None = None,
    times: Mapping[str, Time] | None = None,
    distillation: Mapping[str, int] | None = None,
    example_inputs: Any = None,
    keeps_dense: bool = False,
) -> Diagnosis:
    """Find out what pruning and quantization would do to a model.

    Args:
        model: The model as it is when training begins, in the modes in which its parts train. It is not changed.
        run: Length of the run in optimizer steps.
        pruning: What is asked of pruning.
        quantization: What is asked of quantization.
        times: ``start``, ``freeze_range`` and ``freeze_batchnorm`` of quantization, as far as they are set.
        distillation: Optimizer steps at which distillation starts and, where given, ends.
        example_inputs: Inputs of one forward; without, activations cannot be placed.
        keeps_dense: Whether an export keeps the dense weights in memory.

    Returns:
        What was found; what cannot happen is in ``errors`` and not raised.

    Example:
        >>> from lightning_compress.pruning.settings import Settings
        >>> asked = Settings.check(final_sparsity=0.5, start=0, end=0.5, field="pruning")
        >>> diagnose(nn.Linear(4, 2), Run(100), pruning=asked).parameters[0].sparsity
        0.5
    """
    found = Diagnosis(run)
    found.warnings += _about_modules(model)
    model = strip(copy.deepcopy(model))
    operations = _operations(model, example_inputs)
    pruner = _pruner(model, run, pruning, example_inputs, found)
    expected = _expected(pruner, pruning, found)
    quantizers = _quantizers(model, quantization, example_inputs, found)
    found.parameters = plan(
        model, pruning=pruning, pruner=pruner, expected=expected, wanted=quantization, quantization=quantizers
    )
    _timeline(found, pruning, quantization, times or {}, distillation)
    if quantizers is not None:
        found.sites = {name: quantizer.bits for name, quantizer in quantizers.activations.items()}
        found.stays_float = _stays_float(model, found.parameters, quantizers)
    if not found.errors and (pruning is None or expected):
        found.sizes = sizes(model, quantizers, operations)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    found.memory = memory(pruner, pruning, quantizers, size if keeps_dense else 0)
    return found


def _pruner(
    model: nn.Module, run: Run, settings: Settings | None, example_inputs: Any, found: Diagnosis
) -> Pruner | None:
    if settings is None:
        return None
    try:
        pruner = Pruner.from_settings(model, settings, run, example_inputs)
    except CompressionError as error:
        found.errors.append(str(error))
        return None
    found.warnings += [f"{name} is not pruned: {reason}." for name, reason in pruner.skipped.items()]
    return pruner


def _expected(pruner: Pruner | None, settings: Settings | None, found: Diagnosis) -> dict[str, float]:
    """Prune at once to the final sparsity: what the present weights say of each layer's."""
    if pruner is None or settings is None:
        return {}
    if kind_of(settings.criterion).needs_gradient:
        found.notes.append(
            "Which weights are pruned depends on gradients, so sparsity by layer and sizes are not known beforehand."
        )
        return {}
    with warnings.catch_warnings():
        # It warns of the layers that are cut, which are listed below with all others.
        warnings.simplefilter("ignore")
        pruner.step(pruner.schedule.end)
    kept = {name: int(mask.count_nonzero()) for name, mask in pruner.masks.items()}
    cut = [name for name, mask in pruner.masks.items() if kept[name] < mask.shape[0]]
    if cut:
        listed = "; ".join(f"{name} keeps {kept[name]} of {pruner.masks[name].numel()} weights" for name in cut)
        found.warnings.append(
            f"Pruned completely or nearly so, by the present weights: {listed}. Almost nothing passes such a layer. "
            f"Set a higher layer_floor, distribution='erk', or a lower final_sparsity."
        )
    for name, mask in pruner.masks.items():
        empty = empty_channels(mask)
        if name not in cut and empty > mask.shape[0] / 2 and pruner.patterns[name] != "channel":
            found.warnings.append(f"{name} would lose all weights of {empty} of its {mask.shape[0]} output channels.")
    return {name: 1 - kept[name] / max(1, mask.numel()) for name, mask in pruner.masks.items()}


def _quantizers(
    model: nn.Module, settings: QuantizationSettings | None, example_inputs: Any, found: Diagnosis
) -> Quantization | None:
    if settings is None:
        return None
    try:
        quantization = install(model, settings)
        if quantization.gains_by_recording and example_inputs is not None:
            quantization.record(example_inputs)
    except CompressionError as error:
        found.errors.append(str(error))
        strip(model)
        return None
    if quantization.needs_recording:
        found.warnings.append("No example inputs: where activations are quantized is not known yet.")
    if settings.backend is not None and any(
        bits is not None and bits < 8 for bits in (settings.weight_bits, settings.activation_bits)
    ):
        found.notes.append(
            f"{settings.backend} computes with 8-bit integers: fewer bits make the packed file smaller, not the "
            f"network faster."
        )
    return quantization


def _timeline(
    found: Diagnosis,
    pruning: Settings | None,
    quantization: QuantizationSettings | None,
    times: Mapping[str, Time],
    distillation: Mapping[str, int] | None,
) -> None:
    schedule: SparsitySchedule | None = None
    steps: dict[str, int] = {}
    try:
        if pruning is not None:
            schedule = pruning.resolve(found.run)
            found.updates = [] if pruning.freeze else list(schedule.updates())
    except CompressionError as error:
        found.errors.append(str(error))
    for name, time in times.items() if quantization is not None else ():
        try:
            steps[name] = time.steps(found.run)
        except CompressionError as error:
            found.errors.append(str(error))
    bits = (
        ""
        if quantization is None
        else f"{quantization.weight_bits or 'float'}/{quantization.activation_bits or 'float'}"
    )
    live = steps if "start" in steps else None
    found.phases = phases.plan(schedule, live, distillation, bits=bits)
    found.notes += phases.notes(schedule, live)
    total = found.run.total_steps
    found.errors += [
        f"{times[name].field}: this phase would never begin: it is at optimizer step {step}, and the run has {total}."
        for name, step in steps.items()
        if total is not None and step >= total
    ]
    if schedule is not None and total is not None and schedule.end > _LATE * total and found.updates:
        found.notes.append(
            f"Pruning ends at optimizer step {schedule.end} of {total}, so that the network hardly trains at its full "
            f"sparsity. An end of 0.6 to 0.8 leaves time to recover."
        )
    found.errors = list(dict.fromkeys(found.errors))


def _stays_float(model: nn.Module, plans: Sequence[ParameterPlan], quantization: Quantization) -> list[str]:
    layers = {candidate.names[0] for candidate in weights(model)}
    lines = [
        f"{item.name} ({item.module_type}): {item.quantization}"
        for item in plans
        if item.name in layers and not item.quantized
    ]
    if quantization.placement is not None and quantization.settings.activation_bits is not None:
        lines += [
            f"the input of {item.name} ({item.module_type}): no quantizer reaches it"
            for item in plans
            if item.quantized and item.input_bits is None and item.module_type != "Embedding"
        ]
    return lines + quantization.unreached


def _about_modules(model: nn.Module) -> list[str]:
    """What is unusual in a model that is about to be compressed."""
    lines = [
        f"{', '.join(names)} are one weight: it is pruned, quantized and counted once, in all of its places."
        for names in tied(model)
    ]
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    still = [name for name, norm in norms.items() if not norm.training]
    if still:
        lines.append(
            f"{_some(still)}: in eval mode when training begins, so that statistics stay those of the dense network "
            f"while weights are pruned and quantized. Call train() on them unless that is meant."
        )
    if unfolded := [name for name, norm in norms.items() if not norm.track_running_stats]:
        lines.append(f"{_some(unfolded)}: without running statistics, so that they cannot be folded at export.")
    if idle := [name for name, parameter in model.named_parameters() if not parameter.requires_grad]:
        lines.append(f"{_some(idle)}: not trained (requires_grad is False), so that they cannot recover from pruning.")
    return lines


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _operations(model: nn.Module, example_inputs: Any) -> int:
    if example_inputs is None:
        return sum(1 for module in model.modules() if not any(module.children()))
    args, kwargs = call_arguments(example_inputs)
    with torch.no_grad(), recording(model) as tape:
        model(*args, **kwargs)
    return len(tape.ops)
