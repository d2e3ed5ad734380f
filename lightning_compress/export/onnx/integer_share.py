"""How much of an ONNX file's arithmetic ONNX Runtime really does in integers."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_compress.export.onnx.session import open_session

_INTEGER = frozenset(
    {
        "QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger",
        "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "QAttention",
    }
)  # fmt: skip


@dataclass(frozen=True)
class IntegerShare:
    """Multiply-accumulates of one sample.

    Attributes:
        total: All of them.
        integer: Those in integer kernels.
        floats: Kernel in the loaded graph → multiply-accumulates that it does in float.
    """

    total: int
    integer: int
    floats: Mapping[str, int]

    @property
    def share(self) -> float:
        """Integer part of the total, in [0, 1]; 1 where there is nothing to multiply."""
        return self.integer / self.total if self.total else 1.0


def integer_share(path: str | Path) -> IntegerShare:
    """Load a file in ONNX Runtime and see which kernels took its convolutions and matrix products.

    Args:
        path: ONNX file whose dimensions are known but for the batch's.

    Raises:
        CompressionError: The file cannot be loaded.
    """
    import onnx

    with tempfile.TemporaryDirectory() as directory:
        optimized = Path(directory) / "optimized.onnx"
        open_session(path, optimized_path=str(optimized))
        kernels = [(node.name, node.op_type) for node in onnx.load(optimized).graph.node]
    total = integer = 0
    floats: dict[str, int] = {}
    for name, count in _macs(onnx.shape_inference.infer_shapes(onnx.load(path))).items():
        # ONNX Runtime keeps a node's name when it replaces the node, with a suffix.
        same = re.compile(re.escape(name) + r"(_token_\d+)?(/.*)?")
        kernel = next((kind for found, kind in kernels if same.fullmatch(found)), "unknown")
        total += count
        if kernel in _INTEGER:
            integer += count
        else:
            floats[kernel] = floats.get(kernel, 0) + count
    return IntegerShare(total, integer, floats)


def _macs(model: Any) -> dict[str, int]:
    graph = model.graph
    shapes: dict[str, list[int]] = {i.name: list(i.dims) for i in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        # What is free is the batch: one sample is counted.
        shapes[value.name] = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
    found = {}
    for node in graph.node:
        if node.op_type in _COUNTS:
            inputs = [shapes.get(name, []) for name in node.input]
            found[node.name] = _COUNTS[node.op_type](inputs, shapes.get(node.output[0], []))
    return found


def _convolution(inputs: Sequence[Sequence[int]], output: Sequence[int]) -> int:
    return math.prod(output) * math.prod(inputs[1][1:])


def _transposed(inputs: Sequence[Sequence[int]], output: Sequence[int]) -> int:
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _product(inputs: Sequence[Sequence[int]], output: Sequence[int]) -> int:
    return math.prod(output) * inputs[0][-1]


def _recurrent(inputs: Sequence[Sequence[int]], output: Sequence[int]) -> int:
    length, batch = inputs[0][:2]
    return length * batch * (math.prod(inputs[1]) + math.prod(inputs[2]))


_COUNTS = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _product,
    "MatMul": _product,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
