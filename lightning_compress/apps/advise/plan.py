"""A setting for every layer under a budget, its size in a real packed file, and the uniform setting to compare with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.apps.advise.knapsack import Allocation, Use, allocate
from lightning_compress.apps.advise.layer_options import Place, all_compressed
from lightning_compress.apps.advise.sensitivity import Criterion, Layer, Option, Work
from lightning_compress.apps.training_batches import TrainingBatches
from lightning_compress.delivery.evaluation import duplicate
from lightning_compress.errors import CompressionError
from lightning_compress.export.packed.save_load import save_packed
from lightning_compress.export.signatures import called_through
from lightning_compress.foundation.example_inputs import call_arguments
from lightning_compress.metrics import count_macs, describe
from lightning_compress.metrics.functional import dense_bytes, extra_bytes
from lightning_compress.quantization import Quantization, find
from lightning_compress.quantization.attach import install
from lightning_compress.quantization.settings import QuantizationSettings

Chosen = Mapping[str, tuple[float, "int | None"]]
"""Weight's name → sparsity and bits."""

_ROUNDS = 8
_BISECTIONS = 12
_MOST_SPARSITY = 0.995


@dataclass(frozen=True)
class Budget:
    """What a plan may take.

    Attributes:
        size: Bytes of the packed file.
        bit_operations: Bit operations of one forward, for one sample.
    """

    size: float | None = None
    bit_operations: float | None = None

    def allows(self, size: float, bit_operations: float) -> bool:
        """Whether something stays within it."""
        return (self.size is None or size <= self.size) and (
            self.bit_operations is None or bit_operations <= self.bit_operations
        )


class Unreachable(Exception):
    """No setting keeps the budget.

    Attributes:
        least: Bytes and bit operations of the smallest plan there is.
    """

    def __init__(self, least: Budget) -> None:
        super().__init__(least)
        self.least = least


@dataclass(frozen=True)
class Uniform:
    """One sparsity and one bit width for all layers, within the same budget."""

    sparsity: float
    bits: int | None
    size: float
    loss: float


@dataclass(frozen=True)
class Plan:
    """What is proposed.

    Attributes:
        layers: Each layer with the option that was chosen.
        estimated: Bytes of the packed file, from entropies.
        packed: Bytes of the packed file, written once with the weights as they are.
        bit_operations: Bit operations of one forward; ``None`` if they could not be counted.
        expected: How much the loss is expected to rise, the layers' own rises summed up.
        measured: How much it rises with all layers compressed together, before any training.
        gap: How far ``expected`` may lie above the optimum, as a share.
        uniform: The best uniform setting within the budget; ``None`` if there is none.
    """

    layers: tuple[tuple[Layer, Option], ...]
    estimated: float
    packed: int
    bit_operations: float | None
    expected: float
    measured: float
    gap: float
    uniform: Uniform | None

    @property
    def chosen(self) -> dict[str, tuple[float, int | None]]:
        """Weight's name → sparsity and bits."""
        return {layer.name: (option.sparsity, option.bits) for layer, option in self.layers}

    @property
    def sparsity(self) -> float:
        """Share of zeros over all layers."""
        total = sum(layer.numel for layer, _ in self.layers)
        return sum(layer.numel * option.sparsity for layer, option in self.layers) / total


