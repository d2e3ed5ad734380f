"""Weights within 7 bits in ONNX Runtime's fast kernels, which saturate on processors without VNNI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from lightning_compress.export import to_onnx
from lightning_compress.quantization import prepare


def saturating() -> nn.Module:
    """Every product of the second layer is as large as can be, and they all have one sign."""
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
    return model


def test_fast_kernels_are_exact_with_a_reduced_range(tmp_path: Path) -> None:
    model, x = saturating(), torch.rand(4, 3, 8, 8) + 1
    prepare(model, example_inputs=x, reduce_range=True)
    model.train()
    for _ in range(3):
        model(x)
    model.eval()
    file = to_onnx(model, x, tmp_path / "model.onnx")
    # Without session.x64quantprecision: the kernels that a user gets who sets nothing.
    session = onnxruntime.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
    actual = session.run(None, {file.input_names[0]: x.numpy()})[0]
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0.01)
