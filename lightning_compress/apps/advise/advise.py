"""Sensitivity of each layer to compression, and a plan within a budget, before training."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_compress.apps.advise.hessian import signs, traces
from lightning_compress.apps.advise.layer_options import places
from lightning_compress.apps.advise.plan import Budget, Plan, Planner, Unreachable, refuse_nothing
from lightning_compress.apps.advise.sensitivity import Criterion, Layer, measure
from lightning_compress.apps.configuration.instantiate import instantiate
from lightning_compress.apps.training_batches import collect
from lightning_compress.callbacks import GradualMagnitudePruning, QuantizationAwareTraining
from lightning_compress.errors import CompressionError

SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
BITS = (2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        checkpoint: The trained model.
        size: Bytes that the packed file may have.
        bit_operations: Bit operations that a forward may take: their number, or a share of those in float32.
        is_share: Whether they are a share.
        criterion: What a plan makes least.
        sparsities: Shares of zeros to choose from.
        bits: Bit widths to choose from.
        batches: Training batches to measure with.
        probes: Random vectors for each trace of the Hessian.
    """

    checkpoint: Path
    size: float | None = None
    bit_operations: float | None = None
    is_share: bool = False
    criterion: Criterion = "loss"
    sparsities: Sequence[float] = SPARSITIES
    bits: Sequence[int] = BITS
    batches: int = 8
    probes: int = 16

    def __post_init__(self) -> None:
        """Refuse what cannot be asked for."""
        if self.size is None and self.bit_operations is None:
            raise CompressionError(
                "advise: no budget is given. Add --max-size 100KB, or --max-bops 5% of the float model's, or both."
            )
        if not self.checkpoint.is_file():
            raise CompressionError.field("--checkpoint", expected="a checkpoint file", got=str(self.checkpoint))
        for name, value in (("--batches", self.batches), ("--probes", self.probes)):
            if value < 1:
                raise CompressionError.field(name, expected="at least 1", got=value)
        if not self.sparsities or any(not 0 <= share < 1 for share in self.sparsities):
            raise CompressionError.field("--sparsities", expected="shares in [0, 1)", got=list(self.sparsities))
        if not self.bits or any(not 2 <= width <= 8 for width in self.bits):
            raise CompressionError.field("--bits", expected="integers from 2 to 8", got=list(self.bits))


@dataclass(frozen=True)
class Advice:
    """What was found.

    Attributes:
        plan: The plan; ``None`` if no setting keeps the budget.
        least: Bytes and bit operations of the smallest plan, where none keeps the budget.
        budget: The budget, in bytes and bit operations.
        layers: What each layer can bear.
        base: Mean training loss of the model as it is.
        dense_bytes: Bytes of the model in float32.
        dense_operations: Bit operations of one forward in float32.
        evaluations: How often the batches were evaluated for it.
        seconds: How long the measurement took.
    """

    plan: Plan | None
    least: Budget | None
    budget: Budget
    layers: tuple[Layer, ...]
    base: float
    dense_bytes: int
    dense_operations: float
    evaluations: int
    seconds: float

    def as_dict(self, criterion: Criterion) -> dict[str, Any]:
        """For JSON."""
        chosen = {} if self.plan is None else {layer.name: option for layer, option in self.plan.layers}
        layers = [
            {
                "name": layer.name,
                "numel": layer.numel,
                "trace": None if layer.trace is None else asdict(layer.trace),
                "chosen": None if layer.name not in chosen else asdict(chosen[layer.name]),
                "options": [
                    {**asdict(option), "cost": cost}
                    for option, cost in zip(layer.options, layer.costs(criterion), strict=True)
                ],
            }
            for layer in self.layers
        ]
        plan = self.plan
        return {
            "criterion": criterion,
            "budget": asdict(self.budget),
            "plan": None
            if plan is None
            else {
                "sparsity": plan.sparsity,
                "packed_bytes": plan.packed,
                "estimated_bytes": plan.estimated,
                "bit_operations": plan.bit_operations,
                "expected_loss": self.base + plan.expected,
                "measured_loss": self.base + plan.measured,
                "gap": plan.gap,
                "uniform": None
                if plan.uniform is None
                else {**asdict(plan.uniform), "loss": self.base + plan.uniform.loss},
            },
            "least": None if self.least is None else asdict(self.least),
            "loss": self.base,
            "dense_bytes": self.dense_bytes,
            "dense_bit_operations": self.dense_operations,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "layers": layers,
        }


def advise(
    cfg: DictConfig,
    folder: str,
    overrides: Sequence[str],
    request: Request,
    progress: Callable[[int, int], None] | None = None,
) -> Advice:
    """Measure what a trained model can bear, and plan its compression.

    Args:
        cfg: The composed config; used up.
        folder: For what a fit writes when it begins.
        overrides: The command line's overrides.
        request: What is asked for.
        progress: Called with the number of evaluations done, and of all.

    Raises:
        CompressionError: The configuration, the checkpoint or the request cannot be used.
    """
    pruning, quantization = _callback(cfg, "pruning"), _callback(cfg, "quantization")
    calibration = collect(cfg, folder, overrides, request.checkpoint, request.batches, "advise")
    quantized = quantization.settings if isinstance(quantization, QuantizationAwareTraining) else None
    among = places(
        calibration.model,
        pruning.settings if isinstance(pruning, GradualMagnitudePruning) else None,
        quantized,
        sorted(set(request.sparsities)),
        sorted(set(request.bits), reverse=True),
    )
    planner = Planner(calibration, among, quantized)
    share = planner.dense_operations if request.is_share else 1.0
    operations = None if request.bit_operations is None else request.bit_operations * share
    budget = Budget(request.size, operations)
    began = time.perf_counter()
    curvature = None
    if request.criterion == "hessian":
        parameters = {place.name: place.parameter for place in among}
        curvature = traces(calibration.losses, parameters, signs(parameters, request.probes))
    base, layers = measure(among, calibration.loss, work=planner.work, traces=curvature, progress=progress)
    seconds = time.perf_counter() - began
    refuse_nothing(layers)
    plan, least = None, None
    try:
        plan = planner.plan(base, layers, budget, request.criterion)
    except Unreachable as unreachable:
        least = unreachable.least
    return Advice(
        plan=plan,
        least=least,
        budget=budget,
        layers=tuple(layers),
        base=base,
        dense_bytes=planner.dense_bytes,
        dense_operations=planner.dense_operations,
        evaluations=1 + sum(len(place.sparsities) * len(place.bits) for place in among),
        seconds=seconds,
    )


def _callback(cfg: DictConfig, group: str) -> object | None:
    node = cfg.get(group)
    return instantiate(node, group) if node else None
