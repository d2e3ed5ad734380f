"""Stored weights brought into the form in which a kernel reads them.

ONNX Runtime finds its integer kernels only where a DequantizeLinear stands directly before them: a weight that is
transposed, split or reshaped on the way is stored so in the first place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_compress.export.onnx.ir import initializer, node_of, take_over, weight_behind

_MOVES = frozenset({"Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})


def move_weights(graph: Any) -> None:
    """Turn what only moves a dequantized weight's values into weights that are stored moved, in place."""
    for node in list(graph):
        dequantize = weight_behind(node.inputs[0]) if node.op_type in _MOVES and node.inputs else None
        if dequantize is None or any(value is not None and value.const_value is None for value in node.inputs[1:]):
            continue
        moved = _moved(node, dequantize)
        if moved is None:
            continue
        for output, (weight, parameters, attributes) in zip(node.outputs, moved, strict=True):
            # Behind the weight's own name, which tells whose it is.
            name = f"{dequantize.inputs[0].name}_{output.name}"
            stored = [initializer(graph, f"{name}_stored", weight)]
            stored += [initializer(graph, f"{name}_parameter{i}", array) for i, array in enumerate(parameters)]
            made = node_of("DequantizeLinear", stored, attributes, f"{name}_dequantize")
            take_over(output, made.outputs[0])
            graph.insert_before(node, made)
        graph.remove(node, safe=True)
        if not dequantize.outputs[0].uses():
            graph.remove(dequantize, safe=True)


_Stored = tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]], dict[str, int]]


def _moved(node: Any, dequantize: Any) -> list[_Stored] | None:
    """For each output the integers, the scale and zero point, and the attributes of the DequantizeLinear."""
    weight, *parameters = (value.const_value.numpy() for value in dequantize.inputs if value is not None)
    block, axis = (dequantize.attributes[name].as_int() for name in ("block_size", "axis"))
    if block:
        if node.op_type != "Transpose":
            return None
        permutation = list(node.attributes["perm"].as_ints())
        arrays = [np.ascontiguousarray(array.transpose(permutation)) for array in (weight, *parameters)]
        return [(arrays[0], arrays[1:], {"axis": permutation.index(axis), "block_size": block})]
    results = _run(node, weight)
    if parameters[0].ndim == 0:
        return [(result, parameters, {"axis": 0, "block_size": 0}) for result in results]
    shape = [-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim)]
    # Where each value's scale stands among the scales.
    places = np.broadcast_to(np.arange(parameters[0].size).reshape(shape), weight.shape)
    found = []
    for result, place in zip(results, _run(node, np.ascontiguousarray(places)), strict=True):
        if (place == place.flat[0]).all():
            one = [array[place.flat[0]].reshape(()) for array in parameters]
            found.append((result, one, {"axis": 0, "block_size": 0}))
            continue
        along = _axis_of(place)
        if along is None:
            return None
        order = np.moveaxis(place, along, 0).reshape(place.shape[along], -1)[:, 0]
        found.append((result, [array[order] for array in parameters], {"axis": along, "block_size": 0}))
    return found


def _axis_of(places: np.ndarray[Any, Any]) -> int | None:
    """The one dimension along which scales differ, as somewhere they do; ``None`` where there are several."""
    axes = [i for i, size in enumerate(places.shape) if size > 1 and (np.take(places, [0], i) != places).any()]
    return axes[0] if len(axes) == 1 else None


def _run(node: Any, data: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The node's outputs for a first input, by ONNX's own reference."""
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    names = [value.name if value is not None else "" for value in node.inputs]
    given = {name: value.const_value.numpy() for name, value in zip(names[1:], node.inputs[1:], strict=True) if name}
    outputs = ReferenceEvaluator(ir.serde.serialize_node(node)).run(None, {**given, names[0]: data})
    return [np.ascontiguousarray(output) for output in outputs]
