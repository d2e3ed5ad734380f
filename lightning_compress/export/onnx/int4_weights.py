"""INT4 weights in an ONNX file, where ONNX Runtime loses nothing by them: products with float activations.

ONNX Runtime 1.32 makes one ``MatMulNBits`` of a MatMul of float activations by INT4 weights, where a Gemm dequantizes
its weights again in every call; by default it rounds the activations of that kernel to 8 bits, which
``session.qdq_matmulnbits_accuracy_level=1`` in the session's options prevents. Where activations are quantized, INT4
weights make convolutions and matrix products fall back to float kernels: there the integers stay INT8.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_compress.export.onnx.ir import take_over

_SMALLEST, _LARGEST = -8, 7
_FUSED = frozenset({"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Elu", "Softplus", "Softsign", "Selu"})
# What only moves values: integers before it are integers after it.
_MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "MaxPool"})


def store_int4(graph: Any, *, everywhere: bool = False) -> list[str]:
    """Store weights as INT4 in place, exactly; their scales take up what integers were shifted by.

    Args:
        graph: An ``onnx_ir.Graph``, cleaned.
        everywhere: Also where integer kernels are lost by it: half the bytes at the speed of float.

    Returns:
        Names of the weights that are INT4 now.
    """
    import onnx_ir as ir

    stored = []
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.const_value is None or weight.const_value.dtype != ir.DataType.INT8:
            continue
        product = _float_product(node)
        if len(list(weight.uses())) > 1 or not (everywhere or product is not None):
            continue
        found = _narrowed(weight.const_value.numpy())
        if found is None:
            continue
        integers, shift = found
        if product is not None and product.op_type == "Gemm":
            integers = _multiply_instead(graph, node, product, integers)
        packed = ir.tensor(integers, dtype=ir.DataType.INT4, name=weight.name)
        weight.const_value, weight.type, weight.shape = packed, ir.TensorType(packed.dtype), packed.shape
        scale = node.inputs[1]
        zero_point = node.inputs[2] if len(node.inputs) > 2 else None
        if shift > 1:
            steps = scale.const_value.numpy() * np.float32(shift)
            node.replace_input_with(1, _constant(graph, f"{weight.name}_scale4", ir.tensor(steps)))
        if zero_point is not None:
            zeros = ir.tensor(np.zeros(zero_point.shape.numpy(), np.int8), dtype=ir.DataType.INT4)
            node.replace_input_with(2, _constant(graph, f"{weight.name}_zero4", zeros))
        stored.append(str(weight.name))
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    return stored


def _float_product(dequantize: Any) -> Any | None:
    """The one MatMul or plain Gemm of float activations that reads a weight; ``None`` where there is another reader."""
    uses = list(dequantize.outputs[0].uses())
    if len(uses) != 1 or uses[0].idx != 1 or uses[0].node.op_type not in ("MatMul", "Gemm"):
        return None
    node = uses[0].node
    maker = node.inputs[0].producer()
    while maker is not None and maker.op_type in _MOVES:
        maker = maker.inputs[0].producer()
    if maker is not None and maker.op_type == "DequantizeLinear":
        return None
    if node.op_type == "Gemm":
        plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
        given = {name: node.attributes[name].value for name in plain if name in node.attributes}
        if any(given.get(name, value) != value for name, value in plain.items()) or _activated(node):
            return None
    return node


def _activated(gemm: Any) -> bool:
    """Whether ONNX Runtime would fuse what follows into a Gemm of floats, before it looks for stored integers."""
    return any(use.node.op_type in _FUSED for use in gemm.outputs[0].uses())


def _multiply_instead(graph: Any, dequantize: Any, gemm: Any, integers: Any) -> Any:
    """Turn a Gemm into a MatMul and an Add; gives the weights as the MatMul takes them."""
    import onnx_ir as ir

    if "transB" in gemm.attributes and gemm.attributes["transB"].as_int():
        integers = np.ascontiguousarray(integers.T)
        if "axis" in dequantize.attributes:
            dequantize.attributes["axis"] = ir.AttrInt64("axis", 1 - dequantize.attributes["axis"].as_int() % 2)
        for index in (1, 2):
            parameter = dequantize.inputs[index] if index < len(dequantize.inputs) else None
            if parameter is not None and len(parameter.shape) == 2:
                turned = ir.tensor(np.ascontiguousarray(parameter.const_value.numpy().T))
                dequantize.replace_input_with(index, _constant(graph, f"{parameter.name}_turned", turned))
        dequantize.outputs[0].shape = ir.Shape(integers.shape)
    x, weight, *bias = gemm.inputs
    product = ir.node("MatMul", [x, weight], name=gemm.name)
    made = [product]
    if bias and bias[0] is not None:
        made.append(ir.node("Add", [product.outputs[0], bias[0]], name=f"{gemm.name}_bias"))
    old = gemm.outputs[0]
    if made[-1] is not product:
        product.outputs[0].type, product.outputs[0].shape = old.type, old.shape
    take_over(old, made[-1].outputs[0])
    graph.insert_before(gemm, made)
    graph.remove(gemm, safe=True)
    return integers


def _narrowed(integers: Any) -> tuple[Any, int] | None:
    """The integers divided by the power of two that makes them fit 4 bits, and that power; ``None`` if none does."""
    for shift in (1, 2, 4, 8, 16):
        divided = integers // shift
        if (divided * shift == integers).all() and divided.min() >= _SMALLEST and divided.max() <= _LARGEST:
            return divided.astype(np.int8), shift
    return None


def _constant(graph: Any, name: str, tensor: Any) -> Any:
    import onnx_ir as ir

    tensor.name = name
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
    graph.register_initializer(value)
    return value
