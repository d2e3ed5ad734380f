"""A quantized program as litert-torch lowers it: weights rounded in the graph, on grids that LiteRT's kernels take."""

from __future__ import annotations

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
_KEEP_GRID = frozenset({"avg_pool1d", "avg_pool2d"})
"""Operators whose integer kernels write the grid that they read."""
_JOINS = frozenset({"cat", "concat"})
"""Operators whose integer kernels read the grid that they write."""


def for_litert(program: torch.export.ExportedProgram) -> None:
    """Bring a program in PT2E form, with int8 activations and fixed shapes, into litert-torch's form, in place.

    Weights keep their values. Where a kernel fixes the grid of its result, a second quantization follows, so that a
    value may end one step away.

    Raises:
        CompressionError: Activations have fewer than 8 bits.
    """
    refuse_narrow(program, "to_litert", "LiteRT")
    quantize_behind_moves(program)
    _round_weights_in_graph(program)
    _grids_of_kernels(program)
    one_dequantize_each(program)
    program.graph_module.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _round_weights_in_graph(program: torch.export.ExportedProgram) -> None:
    """Float weight, quantize, dequantize, in place of stored integers: the quantization finds the integers again."""
    theirs, signature, state = register(), program.graph_signature, program.state_dict
    floats: set[str] = set()
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
    """Quantize on the grid that a kernel wants, beside the trained one."""
    quantize = register().quantize_per_tensor.default
    for node in list(program.graph_module.graph.nodes):
        quantized = [user for user in node.users if user.target is quantize]
        name = operator(node)
        if len(quantized) != len(node.users) or not quantized:
            continue
        own = _grid(quantized[0])
        if name in _OUTPUT_GRIDS and own != _OUTPUT_GRIDS[name]:
            _quantize(program, node, _OUTPUT_GRIDS[name], quantized)
        elif name in _KEEP_GRID and (read := _grid_read(node.args[0])) not in (None, own):
            _quantize(program, node, read, quantized)
        elif name in _JOINS:
            for value in dict.fromkeys(node.args[0]):
                if _grid_read(value) not in (None, own):
                    _quantize(program, value, own, [node])


def _grid(quantize: fx.Node) -> Grid:
    return arguments(quantize)[1:3]


def _grid_read(value: fx.Node) -> Grid | None:
    """The grid of a dequantized value; ``None`` for one that is float."""
    return _grid(value) if value.target is register().dequantize_per_tensor.default else None


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