class Planner:
    """Finds plans for one trained model.

    Args:
        calibration: The model and its data.
        among: Its weights with their settings.
        quantization: Settings of the quantization, but for the bits of the layers; ``None`` without.

    Attributes:
        work: Weight's name → multiply-accumulates and bits of the input.
        fixed_operations: Bit operations that no choice changes; ``None`` if the forward could not be counted.
        dense_operations: Bit operations in float32.
        dense_bytes: Bytes in float32.
    """

    def __init__(
        self, calibration: TrainingBatches, among: Sequence[Place], quantization: QuantizationSettings | None
    ) -> None:
        self.calibration, self.among, self.quantization = calibration, among, quantization
        model = self._prepared({})
        sample = calibration.entry.first(1).example_inputs
        macs = count_macs(model, sample)
        rows = describe(model, macs=macs)
        named = {place.name for place in among}
        self.work = {row.name: Work(row.macs or 0, row.activation_bits) for row in rows if row.name in named}
        self.fixed_operations = float(
            sum((row.macs or 0) * row.weight_bits * row.activation_bits for row in rows if row.name not in named)
            + macs.products * 32 * 32
        )
        self.dense_operations = float(macs.total * 32 * 32)
        self.dense_bytes = dense_bytes(rows, extra_bytes(model))

    def plan(self, base: float, layers: Sequence[Layer], budget: Budget, criterion: Criterion) -> Plan:
        """Choose a setting for every layer.

        The size of the packed file is estimated from entropies. Each proposal is packed, and what the estimate was
        wrong by corrects the next one; of those whose packed file keeps the budget the best is taken.

        Args:
            base: The loss of the model as it is.
            layers: What was measured.
            budget: What the plan may take.
            criterion: What is to be least.

        Raises:
            Unreachable: Nothing keeps the budget.
        """
        costs = [layer.costs(criterion) for layer in layers]
        start = {layer.name: (layer.options[0].sparsity, layer.options[0].bits) for layer in layers}
        beside = self.pack(start) - sum(layer.options[0].bytes for layer in layers)
        best: Plan | None = None
        for _ in range(_ROUNDS):
            found = allocate(costs, self._uses(layers, budget, beside))
            if found is None and best is None:
                # By the estimate, which may be a little too high.
                found = _smallest(costs, layers)
            if found is None:
                break
            picked = _picked(layers, found)
            if best is not None and picked == best.layers:
                break
            estimated = beside + sum(option.bytes for _, option in picked)
            packed = self.pack({layer.name: (option.sparsity, option.bits) for layer, option in picked})
            operations = self.fixed_operations + sum(option.bit_operations for _, option in picked)
            within = budget.allows(packed, operations)
            if within and (best is None or found.cost < best.expected):
                best = Plan(picked, estimated, packed, operations, found.cost, 0.0, found.gap, None)
            # The next one is estimated with what this one was off by.
            beside += packed - estimated
        if best is None:
            picked = _picked(layers, _smallest(costs, layers))
            chosen = {layer.name: (option.sparsity, option.bits) for layer, option in picked}
            operations = sum(min(o.bit_operations for o in layer.options) for layer in layers)
            raise Unreachable(Budget(self.pack(chosen), self.fixed_operations + operations))
        return replace(
            best,
            measured=self.loss(best.chosen) - base,
            uniform=self.uniform(base, layers, budget, beside),
        )

    def uniform(self, base: float, layers: Sequence[Layer], budget: Budget, beside: float) -> Uniform | None:
        """The best setting that is the same for all layers, within the budget, by the loss before any training.

        Args:
            base: The loss of the model as it is.
            layers: What was measured; says which bits there are.
            budget: What it may take.
            beside: Bytes of the packed file that no choice changes.
        """
        best: Uniform | None = None
        for bits in sorted({option.bits for layer in layers for option in layer.options}, key=lambda b: b or 32):
            within = self.least_uniform(bits, budget, beside)
            if within is not None:
                sparsity, size = within
                rise = self.loss(self._alike(sparsity, bits)) - base
                if best is None or rise < best.loss:
                    best = Uniform(sparsity, bits, size, rise)
        return best

    def loss(self, chosen: Chosen) -> float:
        """Loss with all layers compressed, without training."""
        with all_compressed(chosen, self.among):
            return self.calibration.loss()

    def pack(self, chosen: Chosen) -> int:
        """Bytes of the packed file with the weights as they are, pruned and quantized as chosen."""
        model = self._prepared(chosen)
        quantization = find(model)
        if quantization is not None:
            _observe(model, quantization, self.calibration.entry.example_inputs)
        with tempfile.TemporaryDirectory() as folder:
            return save_packed(model, Path(folder) / "plan.packed").bytes

    def _prepared(self, chosen: Chosen) -> nn.Module:
        """A copy of the model, pruned as chosen, with quantizers of the chosen bits."""
        pruned = {name: (sparsity, None) for name, (sparsity, _) in chosen.items()}
        with all_compressed(pruned, self.among):
            model = called_through(duplicate(self.calibration.model), self.calibration.entry.name)
        if self.quantization is not None:
            own = {name: {"weight_bits": bits} for name, (_, bits) in chosen.items() if bits is not None}
            quantization = install(
                model, replace(self.quantization, overrides={**(self.quantization.overrides or {}), **own})
            )
            if quantization.needs_recording:
                quantization.record(self.calibration.entry.first(1).example_inputs)
        return model

    def _uses(self, layers: Sequence[Layer], budget: Budget, beside: float) -> list[Use]:
        uses = []
        if budget.size is not None:
            uses.append(Use([[o.bytes for o in layer.options] for layer in layers], budget.size - beside))
        if budget.bit_operations is not None:
            most = budget.bit_operations - self.fixed_operations
            uses.append(Use([[o.bit_operations for o in layer.options] for layer in layers], most))
        return uses

    def _alike(self, sparsity: float, bits: int | None) -> dict[str, tuple[float, int | None]]:
        """One setting for all layers, as far as each can have it."""
        return {
            place.name: (
                sparsity if len(place.sparsities) > 1 else place.sparsities[0],
                bits if bits in place.bits else place.bits[0],
            )
            for place in self.among
        }

    def least_uniform(self, bits: int | None, budget: Budget, beside: float) -> tuple[float, float] | None:
        """The least sparsity that keeps the budget with these bits, and its size."""
        alike = self._alike(0.0, bits)
        operations = self.fixed_operations + sum(
            self.work[name].macs * (own or 32) * self.work[name].activation_bits for name, (_, own) in alike.items()
        )
        if budget.bit_operations is not None and operations > budget.bit_operations:
            return None

        def size(sparsity: float) -> float:
            with all_compressed(self._alike(sparsity, bits), self.among) as changes:
                return beside + sum(change.bytes for change in changes.values())

        low, high = 0.0, _MOST_SPARSITY
        if budget.size is None or size(low) <= budget.size:
            return low, size(low)
        if size(high) > budget.size:
            return None
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if size(middle) <= budget.size else (middle, high)
        return high, size(high)


