"""Values and nodes of an ``onnx_ir`` graph, made and found."""

from __future__ import annotations

from typing import Any

import numpy as np


def weight_behind(value: Any) -> Any | None:
    """The DequantizeLinear of a stored weight that makes a value, if one does."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0].const_value is None:
        return None
    return node


def initializer(graph: Any, name: str, array: np.ndarray[Any, Any]) -> Any:
    """A stored tensor, registered with the graph."""
    import onnx_ir as ir

    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor)
    value.type = ir.TensorType(tensor.dtype)
    value.shape = ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def node_of(operator: str, inputs: list[Any], attributes: dict[str, Any], name: str) -> Any:
    """A node of ONNX's own operators with one output."""
    import onnx_ir as ir

    return ir.Node("", operator, inputs, ir.convenience.convert_attributes(attributes), name=name)


def take_over(old: Any, new: Any) -> None:
    """Let a new value stand where an old one stood, under its name, among the graph's outputs too."""
    import onnx_ir as ir

    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
