"""OpenVINO IR, run by OpenVINO. Collected by ``make test-extras`` alone, since it needs the extra ``openvino``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from networks import EncoderNet, Mlp, ResidualNet
from torch import nn
from torch.nn import functional as F

from lightning_compress import CompressionError
from lightning_compress.export import to_onnx
from lightning_compress.export.onnx.session import OnnxModel
from lightning_compress.export.openvino import OpenVinoModel, to_openvino
from lightning_compress.foundation.processor import has_vnni
from lightning_compress.quantization import prepare

NETWORKS = [
    pytest.param(lambda: ResidualNet(width=16), (64, 3, 8, 8), id="residual"),
    pytest.param(lambda: EncoderNet(width=32), (64, 7, 6), id="encoder"),
]


def trained(model: nn.Module, shape: tuple[int, ...], steps: int = 40) -> nn.Module:
    """A model that has learned to tell apart which of five directions its input lies in, in eval mode."""
    directions = torch.randn(5, *shape[1:])
    prepare(model, example_inputs=torch.randn(*shape), backend="openvino").train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        y = torch.randint(0, 5, shape[:1])
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(*shape) + directions[y]), y).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("network", "shape"), NETWORKS)
def test_the_file_says_what_the_fake_quantized_model_says(
    network: type[nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = trained(network(), shape)
    to_openvino(model, torch.randn(*shape), tmp_path / "model.xml")
    x = torch.randn(512, *shape[1:])
    with torch.no_grad():
        expected = model(x)
    (actual,) = OpenVinoModel(tmp_path / "model.xml", model.forward)(x)
    assert (actual.argmax(1) == expected.argmax(1)).float().mean() >= 0.995
    assert (actual - expected).abs().mean() <= 0.01 * expected.abs().mean()


@pytest.mark.parametrize(("network", "shape"), NETWORKS)
def test_the_quantized_graph_means_the_same_as_in_onnx_runtime(
    network: type[nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = trained(network(), shape, steps=3)
    to_openvino(model, torch.randn(*shape), tmp_path / "model.xml")
    to_onnx(model, torch.randn(*shape), tmp_path / "model.onnx")
    x = torch.randn(256, *shape[1:])
    (ours,) = OpenVinoModel(tmp_path / "model.xml", model.forward, exact=True)(x)
    (theirs,) = OnnxModel(tmp_path / "model.onnx", model.forward)(x)
    assert (ours - theirs).abs().mean() <= 0.005 * theirs.abs().mean()


def test_convolutions_and_linear_layers_run_in_integers(tmp_path: Path) -> None:
    model = trained(ResidualNet(width=16), (8, 3, 8, 8), steps=1)
    to_openvino(model, torch.randn(8, 3, 8, 8), tmp_path / "model.xml")
    found = OpenVinoModel(tmp_path / "model.xml", model.forward, exact=False).precisions()
    assert found["Convolution", "u8"] == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert found["FullyConnected", "u8"] == 1
    assert not any(found[name, "f32"] for name in ("Convolution", "FullyConnected", "MatMul"))


def test_integers_are_computed_in_float_where_they_would_saturate(tmp_path: Path) -> None:
    model = trained(Mlp(), (8, 12), steps=1)
    to_openvino(model, torch.randn(8, 12), tmp_path / "model.xml")
    assert OpenVinoModel(tmp_path / "model.xml", model.forward).exact is (has_vnni() is False)


def test_weights_are_stored_in_a_byte_each(tmp_path: Path) -> None:
    model = trained(Mlp(64, 128), (8, 64), steps=1)
    file = to_openvino(model, torch.randn(8, 64), tmp_path / "model.xml")
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert weights <= file.weights.stat().st_size <= 1.2 * weights
    assert file.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_the_batch_size_is_free_and_metadata_is_kept(tmp_path: Path) -> None:
    model = trained(Mlp(), (8, 12), steps=1)
    to_openvino(model, torch.randn(1, 12), tmp_path / "model.xml", metadata={"classes": "5"})
    loaded = OpenVinoModel(tmp_path / "model.xml", model.forward)
    assert [loaded(torch.randn(n, 12))[0].shape[0] for n in (1, 3)] == [1, 3]
    assert openvino.Core().read_model(tmp_path / "model.xml").get_rt_info(["lightning_compress", "classes"]) == "5"


def test_a_float_model_gives_its_own_values(tmp_path: Path) -> None:
    model = ResidualNet()
    model(torch.randn(8, 3, 8, 8))
    model.eval()
    to_openvino(model, torch.randn(2, 3, 8, 8), tmp_path / "model.xml")
    x = torch.randn(5, 3, 8, 8)
    (actual,) = OpenVinoModel(tmp_path / "model.xml", model.forward)(x)
    np.testing.assert_allclose(actual.numpy(), model(x).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_a_file_that_is_none_and_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none.xml").write_text("nothing of the kind")
    with pytest.raises(CompressionError, match="OpenVINO cannot load this file"):
        OpenVinoModel(tmp_path / "none.xml", nn.Linear(2, 2).forward)
    model = Mlp().eval()
    to_openvino(model, torch.randn(2, 12), tmp_path / "model.xml")
    with pytest.raises(CompressionError, match=r"input 'input' has shape \[\?,12\] in the file, and \[2, 13\]"):
        OpenVinoModel(tmp_path / "model.xml", model.forward)(torch.randn(2, 13))
    with pytest.raises(CompressionError, match=r"ends in \.xml"):
        to_openvino(model, torch.randn(2, 12), tmp_path / "model.onnx")