def _smallest(costs: Sequence[Sequence[float]], layers: Sequence[Layer]) -> Allocation:
    """The allocation of the smallest file."""
    chosen = tuple(
        min(range(len(layer.options)), key=lambda k: (layer.options[k].bytes, layer.options[k].bit_operations))
        for layer in layers
    )
    cost = sum(options[index] for options, index in zip(costs, chosen, strict=True))
    return Allocation(chosen, cost, cost)


def _picked(layers: Sequence[Layer], allocation: Allocation) -> tuple[tuple[Layer, Option], ...]:
    return tuple((layer, layer.options[index]) for layer, index in zip(layers, allocation.chosen, strict=True))


def _observe(model: nn.Module, quantization: Quantization, example_inputs: Any) -> None:
    """Let the activation quantizers see a batch, as training would; norms keep their statistics."""
    args, kwargs = call_arguments(example_inputs)
    model.training, quantization.enabled = True, True
    with torch.no_grad():
        model(*args, **kwargs)
    model.training = False


def refuse_nothing(layers: Sequence[Layer]) -> None:
    """Check that something can be chosen.

    Raises:
        CompressionError: No layer has two settings, or a layer has none whose loss is a number.
    """
    for layer in layers:
        if not layer.options:
            raise CompressionError(f"advise: the loss is not a number, whatever {layer.name} is set to.")
    if all(len(layer.options) == 1 for layer in layers):
        raise CompressionError("advise: there is nothing to choose: every layer has one setting only.")
