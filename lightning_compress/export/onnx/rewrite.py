"""Rewrites of an exported ONNX graph, for ONNX Runtime to find its integer kernels; none changes a value."""

from __future__ import annotations

from typing import Any

from lightning_compress.export.onnx.carried_quantizers import carry_quantizers
from lightning_compress.export.onnx.ir import initializer
from lightning_compress.export.onnx.stored_weights import move_weights
from lightning_compress.export.onnx.transposed_convolution import convolve_instead
from lightning_compress.export.onnx.weight_signs import stored_weight, unsigned


def clean(model: Any) -> None:
    """Rewrite an ``onnx_ir.Model`` in place.

    Transposed convolutions become convolutions, weights are stored as their kernels read them, no two nodes share a
    weight, activations are quantized again behind what keeps values, and debugging metadata goes: it is most of a small
    file, and it names files of the machine that exported.
    """
    convolve_instead(model.graph)
    move_weights(model.graph)
    _separate_weights(model.graph)
    carry_quantizers(model.graph)
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
        if (weight := stored_weight(node)) is not None:
            readers.setdefault(weight, []).append(node)
    seen: set[Any] = set()
    for nodes in readers.values():
        zero_point = nodes[0].inputs[2]
        if sum(len(list(node.outputs[0].uses())) for node in nodes) > 1:
            unsigned(graph, nodes)
        elif zero_point in seen:
            zeros = zero_point.const_value.numpy()
            nodes[0].replace_input_with(2, initializer(graph, f"{nodes[0].name}_zero_point", zeros))
        else:
            seen.add(zero_point)
