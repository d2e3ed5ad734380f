"""Cross-layer equalization: weights of consecutive layers rescaled so that their channels have equal ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from lightning_compress.foundation.recorded_forward import Op, Tape
from lightning_compress.quantization.data_flow import only_user
from lightning_compress.quantization.operations import CONVOLUTIONS, LINEAR

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# f(s x) = s f(x) for s > 0, channel by channel, along whichever dimension these are.
_POINTWISE = frozenset({"relu", "leaky_relu", "dropout"})
# Likewise, for channels in dimension 1.
_BY_CHANNEL = frozenset(
    {
        "dropout1d", "dropout2d", "dropout3d", "max_pool1d", "max_pool2d", "max_pool3d",
        "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
        "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    }
)  # fmt: skip
_CONVERGED, _ROUNDS = 1e-3, 100


def equalize(model: nn.Module, tape: Tape, folds: Mapping[str, str]) -> list[tuple[str, str]]:
    """Rescale weights so that each channel between two layers has the same range in both, in place.

    Output channel i of the first layer is divided by s_i and input channel i of the second multiplied by it, with
    s_i = sqrt(r1_i / r2_i) and r the largest absolute weight of the channel (Nagel et al. 2019, equations 8 to 11).
    What the network computes stays, since only functions with f(s x) = s f(x) lie between the two, as ReLU and not
    ReLU6. A batch norm behind the first layer takes the division. Pairs are repeated until nothing changes.

    Args:
        model: The model.
        tape: A recorded forward of it.
        folds: Name of a layer → name of the batch norm that folds into it.

    Returns:
        Names of the pairs.
    """
    modules = dict(model.named_modules())
    pairs = [
        (first, second)
        for first, second in _pairs(tape, modules, folds)
        if first not in folds or modules[folds[first]].affine
    ]
    for _ in range(_ROUNDS):
        changes = [
            _equalize_pair(modules[first], modules[folds[first]] if first in folds else None, modules[second])
            for first, second in pairs
        ]
        if not max(changes, default=0.0) > _CONVERGED:
            break
    return pairs


def _pairs(tape: Tape, modules: Mapping[str, nn.Module], folds: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names of layers of which the second alone reads what the first makes, behind homogeneous functions."""
    for op in tape.ops:
        first = _layer(op, tape, modules)
        if first is None or (end := _next_layer(op, first in folds)) is None:
            continue
        second = _layer(end, tape, modules)
        if second is not None and _outputs(modules[first]) == _inputs(modules[second]):
            yield first, second


def _layer(op: Op, tape: Tape, modules: Mapping[str, nn.Module]) -> str | None:
    """The layer that an operation is, where it runs once and nothing else reads its parameters."""
    if op.name not in CONVOLUTIONS | LINEAR or not op.modules:
        return None
    name = op.modules[-1]
    if type(modules[name]) not in _LAYERS or tape.calls.get(name) != 1:
        return None
    own = [value for value in op.inputs if value.parameter is not None]
    return name if all(len(value.consumers) == 1 for value in own) else None


def _next_layer(op: Op, folded: bool) -> Op | None:
    """The layer that alone reads a layer's result, behind the batch norm that folds into it and the like."""
    value = op.outputs[0]
    convolved = op.name in CONVOLUTIONS
    while (user := only_user(value)) is not None:
        if any(boundary.module in user.modules for boundary in value.outputs):
            return None  # A module around both hands the value out, too.
        if user.name in (CONVOLUTIONS if convolved else LINEAR):
            return user
        if user.name == "flatten" and convolved and user.outputs[0].ndim == 2:
            convolved = False
        elif not (
            user.name in _POINTWISE
            or (user.name in _BY_CHANNEL and convolved)
            or (user.name == "batch_norm" and value is op.outputs[0] and folded)
        ):
            return None
        value = user.outputs[0]
    return None


def _outputs(layer: Any) -> int:
    return int(layer.weight.shape[0])


def _inputs(layer: Any) -> int:
    return int(layer.weight.shape[1]) * getattr(layer, "groups", 1)


@torch.no_grad()
def _equalize_pair(first: Any, norm: Any, second: Any) -> float:
    """Equalize one pair; gives the largest change, as the logarithm of a factor."""
    range1 = first.weight.flatten(1).abs().amax(1)
    if norm is not None:
        range1 = range1 * (norm.weight / torch.sqrt(norm.running_var + norm.eps)).abs()
    outputs, inputs = second.weight.shape[:2]
    groups = getattr(second, "groups", 1)
    range2 = second.weight.reshape(groups, outputs // groups, inputs, -1).abs().amax((1, 3)).flatten()
    # A channel without weights on one side has no range to give.
    factor = torch.where((range1 > 0) & (range2 > 0), torch.sqrt(range1 / range2), torch.ones_like(range1))
    for parameter in (first.weight, first.bias) if norm is None else (norm.weight, norm.bias):
        if parameter is not None:
            parameter.div_(factor.reshape(-1, *[1] * (parameter.ndim - 1)))
    by_output = factor.reshape(groups, inputs).repeat_interleave(outputs // groups, 0)
    second.weight.mul_(by_output.reshape(outputs, inputs, *[1] * (second.weight.ndim - 2)))
    return float(factor.log().abs().max())
