"""ExecuTorch files, run by its Python runtime. Collected by ``make test-extras``: needs the extra ``executorch``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning_modules import PlainModule, loader, quiet_trainer
from networks import EncoderNet, Mlp, MobileNet, ResidualNet, VisionTransformer
from torch import nn
from torch.nn import functional as F

from lightning_compress import CompressedExport, CompressionError, QuantizationAwareTraining
from lightning_compress.export.executorch.write import ExecuTorchModel, to_executorch
from lightning_compress.models import SmallCNN
from lightning_compress.quantization import prepare

NETWORKS = [
    pytest.param(lambda: ResidualNet(width=16), (64, 3, 8, 8), id="residual"),
    pytest.param(lambda: EncoderNet(width=32), (64, 7, 6), id="encoder"),
]


def samples(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise around one of five directions, and which."""
    directions = torch.randn(5, *shape[1:], generator=torch.Generator().manual_seed(7))
    y = torch.randint(0, 5, shape[:1])
    return torch.randn(*shape) + directions[y], y


def trained(model: nn.Module, shape: tuple[int, ...], steps: int = 40, **settings: object) -> nn.Module:
    """A model that has learned to tell apart which of five directions its input lies in, in eval mode."""
    prepare(model, example_inputs=torch.randn(*shape), backend="executorch", **settings).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        x, y = samples(shape)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("network", "shape"), NETWORKS)
def test_the_file_says_what_the_fake_quantized_model_says(
    network: type[nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = trained(network(), shape)
    to_executorch(model, torch.randn(*shape), tmp_path / "model.pte")
    # Outputs are integers of 8 bits: on pure noise, two classes now and then tie.
    x, _ = samples((512, *shape[1:]))
    with torch.no_grad():
        expected = model(x)
    (actual,) = ExecuTorchModel(tmp_path / "model.pte", model.forward)(x)
    assert (actual.argmax(1) == expected.argmax(1)).float().mean() >= 0.995
    assert (actual - expected).abs().mean() <= 0.01 * expected.abs().mean()


def test_example_images_in_channels_last_order_give_the_same_file(tmp_path: Path) -> None:
    model = trained(SmallCNN(1, 10, width=16), (8, 1, 8, 8), steps=3)
    # For one channel this order counts as contiguous, too: strides (64, 1, 8, 1).
    images = torch.randn(64, 8, 8, 1).permute(0, 3, 1, 2)
    to_executorch(model, images[:2], tmp_path / "model.pte")
    (actual,) = ExecuTorchModel(tmp_path / "model.pte", model.forward)(images)
    with torch.no_grad():
        expected = model(images)
    assert (actual - expected).abs().mean() <= 0.02 * expected.abs().mean()


@pytest.mark.parametrize(
    ("network", "shape"),
    [pytest.param(MobileNet, (8, 3, 16, 16), id="mobile"), pytest.param(VisionTransformer, (8, 3, 8, 8), id="vit")],
)
def test_other_networks_give_their_own_values(network: type[nn.Module], shape: tuple[int, ...], tmp_path: Path) -> None:
    model = trained(network(), shape, steps=3)
    to_executorch(model, torch.randn(*shape), tmp_path / "model.pte")
    x = torch.randn(64, *shape[1:])
    (actual,) = ExecuTorchModel(tmp_path / "model.pte", model.forward)(x)
    with torch.no_grad():
        expected = model(x)
    assert (actual - expected).abs().mean() <= 0.02 * expected.abs().mean()


def test_a_convolutional_network_is_one_call_of_xnnpack_with_a_byte_a_weight(tmp_path: Path) -> None:
    model = trained(ResidualNet(width=32), (8, 3, 8, 8), steps=1)
    file = to_executorch(model, torch.randn(8, 3, 8, 8), tmp_path / "model.pte")
    data = file.path.read_bytes()
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert data.count(b"XnnpackBackend") == 1
    assert b"aten::" not in data, "an operator is left to the portable kernels"
    assert weights <= file.bytes <= 1.2 * weights + 10_000


def test_batches_of_any_size_run_piece_by_piece(tmp_path: Path) -> None:
    model = trained(Mlp(), (8, 12), steps=1)
    assert to_executorch(model, torch.randn(8, 12), tmp_path / "two.pte", batch_size=2).batch_size == 2
    two = ExecuTorchModel(tmp_path / "two.pte", model.forward)
    x = torch.randn(6, 12)
    whole, last = two(x)[0], two(x[4:])[0]
    assert torch.equal(whole[4:], last)
    with pytest.raises(CompressionError, match=r"takes inputs of \[2, 12\] or a multiple"):
        two(torch.randn(3, 12))
    with pytest.raises(CompressionError, match=r"takes inputs of \[2, 12\]"):
        two(torch.randn(2, 13))


def test_a_float_model_gives_its_own_values(tmp_path: Path) -> None:
    model = ResidualNet()
    model(torch.randn(8, 3, 8, 8))
    model.eval()
    to_executorch(model, torch.randn(2, 3, 8, 8), tmp_path / "model.pte")
    x = torch.randn(5, 3, 8, 8)
    (actual,) = ExecuTorchModel(tmp_path / "model.pte", model.forward)(x)
    torch.testing.assert_close(actual, model(x).detach(), rtol=1e-3, atol=1e-4)


def test_narrow_activations_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="activations of 8 bits"):
        to_executorch(trained(Mlp(), (8, 12), steps=1, activation_bits=4), torch.randn(2, 12), tmp_path / "model.pte")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "none.pte").write_bytes(b"nothing of the kind")
    with pytest.raises(CompressionError, match="ExecuTorch cannot load this file"):
        ExecuTorchModel(tmp_path / "none.pte", nn.Linear(2, 2).forward)


def test_an_export_writes_runs_and_reports_executorch(tmp_path: Path) -> None:
    callback = CompressedExport(tmp_path, formats=["executorch"])
    quiet_trainer(callbacks=[callback, QuantizationAwareTraining(backend="executorch")]).fit(
        PlainModule(), loader(), loader(seed=1)
    )
    report = json.loads((tmp_path / "report.json").read_text())
    deployed = report["results"]["deployed"]
    assert (deployed["source"], deployed["bytes"]) == ("model.pte", (tmp_path / "model.pte").stat().st_size)
    assert deployed["runtime"].startswith("ExecuTorch ")
    assert report["agreement"] >= 0.95
    assert report["latency"]["ratio"]["median"] > 0
