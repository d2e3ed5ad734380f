"""Transposed convolutions that ONNX Runtime computes as integer convolutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_compress.export import to_onnx
from lightning_compress.export.onnx.integer_share import integer_share
from lightning_compress.export.onnx.session import open_session
from lightning_compress.export.onnx.transposed_convolution import _subpixel
from lightning_compress.quantization import find, prepare

# Kernel, stride, padding, output padding.
GEOMETRIES = [(2, 2, 0, 0), (3, 2, 1, 1), (4, 2, 1, 0), (5, 3, 2, 1), (3, 1, 1, 0), (2, 3, 0, 0), (3, 2, 0, 0)]


def network(kernel: int, stride: int, padding: int, extra: int, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 6, kernel, stride, padding, extra, groups=groups, bias=groups == 1),
        nn.BatchNorm2d(6) if groups == 1 else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
    )


def exported(model: nn.Module, x: torch.Tensor, path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    prepare(model, example_inputs=x[:2])
    model.train()
    for _ in range(3):
        model(x)
    model.eval()
    file = to_onnx(model, x[:2], path)
    with torch.no_grad():
        expected = model(x).numpy()
    actual = open_session(file.path).run(None, {file.input_names[0]: x.numpy()})[0]
    return actual, expected, float(list(find(model).activations.values())[-1].scale)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_all_of_it_runs_in_integers_with_the_same_answers(geometry: tuple[int, int, int, int], tmp_path: Path) -> None:
    actual, expected, step = exported(network(*geometry), torch.randn(8, 3, 9, 7), tmp_path / "model.onnx")
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1.01 * step
    assert (np.abs(actual - expected) > 0.5 * step).mean() < 0.01
    assert integer_share(tmp_path / "model.onnx").share == 1


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (4, 2), (5, 3), (3, 1), (2, 3)])
def test_integers_are_moved_and_none_is_made(kernel: int, stride: int) -> None:
    x = torch.randint(0, 256, (2, 5, 6, 4)).double()
    weight = torch.randint(-127, 128, (5, 3, kernel, kernel))
    taps = -(-kernel // stride)
    moved = torch.from_numpy(_subpixel(weight.numpy(), stride, [taps, taps]))
    phases = F.conv2d(x, moved.double(), padding=taps - 1)
    expected = F.conv_transpose2d(x, weight.double(), stride=stride)
    assert torch.equal(F.pixel_shuffle(phases, stride)[:, :, : expected.shape[2], : expected.shape[3]], expected)


def test_what_does_not_fit_stays_a_transposed_convolution(tmp_path: Path) -> None:
    actual, expected, step = exported(network(2, 2, 0, 0, groups=2), torch.randn(8, 3, 9, 7), tmp_path / "model.onnx")
    assert np.abs(actual - expected).max() <= 2 * step
    assert "ConvTranspose" in {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}


def test_a_transposed_convolution_may_make_the_graphs_output(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1))
    actual, expected, step = exported(model, torch.randn(4, 3, 8, 8), tmp_path / "model.onnx")
    assert np.abs(actual - expected).max() <= 1.01 * step
    assert integer_share(tmp_path / "model.onnx").share == 1
