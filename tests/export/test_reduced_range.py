"""Files that are right in a session with default options, whose kernels saturate on processors without VNNI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lightning_compress.export import to_onnx
from lightning_compress.export.onnx.session import needs_exact_kernels, open_session
from lightning_compress.foundation.processor import has_vnni
from lightning_compress.quantization import find, prepare


def saturating() -> nn.Module:
    """Every product of the second layer is as large as can be, and they all have one sign."""
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
    return model


def written(path: Path, **settings: Any) -> tuple[nn.Module, torch.Tensor, str]:
    model, x = saturating(), torch.rand(4, 3, 8, 8) + 1
    prepare(model, example_inputs=x, **settings)
    model.train()
    for _ in range(3):
        model(x)
    return model.eval(), x, str(to_onnx(model, x, path / "model.onnx").path)


def gives(session: Any, x: torch.Tensor) -> Any:
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def weight_types(path: str) -> set[int]:
    return {item.data_type for item in onnx.load(path).graph.initializer if len(item.dims) == 4}


@pytest.mark.parametrize(
    ("settings", "bits", "stored"),
    [
        ({}, 7, onnx.TensorProto.INT8),
        ({"reduce_range": True, "processor": "vnni"}, 7, onnx.TensorProto.INT8),
        ({"reduce_range": False}, 8, onnx.TensorProto.UINT8),
        ({"backend": None}, 8, onnx.TensorProto.UINT8),
    ],
)
def test_a_file_is_right_in_a_session_without_options(
    settings: dict[str, Any], bits: int, stored: int, tmp_path: Path
) -> None:
    model, x, path = written(tmp_path, **settings)
    # The kernels that a user gets who sets nothing.
    actual = gives(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), x)
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0.01)
    assert {layer.spec.qmax for layer in find(model).layers.values()} == {2 ** (bits - 1) - 1}
    assert weight_types(path) == {stored}
    assert not needs_exact_kernels(open_session(path))


def test_a_file_for_vnni_says_so_and_runs_exactly_elsewhere(tmp_path: Path) -> None:
    model, x, path = written(tmp_path, processor="vnni")
    assert weight_types(path) == {onnx.TensorProto.INT8}
    session = open_session(path)
    assert needs_exact_kernels(session) == (has_vnni() is False)
    with torch.no_grad():
        np.testing.assert_allclose(gives(session, x), model(x).numpy(), rtol=0.01)


def test_weights_beside_float_activations_keep_all_bits() -> None:
    model = prepare(saturating(), activation_bits=None)
    assert {layer.spec.qmax for layer in find(model).layers.values()} == {127}
