"""Exported programs in the quantized form of PyTorch's own PT2E flow, which its backends recognise.

Our two operators become those of ``quantized_decomposed``: Inductor's x86 backend and ExecuTorch's XNNPACK backend
look for their patterns. Runtimes of fully integer graphs share the passes that stand last.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import InputKind

from lightning_compress.errors import CompressionError

# What moves values without changing them: quantized before it, they are quantized behind it.
_MOVES = frozenset({"flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "slice", "select"})


@contextmanager
def quiet() -> Iterator[None]:
    """What converters of this form and their imports report: progress, hardware and libraries that are not there."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def register() -> Any:
    """The operators, which PyTorch registers only when this module of it is imported."""
    import torch.ao.quantization.fx._decomposed

    return torch.ops.quantized_decomposed


def to_pt2e(program: torch.export.ExportedProgram, *, signed: bool = False) -> None:
    """Replace our operators in a program, in place.

    Args:
        program: From :func:`lightning_compress.export.trace.trace`.
        signed: Shift activations from uint8 to int8, which changes no value: XNNPACK has kernels for int8 alone.
    """
    ours, theirs = torch.ops.lightning_compress, register()
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        with graph.inserting_before(node):
            if node.target is ours.quantize_dequantize.default:
                x, scale, zero_point, qmin, qmax = arguments(node)
                shift = 128 if signed and qmin >= 0 else 0
                dtype = torch.uint8 if qmin >= 0 and not signed else torch.int8
                grid = (scale, zero_point - shift, qmin - shift, qmax - shift, dtype)
                integers = _call(graph, theirs.quantize_per_tensor.default, x, *grid)
                _replace(program, node, _call(graph, theirs.dequantize_per_tensor.default, integers, *grid))
            elif node.target is ours.dequantize.default:
                _replace(program, node, _dequantized(program, node, theirs))
    _dequantize_for_each_reader(program)
    if not signed:
        _dequantize_before_layers(program)
    graph.eliminate_dead_code()
    _drop_unused(program)
    program.graph_module.recompile()


def _dequantize_for_each_reader(program: torch.export.ExportedProgram) -> None:
    """Give each layer that reads a weight a dequantization of its own, as the backends' patterns have it."""
    graph = program.graph_module.graph
    for node in [node for node in graph.nodes if node.target is register().dequantize_per_channel.default]:
        for user in list(node.users)[1:]:
            with graph.inserting_before(user):
                own = graph.node_copy(node)
            user.replace_input_with(node, own)


def _dequantize_before_layers(program: torch.export.ExportedProgram) -> None:
    """Let views pass integers on: Inductor finds an 8-bit layer only right behind a dequantization."""
    graph, aten = program.graph_module.graph, torch.ops.aten
    views = (aten.view.default, aten.reshape.default, aten.flatten.using_ints)
    for node in list(graph.nodes):
        if node.target not in views or node.args[0].target is not register().dequantize_per_tensor.default:
            continue
        with graph.inserting_before(node):
            integers, *grid = node.args[0].args
            moved = _call(graph, node.target, integers, *node.args[1:])
            _replace(program, node, _call(graph, node.args[0].target, moved, *grid))


def _dequantized(program: torch.export.ExportedProgram, node: fx.Node, theirs: Any) -> fx.Node:
    graph = program.graph_module.graph
    integers, scale, zero_point, axis, block = arguments(node)
    dtype = integers.meta["val"].dtype
    low, high = -128, 127
    if block:
        wide = _call(graph, torch.ops.aten.repeat_interleave.self_int, scale, block, axis)
        cut = _call(graph, torch.ops.aten.slice.Tensor, wide, axis, 0, integers.meta["val"].shape[axis])
        return _call(graph, torch.ops.aten.mul.Tensor, integers, cut)
    if dtype == torch.int8 and scale.meta["val"].ndim:
        return _call(graph, theirs.dequantize_per_channel.default, integers, scale, zero_point, axis, low, high, dtype)
    if dtype == torch.int8:
        step = float(program.state_dict[_buffer(program, scale)])
        return _call(graph, theirs.dequantize_per_tensor.default, integers, step, 0, low, high, dtype)
    return _float_bias(program, node, integers, scale)


