"""Weights as int8 or as uint8 around 128: the same numbers, for which ONNX Runtime has different kernels.

On x86 without VNNI its kernels for unsigned activations and signed weights add pairs of products in 16 bits. They are
fast, and saturate where weights exceed 64; those for unsigned weights are exact. On processors with VNNI signed weights
are fast and exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lightning_compress.export.onnx.ir import initializer

# 2 · 255 · 64 is the most that fits 16 bits.
_LARGEST = 64
# In a file's metadata: that its weights need kernels which do not saturate.
EXACT = "lightning_compress.exact_kernels"


def store_unsigned(graph: Any) -> None:
    """Store the weights that could saturate as uint8, in place."""
    for node in list(_saturating(graph)):
        unsigned(graph, [node])
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]


def saturates(graph: Any) -> bool:
    """Whether kernels for signed weights could saturate on some processors."""
    return any(True for _ in _saturating(graph))


def unsigned(graph: Any, nodes: list[Any]) -> None:
    """Let DequantizeLinear nodes that read one int8 weight read it as uint8."""
    weight, zero_point = nodes[0].inputs[0], nodes[0].inputs[2]
    name = f"{weight.name}_unsigned"
    if (shifted := graph.initializers.get(name)) is None:
        shifted = initializer(graph, name, (weight.const_value.numpy().astype(np.int16) + 128).astype(np.uint8))
    zeros = zero_point.const_value.numpy()
    for node in nodes:
        middle = initializer(graph, f"{node.name}_unsigned_zero_point", np.full_like(zeros, 128, np.uint8))
        node.replace_input_with(0, shifted)
        node.replace_input_with(2, middle)


def stored_weight(node: Any) -> Any | None:
    """The int8 initializer that a DequantizeLinear reads, if it reads one."""
    import onnx_ir as ir

    if node.op_type != "DequantizeLinear" or len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    stored = node.inputs[0].const_value
    return node.inputs[0] if stored is not None and stored.dtype == ir.DataType.INT8 else None


def _saturating(graph: Any) -> Iterator[Any]:
    for node in graph:
        weight = stored_weight(node)
        if weight is None or not any(_beside_integers(use) for use in node.outputs[0].uses()):
            continue
        if int(np.abs(weight.const_value.numpy().astype(np.int16)).max(initial=0)) > _LARGEST:
            yield node


def _beside_integers(use: Any) -> bool:
    """Whether the kernel that reads a weight multiplies it by integers."""
    if use.idx != 1 or use.node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    maker = use.node.inputs[0].producer()
    while maker is not None and maker.op_type in ("Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"):
        maker = maker.inputs[0].producer()
    return maker is not None and maker.op_type == "DequantizeLinear"
