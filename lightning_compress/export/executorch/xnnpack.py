"""What ExecuTorch's XNNPACK partitioner looks for in a quantized program, beyond what PT2E's other backends want.

Every pass keeps the values that the program computes.
"""

from __future__ import annotations

import torch
from torch import fx

from lightning_compress.errors import CompressionError
from lightning_compress.export.pt2e import arguments, register

_WEIGHTED = frozenset({"linear", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"})
# What moves values without changing them: quantized before it, they are quantized behind it.
_MOVES = frozenset({"flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "slice", "select"})
_FUSED = frozenset({"relu", "relu_", "hardtanh", "hardtanh_", "clamp"})


def for_xnnpack(program: torch.export.ExportedProgram) -> None:
    """Bring a program in PT2E form, with int8 activations and fixed shapes, into XNNPACK's form, in place.

    Raises:
        CompressionError: Activations have fewer than 8 bits.
    """
    _refuse_narrow(program)
    _reshape_for_squeeze(program)
    _quantize_behind_moves(program)
    _float_where_no_integer_kernel(program)
    _one_dequantize_each(program)
    program.graph_module.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _refuse_narrow(program: torch.export.ExportedProgram) -> None:
    for node in _calls(program, register().quantize_per_tensor.default):
        _, _, _, low, high, _ = arguments(node)
        if high - low < 254:
            raise CompressionError.field(
                "to_executorch",
                expected="activations of 8 bits, for which XNNPACK has kernels",
                got=f"integers from {low} to {high}",
                fix="Train with activation_bits=8.",
            )


def _reshape_for_squeeze(program: torch.export.ExportedProgram) -> None:
    """XNNPACK's own squeeze refuses some dimensions when the file is loaded."""
    for node in list(program.graph_module.graph.nodes):
        if _name(node) in ("squeeze", "unsqueeze"):
            node.target = torch.ops.aten.reshape.default
            node.args = (node.args[0], list(node.meta["val"].shape))


def _quantize_behind_moves(program: torch.export.ExportedProgram) -> None:
    """Quantize again what was quantized before a reshape or the like: the values stay, and kernels meet integers."""
    theirs, graph = register(), program.graph_module.graph
    waiting = _calls(program, theirs.dequantize_per_tensor.default)
    while waiting:
        node = waiting.pop()
        for moved in [user for user in node.users if _name(user) in _MOVES]:
            users = list(moved.users)
            with graph.inserting_after(moved):
                integers = graph.call_function(theirs.quantize_per_tensor.default, (moved, *node.args[1:]))
            with graph.inserting_after(integers):
                back = graph.call_function(theirs.dequantize_per_tensor.default, (integers, *node.args[1:]))
            integers.meta["val"], back.meta["val"] = moved.meta["val"].to(node.args[5]), moved.meta["val"]
            for user in users:
                user.replace_input_with(moved, back)
            program.graph_signature.replace_all_uses(moved.name, back.name)
            waiting.append(back)


def _float_where_no_integer_kernel(program: torch.export.ExportedProgram) -> None:
    """Store weights in float where input or output is not quantized.

    XNNPACK has no kernel for integer weights among floats, and ExecuTorch's own for that is slower than XNNPACK's for
    floats by far.
    """
    theirs, signature = register(), program.graph_signature
    for node in _calls(program, theirs.dequantize_per_channel.default):
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
    if _name(layer) not in _WEIGHTED or not isinstance(source, fx.Node):
        return False
    behind = list(layer.users)
    if len(behind) == 1 and _name(behind[0]) in _FUSED:
        behind = list(behind[0].users)
    return source.target is theirs.dequantize_per_tensor.default and [node.target for node in behind] == [
        theirs.quantize_per_tensor.default
    ]


def _one_dequantize_each(program: torch.export.ExportedProgram) -> None:
    """Give each reader of a quantized activation a dequantization of its own, as partitioners expect."""
    graph = program.graph_module.graph
    for node in _calls(program, register().dequantize_per_tensor.default):
        for user in list(node.users)[1:]:
            with graph.inserting_after(node):
                own = graph.node_copy(node)
            user.replace_input_with(node, own)


def _calls(program: torch.export.ExportedProgram, target: object) -> list[fx.Node]:
    return [node for node in program.graph_module.graph.nodes if node.op == "call_function" and node.target is target]


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "overloadpacket", "")).removeprefix("aten.") if node.op == "call_function" else ""
