"""Rewrites of an exported ONNX graph, for ONNX Runtime to find its integer kernels; none changes a value."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_compress.export.onnx.ir import initializer, node_of, take_over, weight_behind
from lightning_compress.export.onnx.transposed_convolution import convolve_instead

_MOVERS = ("Flatten", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def clean(model: Any) -> None:
    """Rewrite an ``onnx_ir.Model`` in place.

    Transposed convolutions become convolutions, weights behind a ``Transpose`` are stored transposed, no two nodes
    share a weight, signed activations are quantized again behind a view, and debugging metadata goes: it is most of a
    small file, and it names files of the machine that exported.
    """
    convolve_instead(model.graph)
    _transpose_weights(model.graph)
    _separate_weights(model.graph)
    _quantize_behind_views(model.graph)
    _drop_unused(model.graph)
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def _transpose_weights(graph: Any) -> None:
    """Turn ``Transpose(DequantizeLinear(weight))`` into ``DequantizeLinear(weight transposed)``.

    ONNX Runtime fuses the transpose into a float MatMul before it looks for an integer one.
    """
    for node in list(graph):
        if node.op_type != "Transpose" or (dequantize := weight_behind(node.inputs[0])) is None:
            continue
        permutation = list(node.attributes["perm"].as_ints())
        weight, *parameters = dequantize.inputs
        transposed = initializer(
            graph, f"{weight.name}_transposed", np.ascontiguousarray(weight.const_value.numpy().transpose(permutation))
        )
        if dequantize.attributes["block_size"].as_int():
            parameters = [
                p and initializer(graph, f"{p.name}_transposed", p.const_value.numpy().transpose(permutation))
                for p in parameters
            ]
        axis = permutation.index(dequantize.attributes["axis"].as_int())
        attributes = {"axis": axis, "block_size": dequantize.attributes["block_size"].as_int()}
        made = node_of("DequantizeLinear", [transposed, *parameters], attributes, f"{dequantize.name}_transposed")
        take_over(node.outputs[0], made.outputs[0])
        graph.insert_before(node, made)
        graph.remove(node, safe=True)
        if not dequantize.outputs[0].uses():
            graph.remove(dequantize, safe=True)


def _drop_unused(graph: Any) -> None:
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]


def _separate_weights(graph: Any) -> None:
    """Let no two kernels share an int8 weight or its zero point.

    ONNX Runtime's int8 → uint8 rewrite for CPUs without VNNI refuses a tensor that two kernels share, and the exporter
    merges equal initializers. A weight with several readers is stored as uint8 in the first place, which needs no
    rewrite and no copy; other weights get zero points of their own.
    """
    readers: dict[Any, list[Any]] = {}
    for node in graph:
        if (weight := _stored_weight(node)) is not None:
            readers.setdefault(weight, []).append(node)
    seen: set[Any] = set()
    for weight, nodes in readers.items():
        zero_point = nodes[0].inputs[2]
        if zero_point is None:
            continue
        zeros = zero_point.const_value.numpy()
        if sum(len(list(node.outputs[0].uses())) for node in nodes) > 1:
            shifted = (weight.const_value.numpy().astype(np.int16) + 128).astype(np.uint8)
            unsigned = initializer(graph, f"{weight.name}_unsigned", shifted)
            middle = initializer(graph, f"{weight.name}_unsigned_zero_point", np.full_like(zeros, 128, np.uint8))
            for node in nodes:
                node.replace_input_with(0, unsigned)
                node.replace_input_with(2, middle)
        elif zero_point in seen:
            nodes[0].replace_input_with(2, initializer(graph, f"{nodes[0].name}_zero_point", zeros))
        else:
            seen.add(zero_point)


def _quantize_behind_views(graph: Any) -> None:
    """Repeat the quantizer of a signed activation behind every node that only moves its values.

    ONNX Runtime adds such quantizers by itself, declares them int8, and then refuses its own graph on processors for
    which it rewrites int8 to uint8 (1.32, x86): ``output_dtype INT8 does not match y_zero_point type UINT8``.
    """
    for node in list(graph):
        before = node.inputs[0].producer() if node.op_type in _MOVERS else None
        if before is None or not _is_signed_activation(before):
            continue
        moved = node.outputs[0]
        users = list(moved.uses())
        if not moved.is_graph_output() and all(use.node.op_type == "QuantizeLinear" for use in users):
            continue
        scale, zero_point = before.inputs[1:3]
        quantize = node_of("QuantizeLinear", [moved, scale, zero_point], {}, f"{node.name}_quantized")
        again = node_of("DequantizeLinear", [quantize.outputs[0], scale, zero_point], {}, f"{node.name}_dequantized")
        if moved.is_graph_output():
            name = moved.name
            take_over(moved, again.outputs[0])
            quantize.replace_input_with(0, moved)
            moved.name = f"{name}_moved"
        else:
            again.outputs[0].shape, again.outputs[0].dtype = moved.shape, moved.dtype
            for use in users:
                use.node.replace_input_with(use.idx, again.outputs[0])
        graph.insert_after(node, [quantize, again])


def _is_signed_activation(node: Any) -> bool:
    import onnx_ir as ir

    if node.op_type != "DequantizeLinear" or len(node.inputs) < 3 or node.inputs[0].const_value is not None:
        return False
    zero_point = node.inputs[2].const_value
    return zero_point is not None and zero_point.dtype == ir.DataType.INT8


def _stored_weight(node: Any) -> Any | None:
    """The int8 initializer that a DequantizeLinear reads, if it reads one."""
    import onnx_ir as ir

    if node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
        return None
    stored = node.inputs[0].const_value
    return node.inputs[0] if stored is not None and stored.dtype == ir.DataType.INT8 else None
