"""ONNX files as ONNX Runtime reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lightning_compress.apps.inspect.inspect import inspect
from lightning_compress.metrics.zero_patterns import empty_channels, pattern_of


def written(path: Path, weight: TensorProto, zero_point: NDArray[Any], kind: int, **attributes: int) -> NDArray[Any]:
    """Write a file with a weight, which two nodes read; returns the weight as ONNX Runtime dequantizes it."""
    constants = [
        weight,
        numpy_helper.from_array(np.full(zero_point.shape, 0.5, np.float32), "scale"),
        helper.make_tensor("zero", kind, zero_point.shape, zero_point.flatten()),
    ]
    names = [constant.name for constant in constants]
    nodes = [helper.make_node("DequantizeLinear", names, [output], **attributes) for output in ("first", "second")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("first", "second")]
    graph = helper.make_graph(nodes, "weights", [], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    found: NDArray[Any] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["first"], {})[0]
    return found


@pytest.mark.parametrize(
    ("zero_point", "attributes"),
    [
        (np.array(128), {}),
        (np.arange(100, 108), {"axis": 0}),
        (np.arange(16) * 17, {"axis": -1}),
        (np.arange(100, 116).reshape(8, 2), {"axis": 1, "block_size": 8}),
    ],
    ids=["tensor", "rows", "columns", "blocks"],
)
@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_are_where_integers_are_the_zero_point(
    zero_point: NDArray[Any], attributes: dict[str, int], bits: int, tmp_path: Path
) -> None:
    zero_point, path = zero_point % 2**bits, tmp_path / "model.onnx"
    middle = zero_point.repeat(8, 1) if zero_point.ndim == 2 else zero_point
    middle = middle[:, None] if attributes.get("axis") == 0 else middle
    random = np.random.default_rng(0)
    integers = np.where(random.random((8, 16)) < 0.7, middle, random.integers(0, 2**bits, (8, 16)))
    integers[3] = middle if middle.ndim < 2 else middle[3]
    kind = {8: TensorProto.UINT8, 4: TensorProto.UINT4}[bits]
    weight = helper.make_tensor("weight", kind, integers.shape, integers.flatten())
    expected = torch.from_numpy(written(path, weight, zero_point, kind, **attributes))
    (row,) = inspect(path).tensors
    assert row.zeros == int((expected == 0).sum()) > 64
    assert (row.pattern, row.empty_channels) == (pattern_of(expected), empty_channels(expected))
    assert (row.name, row.bits, row.floating) == ("weight", bits, True)
    assert row.stored_bytes <= integers.size * bits // 8 + zero_point.size * 5
