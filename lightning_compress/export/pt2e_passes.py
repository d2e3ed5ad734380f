"""Passes over programs in PT2E form that runtimes of fully integer graphs share. Each keeps the values computed."""

from __future__ import annotations

import torch
from torch import fx

from lightning_compress.errors import CompressionError
from lightning_compress.export.pt2e import arguments, register

# What moves values without changing them: quantized before it, they are quantized behind it.
_MOVES = frozenset({"flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "slice", "select"})


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