def _float_bias(program: torch.export.ExportedProgram, node: fx.Node, integers: fx.Node, scale: fx.Node) -> fx.Node:
    """A bias as PT2E has it, in float; backends find its integers again from the scales of input and weight."""
    graph = program.graph_module.graph
    if len(integers.users) > 1:
        return _call(graph, torch.ops.aten.mul.Tensor, integers, scale)
    name = _buffer(program, integers)
    program.state_dict[name] = program.state_dict[name] * program.state_dict[_buffer(program, scale)]
    integers.meta = dict(node.meta)
    return integers


def _drop_unused(program: torch.export.ExportedProgram) -> None:
    """Remove scales and zero points that became constants of the graph."""
    signature, graph = program.graph_signature, program.graph_module.graph
    unused = {node.name: node for node in graph.nodes if node.op == "placeholder" and not node.users}
    for spec in list(signature.input_specs):
        if spec.kind is InputKind.BUFFER and spec.arg.name in unused and spec.target is not None:
            signature.input_specs.remove(spec)
            graph.erase_node(unused[spec.arg.name])
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)


def _buffer(program: torch.export.ExportedProgram, node: fx.Node) -> str:
    return program.graph_signature.inputs_to_buffers[node.name]


def _call(graph: fx.Graph, target: Callable[..., Any], *args: Any) -> fx.Node:
    """Add a node with what the program's checks want to know of its result."""
    node = graph.call_function(target, args)
    values = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args]
    mode = next(value.fake_mode for value in values if isinstance(value, torch._subclasses.FakeTensor))
    with mode:
        node.meta["val"] = target(*values)
    return node


def _replace(program: torch.export.ExportedProgram, node: fx.Node, by: fx.Node) -> None:
    node.replace_all_uses_with(by)
    program.graph_signature.replace_all_uses(node.name, by.name)
    node.graph.erase_node(node)


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """A node's arguments, of types that only its operator tells."""
    return node.args


def refuse_narrow(program: torch.export.ExportedProgram, field: str, runtime: str) -> None:
    """Refuse activations whose integers do not fill 8 bits, at which kernels saturate.

    Raises:
        CompressionError: Activations have fewer than 8 bits.
    """
    for node in calls(program, register().quantize_per_tensor.default):
        _, _, _, low, high, _ = arguments(node)
        if high - low < 254:
            raise CompressionError.field(
                field,
                expected=f"activations of 8 bits, for which {runtime} has kernels",
                got=f"integers from {low} to {high}",
                fix="Train with activation_bits=8.",
            )


def quantize_behind_moves(program: torch.export.ExportedProgram) -> None:
    """Quantize again what was quantized before a reshape or the like: the values stay, and kernels meet integers."""
    theirs, graph = register(), program.graph_module.graph
    waiting = calls(program, theirs.dequantize_per_tensor.default)
    while waiting:
        node = waiting.pop()
        for moved in [user for user in node.users if operator(user) in _MOVES]:
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


def one_dequantize_each(program: torch.export.ExportedProgram) -> None:
    """Give each reader of a quantized activation a dequantization of its own, as partitioners expect."""
    graph = program.graph_module.graph
    for node in calls(program, register().dequantize_per_tensor.default):
        for user in list(node.users)[1:]:
            with graph.inserting_after(node):
                own = graph.node_copy(node)
            user.replace_input_with(node, own)


def calls(program: torch.export.ExportedProgram, target: object) -> list[fx.Node]:
    """The calls of one operator, in order."""
    return [node for node in program.graph_module.graph.nodes if node.op == "call_function" and node.target is target]


def operator(node: fx.Node) -> str:
    """Name of an ATen operator without its overload; ``""`` for what is no call."""
    return str(getattr(node.target, "overloadpacket", "")).removeprefix("aten.") if node.op == "call_function" else ""
