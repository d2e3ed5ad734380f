"""The share of an ONNX file's multiply-adds that ONNX Runtime runs in integers, and why the rest runs in float."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_compress.export.integer_share import FloatOperation, IntegerShare
from lightning_compress.export.onnx.float_reasons import graph_reasons
from lightning_compress.export.onnx.session import open_session

_INTEGER = frozenset(
    {
        "QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger",
        "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "QAttention",
    }
)  # fmt: skip
# Sizes of free dimensions that are not the batch, where none are given.
_SIZE = 16
_TYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_, "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}  # fmt: skip


def integer_share(path: str | Path, feed: Mapping[str, Any] | None = None) -> IntegerShare:
    """Load a file in ONNX Runtime and see which kernels took its convolutions, matrix products and sums.

    Args:
        path: ONNX file.
        feed: Name of an input → array, a sample of which gives the sizes; by default zeros, whose batch is 1 and whose
            other free dimensions are 16.

    Raises:
        CompressionError: The file cannot be loaded.
    """
    import onnx

    with tempfile.TemporaryDirectory() as directory:
        optimized = Path(directory) / "optimized.onnx"
        open_session(path, optimized_path=str(optimized))
        kernels = [(node.name, node.op_type, list(node.input)) for node in onnx.load(optimized).graph.node]
    model = onnx.load(path)
    reasons = graph_reasons(model.graph)
    stored = _stored(model.graph)
    total = integer = 0
    operations = []
    for node, count in _macs(path, model, feed).items():
        kernel = _kernel(node, stored.get(node, ""), kernels)
        total += count
        if kernel in _INTEGER:
            integer += count
        else:
            name, reason = reasons[node]
            operations.append(FloatOperation(name, kernel, count, reason))
    sums = {name for name, kind, _ in kernels if kind == "Add"}
    operations += [FloatOperation(name, "Add", 0, reason) for node, (name, reason) in reasons.items() if node in sums]
    return IntegerShare(total, integer, tuple(sorted(operations, key=lambda operation: -operation.macs)))


def _kernel(node: str, weight: str, kernels: Sequence[tuple[str, str, list[str]]]) -> str:
    """The kernel that stands for a node, by the name that ONNX Runtime keeps or else by the stored weight."""
    same = re.compile("(fused )?" + re.escape(node) + r"(_token_\d+)?(/.*)?")
    for name, kind, _ in kernels:
        if same.fullmatch(name):
            return kind
    for _, kind, inputs in kernels:
        if weight and kind not in ("DequantizeLinear", "Transpose") and any(i.startswith(weight) for i in inputs):
            return kind
    return "unknown"


def _stored(graph: Any) -> dict[str, str]:
    """Node → the stored tensor that its weight is."""
    initializers = {item.name for item in graph.initializer}
    behind = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    found = {n.name: behind.get(n.input[1], n.input[1]) for n in graph.node if len(n.input) > 1}
    return {node: name for node, name in found.items() if name in initializers}


def _macs(path: str | Path, model: Any, feed: Mapping[str, Any] | None) -> dict[str, int]:
    """Node → its multiply-accumulates for one sample, by the shapes that one run gives."""
    nodes = [node for node in model.graph.node if node.op_type in _COUNTS]
    shapes = _shapes(path, model, nodes, feed)
    return {
        node.name: _COUNTS[node.op_type]([shapes.get(name, []) for name in node.input], shapes[node.output[0]])
        for node in nodes
    }


def _shapes(path: str | Path, model: Any, nodes: Sequence[Any], feed: Mapping[str, Any] | None) -> dict[str, list[int]]:
    import onnx

    graph = model.graph
    found = {stored.name: list(stored.dims) for stored in graph.initializer}
    names = dict.fromkeys(name for node in nodes for name in (*node.input, node.output[0]) if name not in found)
    names.pop("", None)
    asked = list(names)
    if not asked:
        return found
    for index, name in enumerate(asked):
        graph.node.append(onnx.helper.make_node("Shape", [name], [f"shape_{index}_of"], name=f"shape_{index}"))
        graph.output.append(onnx.helper.make_tensor_value_info(f"shape_{index}_of", onnx.TensorProto.INT64, None))
    session = open_session(path, content=model.SerializeToString())
    if feed is None:
        feed = {given.name: _zeros(given) for given in session.get_inputs()}
    shapes = session.run([f"shape_{index}_of" for index in range(len(asked))], dict(feed))
    return found | {name: [int(size) for size in shape] for name, shape in zip(asked, shapes, strict=True)}


def _zeros(given: Any) -> np.ndarray[Any, Any]:
    sizes = [size if isinstance(size, int) else 1 if size == "batch" else _SIZE for size in given.shape]
    return np.zeros(sizes, _TYPES[given.type])


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
