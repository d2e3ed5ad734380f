"""Quantizers repeated behind operations that keep values, where the next integer kernel looks for them.

Padding with zero, slicing, splitting, gathering, nearest resizing and joining tensors of one scale give values of the
grid that they were given, so that quantizing once more changes nothing. ONNX Runtime carries a quantizer over some of
them by itself, and over the others not, whereupon the operation behind runs in float.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_compress.export.onnx.ir import node_of, take_over

# ONNX Runtime carries unsigned quantizers over these.
_CARRIED = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_KEPT = _CARRIED | {
    "Concat", "DepthToSpace", "Expand", "Gather", "GatherElements", "GatherND", "Pad", "Resize", "SpaceToDepth",
    "Split", "Tile",
}  # fmt: skip
# What has an integer kernel behind a quantizer.
_INTEGER = frozenset(
    {"Add", "AveragePool", "Concat", "Conv", "ConvTranspose", "Gemm", "GlobalAveragePool", "MatMul", "Mul", "Pad"}
)


def carry_quantizers(graph: Any) -> None:
    """Repeat quantizers in place behind what keeps values.

    Signed ones are repeated behind everything: ONNX Runtime adds such quantizers by itself, declares them int8, and
    then refuses its own graph on processors for which it rewrites int8 to uint8 (1.32, x86): ``output_dtype INT8 does
    not match y_zero_point type UINT8``.

    Args:
        graph: An ``onnx_ir.Graph``, its nodes in the order in which they run.
    """
    grids: dict[Any, tuple[Any, Any]] = {}
    for node in list(graph):
        if node.op_type == "DequantizeLinear" and node.inputs[0].const_value is None and len(node.inputs) > 2:
            grids[node.outputs[0]] = tuple(node.inputs[1:3])
        elif node.op_type in _KEPT and (grid := _grid(node, grids)) is not None:
            for output in node.outputs:
                again = output
                if _is_signed(grid) or (node.op_type not in _CARRIED and _feeds_integers(output)):
                    again = _repeat(graph, node, output, grid)
                grids[again] = grid


def _grid(node: Any, grids: dict[Any, tuple[Any, Any]]) -> tuple[Any, Any] | None:
    """Scale and zero point of what a node gives on, where it keeps values."""
    found = [grids.get(value) for value in (node.inputs if node.op_type == "Concat" else node.inputs[:1])]
    first = found[0]
    if first is None or any(grid is None or not _same(first, grid) for grid in found):
        return None
    if node.op_type == "Pad" and _text(node, "mode", "constant") == "constant" and not _pads_zero(node):
        return None
    if node.op_type == "Resize" and _text(node, "mode", "nearest") != "nearest":
        return None
    return first


def _same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    return all(a is b or _equal(a.const_value, b.const_value) for a, b in zip(one, other, strict=True))


def _equal(one: Any, other: Any) -> bool:
    if one is None or other is None or one.dtype != other.dtype:
        return False
    return bool(np.array_equal(one.numpy(), other.numpy()))


def _text(node: Any, name: str, default: str) -> str:
    return str(node.attributes[name].as_string()) if name in node.attributes else default


def _pads_zero(node: Any) -> bool:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return True
    return value.const_value is not None and not np.any(value.const_value.numpy())


def _is_signed(grid: tuple[Any, Any]) -> bool:
    import onnx_ir as ir

    zero_point = grid[1].const_value if grid[1] is not None else None
    return zero_point is not None and zero_point.dtype == ir.DataType.INT8


def _feeds_integers(value: Any) -> bool:
    """Whether an operation with an integer kernel reads a value, also behind what keeps values."""
    for use in value.uses():
        if use.node.op_type in _INTEGER:
            return True
        if use.node.op_type in _KEPT and any(_feeds_integers(output) for output in use.node.outputs):
            return True
    return False


def _repeat(graph: Any, node: Any, moved: Any, grid: tuple[Any, Any]) -> Any:
    """Quantize a node's result once more; gives the value that is read now."""
    users = list(moved.uses())
    if not moved.is_graph_output() and all(use.node.op_type == "QuantizeLinear" for use in users):
        return moved
    name = moved.name
    quantize = node_of("QuantizeLinear", [moved, *grid], {}, f"{name}_quantized")
    again = node_of("DequantizeLinear", [quantize.outputs[0], *grid], {}, f"{name}_dequantized")
    take_over(moved, again.outputs[0])
    quantize.replace_input_with(0, moved)
    moved.name = f"{name}_moved"
    graph.insert_after(node, [quantize, again])
    return again.outputs[0]
