"""All weights of a model on their grids at once: one operator a forward on accelerators, however many layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lightning_compress.foundation.device_operators import served
from lightning_compress.quantization.fake_quantize.gpu.autograd import accumulates
from lightning_compress.quantization.fake_quantize.gpu.weight_operators import (
    learned_weight_pass,
    quantize_weights,
    search_weights,
)
from lightning_compress.quantization.ranges import observers

if TYPE_CHECKING:
    from lightning_compress.quantization.quantizers.weight import WeightQuantizer

_LONGEST_ROW = 65_536


@dataclass(frozen=True, eq=False)
class Ready:
    """A weight on its grid, made together with others.

    Attributes:
        value: The values, outside of autograd.
        outside: Where the gradient does not pass (bool), or ``None`` if it passes everywhere.
        scales: All scales of the group in a row: float32.
        first: Where those of this weight begin.
        made_from: What the values follow from; see ``WeightGroup._origin``.
        group: Where it was made.
    """

    value: torch.Tensor
    outside: torch.Tensor | None
    scales: torch.Tensor
    first: int
    made_from: tuple[Any, ...]
    group: WeightGroup


class WeightGroup:
    """The weights of one model.

    The first module of a forward that reads a weight has all of them quantized; each is used once. What a forward did
    not use is dropped in the backward pass, after which an optimizer may change weights unseen. Forwards without
    gradients, and those that activation checkpointing repeats, quantize each weight by itself.
    """

    def __init__(self) -> None:
        self.members: list[WeightQuantizer] = []
        self._ready: dict[WeightQuantizer, Ready] = {}
        self._accumulators: dict[WeightQuantizer, tuple[Any, Any]] = {}

    def __reduce__(self) -> tuple[type[WeightGroup], tuple[()], dict[str, Any]]:
        return WeightGroup, (), {"members": self.members, "_ready": {}, "_accumulators": {}}

    def take(self, quantizer: WeightQuantizer) -> torch.Tensor | None:
        """A weight on its grid, with gradients; ``None`` where no operator serves it."""
        if not self._serves(quantizer):
            return None
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return quantizer.place(self._quantize([quantizer])[quantizer])
        self._keep_accumulator(quantizer)
        ready = self._ready.pop(quantizer, None)
        if ready is not None and ready.made_from != _origin(quantizer):
            self._ready.clear()
            ready = None
        if ready is None and self._ready:
            # A module that runs again in the same forward: the others are not wanted again.
            ready = self._quantize([quantizer])[quantizer]
        elif ready is None:
            self._ready = self._quantize([one for one in self.members if self._alike(one, quantizer)])
            ready = self._ready.pop(quantizer)
        return quantizer.place(ready)

    def drop(self) -> None:
        """Forget what was made and not used."""
        self._ready.clear()

    def _keep_accumulator(self, quantizer: WeightQuantizer) -> None:
        """Keep the node that accumulates a weight's gradient, which autograd else makes again in each forward.

        ``DistributedDataParallel`` does so, too. A node belongs to a device and a stream.
        """
        weight, device = quantizer.weight, quantizer.weight.device
        where = device, torch.cuda.current_stream(device) if device.type == "cuda" else None
        if weight.requires_grad and self._accumulators.get(quantizer, (None,))[0] != where:
            self._accumulators[quantizer] = where, torch.autograd.graph.get_gradient_edge(weight).node

    def _serves(self, quantizer: WeightQuantizer) -> bool:
        weight = quantizer.weight
        rows_apart = quantizer.spec.group_size is not None and not weight.is_contiguous()
        return served(weight) and quantizer.grouped and not rows_apart and _fills_memory(weight)

    def _alike(self, one: WeightQuantizer, other: WeightQuantizer) -> bool:
        same = one.weight.device == other.weight.device and one.weight.dtype == other.weight.dtype
        return one is other or (same and type(one) is type(other) and self._serves(one))

    @torch.no_grad()
    def _quantize(self, quantizers: list[WeightQuantizer]) -> dict[WeightQuantizer, Ready]:
        type(quantizers[0]).begin(quantizers)
        factors, given = type(quantizers[0]).factors(quantizers)
        weights = [quantizer.weight for quantizer in quantizers]
        values, outside, scales = quantize_weights(weights, *arguments(quantizers), factors, given)
        found, first = {}, 0
        for i, quantizer in enumerate(quantizers):
            origin = _origin(quantizer)
            mask = outside[i] if outside else None
            found[quantizer] = Ready(values[i], mask, scales, first, origin, self)
            first += quantizer.scale_count
        return found


def arguments(quantizers: Sequence[WeightQuantizer]) -> tuple[list[int], list[int], list[int]]:
    """Axes, groups and largest integers, as the operators take them."""
    axes = [-1 if one.axis is None else one.axis % one.weight.ndim for one in quantizers]
    return axes, [one.spec.group_size or 0 for one in quantizers], [one.spec.qmax for one in quantizers]


def searched_together(quantizers: Sequence[WeightQuantizer]) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Scales of least squared error and of the min-max range, of weights that an operator serves.

    ``None`` where it does not, or where one of its programs would have to go through very many values.
    """
    if not served(quantizers[0].weight):
        return None
    weights = [quantizer.weight for quantizer in quantizers]
    if any(w.numel() // one.scale_count > _LONGEST_ROW for w, one in zip(weights, quantizers, strict=True)):
        return None
    flat = search_weights(weights, *arguments(quantizers), observers.FRACTIONS)
    counts = [quantizer.scale_count for quantizer in quantizers]
    pairs = zip(*(each.split(counts) for each in flat), strict=True)
    shaped = zip(pairs, quantizers, strict=True)
    return [(scale.reshape(one.scale_shape), full.reshape(one.scale_shape)) for (scale, full), one in shaped]


def connected(weight: torch.Tensor, ready: Ready) -> torch.Tensor:
    """The values with the weight's gradient, which passes where they lie inside of the range."""
    return _Placed.apply(weight, ready)


def connected_learned(
    weight: torch.Tensor, log_scale: torch.Tensor, ready: Ready, axis: int, qmax: int, factor: float
) -> torch.Tensor:
    """The values with gradients for the weight and for the logarithms of its scales; see ``lsq``."""
    return _PlacedLearned.apply(weight, log_scale, ready, axis, qmax, factor)


class _Placed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ready: Ready) -> torch.Tensor:
        ctx.save_for_backward(*(() if ready.outside is None else (ready.outside,)))
        ctx.group = ready.group
        ctx.set_materialize_grads(False)
        return ready.value

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        ctx.group.drop()
        for outside in ctx.saved_tensors:
            grad = None if grad is None else grad.masked_fill(outside, 0.0)
        return grad, None


