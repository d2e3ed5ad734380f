"""Which batch norms fold into the layer before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from lightning_compress.foundation.recorded_forward import Op, Tape, Value
from lightning_compress.quantization.data_flow import activations, joins, only_user

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Batch norms, of which the statistics can be folded."""


def folds(tape: Tape, model: nn.Module, layers: Mapping[Op, str], weights: Collection[str]) -> dict[Op, str]:
    """Layers whose result a batch norm alone reads.

    Args:
        tape: A recorded forward.
        model: The model.
        layers: Operations that read a weight → its full name.
        weights: Full names of all weights of layers.

    Returns:
        The layer's operation → name of the norm's module.
    """
    modules = dict(model.named_modules())
    norms = Counter(op.modules[-1] for op in tape.ops if op.name == "batch_norm" and op.modules)
    data = activations(tape)
    found = {}
    for op, weight in layers.items():
        norm = _norm(op, weight, tape, modules, weights, data)
        if norm is not None and norms[norm] == 1:
            found[op] = norm
    return found


def norm_behind(op: Op) -> Op | None:
    """The batch norm that alone reads a layer's result."""
    user = only_user(op.outputs[0])
    return user if user is not None and user.name == "batch_norm" and user.modules else None


def _norm(
    op: Op,
    weight: str,
    tape: Tape,
    modules: Mapping[str, nn.Module],
    weights: Collection[str],
    data: Collection[Value],
) -> str | None:
    layer = weight.rpartition(".")[0]
    # A parent that has the weight of a layer under a name of its own is no layer.
    if weight not in weights or layer not in weights or layer not in op.modules[-1:]:
        return None
    readers = [(user, value) for value in op.inputs if value.parameter == weight for user in value.consumers]
    if any(reader is not op and joins(reader, value, data) for reader, value in readers):
        return None  # Others read the weight, without this norm.
    norm_op = norm_behind(op)
    if norm_op is None:
        return None
    # Output channels of a transposed convolution in groups are no dimension of its weight.
    if isinstance(modules[layer], _ConvTransposeNd) and modules[layer].groups != 1:
        return None
    if any(boundary.module in norm_op.modules for boundary in op.outputs[0].outputs):
        return None  # A module around both hands out what the layer makes, too.
    norm = norm_op.modules[-1]
    module = modules[norm]
    once = tape.calls.get(layer, 0) == 1 and tape.calls.get(norm, 0) == 1
    return norm if once and isinstance(module, NORMS) and module.track_running_stats else None
