"""What ExecuTorch's XNNPACK partitioner looks for in a quantized program, beyond what PT2E's other backends want.

Every pass keeps the values that the program computes.
"""

from __future__ import annotations

import torch
from torch import fx

from lightning_compress.export.pt2e import (
    arguments,
    calls,
    one_dequantize_each,
    operator,
    quantize_behind_moves,
    refuse_narrow,
    register,
)

_WEIGHTED = frozenset({"linear", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"})
_FUSED = frozenset({"relu", "relu_", "hardtanh", "hardtanh_", "clamp"})


def for_xnnpack(program: torch.export.ExportedProgram) -> None:
    """Bring a program in PT2E form, with int8 activations and fixed shapes, into XNNPACK's form, in place.

    Raises:
        CompressionError: Activations have fewer than 8 bits.
    """
    refuse_narrow(program, "to_executorch", "XNNPACK")
    _reshape_for_squeeze(program)
    quantize_behind_moves(program)
    _float_where_no_integer_kernel(program)
    one_dequantize_each(program)
    program.graph_module.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _reshape_for_squeeze(program: torch.export.ExportedProgram) -> None:
    """XNNPACK's own squeeze refuses some dimensions when the file is loaded."""
    for node in list(program.graph_module.graph.nodes):
        if operator(node) in ("squeeze", "unsqueeze"):
            node.target = torch.ops.aten.reshape.default
            node.args = (node.args[0], list(node.meta["val"].shape))


def _float_where_no_integer_kernel(program: torch.export.ExportedProgram) -> None:
    """Store weights in float where input or output is not quantized.

    XNNPACK has no kernel for integer weights among floats, and ExecuTorch's own for that is slower than XNNPACK's for
    floats by far.
    """
    theirs, signature = register(), program.graph_signature
    for node in calls(program, theirs.dequantize_per_channel.default):
        if all(_in_integers(user) for user in node.users):
            continue
        integers = node.args[0]
        assert isinstance(integers, fx.Node)
        if len(integers.users) > 1:
            continue
        state = program.state_dict
        name, scale = (signature.inputs_to_buffers[arg.name] for arg in node.args[:2] if isinstance(arg, fx.Node))
        shape = [1] * state[name].ndim
        shape[arguments(node)[3]] = -1
        state[name] = state[name] * state[scale].reshape(shape)
        integers.meta = dict(node.meta)
        node.replace_all_uses_with(integers)


def _in_integers(layer: fx.Node) -> bool:
    """Whether a layer reads integers and writes integers, behind an activation that it may be fused with."""
    source = layer.args[0]
    theirs = register()
    if operator(layer) not in _WEIGHTED or not isinstance(source, fx.Node):
        return False
    behind = list(layer.users)
    if len(behind) == 1 and operator(behind[0]) in _FUSED:
        behind = list(behind[0].users)
    return source.target is theirs.dequantize_per_tensor.default and [node.target for node in behind] == [
        theirs.quantize_per_tensor.default
    ]