class _PlacedLearned(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, log_scale: torch.Tensor, ready: Ready, axis: int, qmax: int, factor: float
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.log_scale, ctx.scales, ctx.first = log_scale, ready.scales, ready.first
        ctx.settings = axis, qmax, factor
        ctx.group = ready.group
        ctx.set_materialize_grads(False)
        return ready.value

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        ctx.group.drop()
        if grad is None:
            return (None,) * 6
        (weight,) = ctx.saved_tensors
        axis, qmax, factor = ctx.settings
        adds = ctx.log_scale.requires_grad and accumulates(ctx, 1)
        old = ctx.log_scale.grad if adds else None
        if grad.stride() != weight.stride():
            grad = torch.empty_like(weight).copy_(grad)
        out, new = learned_weight_pass(grad, weight, axis, qmax, ctx.scales, ctx.first, old, factor)
        if adds and new:
            ctx.log_scale.grad = new[0]
        return out if ctx.needs_input_grad[0] else None, *[None] * 5


def _origin(quantizer: WeightQuantizer) -> tuple[Any, ...]:
    """What the values follow from; a write through ``.data`` does not show."""
    weight = quantizer.weight
    return id(weight), weight._version, weight.device, weight.dtype, quantizer.spec


def _fills_memory(weight: torch.Tensor) -> bool:
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
