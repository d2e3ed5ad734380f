"""A quantized program as litert-torch lowers it: weights rounded in the graph, on grids that LiteRT's kernels take."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from lightning_compress.export.pt2e import (
    arguments,
    one_dequantize_each,
    operator,
    quantize_behind_moves,
    refuse_narrow,
    register,
)

Grid = tuple[float, int]
"""Scale and zero point of int8."""

_OUTPUT_GRIDS: dict[str, Grid] = {
    "softmax": (1 / 256, -128),
    "_softmax": (1 / 256, -128),
    "sigmoid": (1 / 256, -128),
    "tanh": (1 / 128, 0),
}
"""Operators whose integer kernels write one grid alone."""
_TWO_DIMENSIONS = {
    "conv1d": torch.ops.aten.conv2d.default,
    "avg_pool1d": torch.ops.aten.avg_pool2d.default,
    "max_pool1d": torch.ops.aten.max_pool2d.default,
    "adaptive_avg_pool1d": torch.ops.aten.adaptive_avg_pool2d.default,
}
"""Operators on sequences → the same on images, which LiteRT has kernels for."""
_SIZES = {"conv1d": (3, 4, 5), "avg_pool1d": (1, 2, 3), "max_pool1d": (1, 2, 3, 4), "adaptive_avg_pool1d": (1,)}
"""Their arguments that are a number for each dimension."""
_FUSED = frozenset({"relu", "relu_", "hardtanh", "hardtanh_"})


def for_litert(program: torch.export.ExportedProgram) -> None:
    """Bring a program in PT2E form, with int8 activations and fixed shapes, into litert-torch's form, in place.

    Weights keep their values. Where a kernel fixes the grid of its result, a second quantization follows, so that a
    value may end one step away.

    Raises:
        CompressionError: Activations have fewer than 8 bits.
    """
    refuse_narrow(program, "to_litert", "LiteRT")
    _in_two_dimensions(program)
    quantize_behind_moves(program)
    _round_weights_in_graph(program)
    _grids_of_kernels(program)
    one_dequantize_each(program)
    program.graph_module.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _in_two_dimensions(program: torch.export.ExportedProgram) -> None:
    """Operators on sequences as operators on images of one row, with their quantizations next to them."""
    graph, theirs = program.graph_module.graph, register()
    for node in list(graph.nodes):
        name = operator(node)
        if name not in _TWO_DIMENSIONS or node.target.overloadpacket is not getattr(torch.ops.aten, name):
            continue
        rest = list(node.args)
        for place in _SIZES[name]:
            if place < len(rest):
                neutral = 0 if (name, place) in (("conv1d", 4), ("avg_pool1d", 3), ("max_pool1d", 3)) else 1
                size = rest[place] if isinstance(rest[place], list | tuple) else [rest[place]]
                rest[place] = [neutral, *size]
        with graph.inserting_before(node):
            rest[0] = _call(graph, torch.ops.aten.unsqueeze.default, rest[0], 2)
        if name == "conv1d":
            _rows(program, rest[1])
        node.target, node.args, last = _TWO_DIMENSIONS[name], tuple(rest), node
        node.meta["val"] = node.meta["val"].unsqueeze(2)
        following = (theirs.quantize_per_tensor.default, theirs.dequantize_per_tensor.default)
        while len(last.users) == 1 and (operator(user := next(iter(last.users))) in _FUSED or user.target in following):
            last = user
            last.meta["val"] = last.meta["val"].unsqueeze(2)
        users = list(last.users)
        with graph.inserting_after(last):
            back = graph.call_function(torch.ops.aten.squeeze.dim, (last, 2))
        back.meta["val"] = last.meta["val"].squeeze(2)
        for user in users:
            user.replace_input_with(last, back)
        program.graph_signature.replace_all_uses(last.name, back.name)


def _rows(program: torch.export.ExportedProgram, weight: fx.Node) -> None:
    """Give a weight, and what it passes, a dimension for rows."""
    while weight.meta["val"].ndim == 3:
        weight.meta["val"] = weight.meta["val"].unsqueeze(2)
        if weight.op == "placeholder":
            name = program.graph_signature.inputs_to_buffers.get(weight.name)
            name = name or program.graph_signature.inputs_to_parameters[weight.name]
            program.state_dict[name] = program.state_dict[name].unsqueeze(2)
            return
        weight = weight.args[0]  # type: ignore[assignment]


def _call(graph: fx.Graph, target: Any, value: fx.Node, *rest: Any) -> fx.Node:
    node = graph.call_function(target, (value, *rest))
    node.meta["val"] = target(value.meta["val"], *rest)
    return node


def _round_weights_in_graph(program: torch.export.ExportedProgram) -> None:
    """Float weight, quantize, dequantize, in place of stored integers: the quantization finds the integers again."""
    theirs, signature, state = register(), program.graph_signature, program.state_dict
    floats: set[str] = set()
    grid: tuple[Any, ...]
    for node in list(program.graph_module.graph.nodes):
        each = node.target is theirs.dequantize_per_channel.default
        if not each and node.target is not theirs.dequantize_per_tensor.default:
            continue
        stored = node.args[0]
        if stored.op != "placeholder":
            continue
        name = signature.inputs_to_buffers[stored.name]
        if each:
            _, scale, zero_point, axis, _, _, dtype = arguments(node)
            step = state[signature.inputs_to_buffers[scale.name]]
            shape = [1] * state[name].ndim
            shape[axis] = -1
            step, grid = step.reshape(shape), (scale, zero_point, axis, -127, 127, dtype)
            quantize = theirs.quantize_per_channel.default
        else:
            _, step, zero_point, _, _, dtype = arguments(node)
            grid, quantize = (step, zero_point, -127, 127, dtype), theirs.quantize_per_tensor.default
        if name not in floats:
            floats.add(name)
            state[name] = state[name] * step
            stored.meta = {**node.meta}
        with program.graph_module.graph.inserting_before(node):
            integers = program.graph_module.graph.call_function(quantize, (stored, *grid))
        integers.meta["val"] = node.meta["val"].to(dtype)
        node.args = (integers, *grid)


def _grids_of_kernels(program: torch.export.ExportedProgram) -> None:
    """Quantize on the grid that a kernel writes, before the trained one."""
    quantize = register().quantize_per_tensor.default
    for node in list(program.graph_module.graph.nodes):
        quantized = [user for user in node.users if user.target is quantize]
        grid = _OUTPUT_GRIDS.get(operator(node))
        if (
            grid is not None
            and quantized
            and len(quantized) == len(node.users)
            and arguments(quantized[0])[1:3] != grid
        ):
            _quantize(program, node, grid, quantized)


def _quantize(program: torch.export.ExportedProgram, value: fx.Node, grid: Grid, users: list[fx.Node]) -> None:
    """Put a quantization and a dequantization between a value and some of its users."""
    theirs, graph = register(), program.graph_module.graph
    whole = (*grid, -128, 127, torch.int8)
    with graph.inserting_after(value):
        integers = graph.call_function(theirs.quantize_per_tensor.default, (value, *whole))
    with graph.inserting_after(integers):
        back = graph.call_function(theirs.dequantize_per_tensor.default, (integers, *whole))
    integers.meta["val"], back.meta["val"] = value.meta["val"].to(torch.int8), value.meta["val"]
    for user in users:
        user.replace_input_with(value, back)
