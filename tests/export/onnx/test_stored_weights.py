"""Weights that are stored as a kernel reads them keep their values, and ONNX Runtime runs the file."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from torch import nn

from lightning_compress.export import to_onnx
from lightning_compress.quantization import prepare


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_a_linear_layer_on_sequences_runs_in_the_runtime(outputs: int, granularity: str, tmp_path: Path) -> None:
    # One output channel has one scale, and [inputs, 1] integers must not get one for each input.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, outputs))
    x = torch.randn(6, 4, 8)
    prepare(net, example_inputs=x, weight_granularity=granularity, first_last_bits=None)
    net.train()(x)
    net.eval()
    file = to_onnx(net, x, tmp_path / "model.onnx")
    found = ort.InferenceSession(file.path, providers=["CPUExecutionProvider"]).run(
        None, {file.input_names[0]: x.numpy()}
    )
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found[0]), net(x), rtol=1e-4, atol=1e-4)
