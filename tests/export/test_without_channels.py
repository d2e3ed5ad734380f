"""Networks that were pruned by channels and trained in few bits: what runs is smaller and answers alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import networks
import onnx
import pytest
import torch
import torch.nn.functional as F
from lightning_modules import PlainModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import CompressedExport, CompressionError, GradualMagnitudePruning, QuantizationAwareTraining
from lightning_compress.export import load_packed, to_onnx
from lightning_compress.export.onnx.session import open_session
from lightning_compress.export.without_channels import without_channels
from lightning_compress.pruning import Pruner
from lightning_compress.quantization import prepare


def trained(kind: type[nn.Module], steps: int = 20, **settings: Any) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = kind()
    x = torch.randint(0, 24, (16, 8)) if kind is networks.Gpt else torch.randn(16, 3, 8, 8)
    pruner = Pruner(
        model, final_sparsity=0.5, start=0, end=0, pattern="channel", distribution="uniform", example_inputs=x[:2]
    )
    prepare(model, example_inputs=x[:2], **settings)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for step in range(steps):
        pruner.step(step)
        optimizer.zero_grad()
        out = model(x)
        F.mse_loss(out, torch.sin(3 * torch.arange(out.numel())).reshape(out.shape)).backward()
        optimizer.step()
    pruner.apply()
    return model.eval(), x


KINDS = [networks.ResidualNet, networks.MobileNet, networks.ConcatNet, networks.VisionTransformer, networks.Gpt]


@pytest.mark.parametrize("kind", KINDS)
def test_the_smaller_quantized_model_answers_as_the_masked_one(kind: type[nn.Module]) -> None:
    model, x = trained(kind)
    smaller, _ = without_channels(model, x[:2])
    with torch.no_grad():
        expected, found = model(x), smaller(x)
    # Sums over fewer terms round otherwise, so a value at a tie may take the next integer.
    assert float((found - expected).abs().mean()) < 1e-4 * float(expected.abs().max())
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, smaller))
    assert after < 0.8 * before


@pytest.mark.parametrize("settings", [{"range": "learned"}, {"range": "mse"}, {"weight_granularity": "tensor"}])
def test_weights_keep_their_scales(settings: dict[str, Any]) -> None:
    model, x = trained(networks.ResidualNet, weight_bits=4, **settings)
    smaller, shrunk = without_channels(model, x[:2])
    from lightning_compress.quantization import find

    before, after = find(model), find(smaller)
    assert before is not None
    assert after is not None
    for name, quantizer in after.layers.items():
        kept = before.layers[name].integers().flatten()[shrunk.kept[name]]
        assert torch.equal(quantizer.integers(), kept)


def test_scales_for_groups_of_inputs_are_refused() -> None:
    model, x = trained(networks.PlainNet, weight_granularity="group:4")
    with pytest.raises(CompressionError, match="scales for groups of inputs"):
        without_channels(model, x[:2])


def test_the_smaller_quantized_model_runs_in_onnx_runtime(tmp_path: Path) -> None:
    model, x = trained(networks.ResidualNet)
    smaller, _ = without_channels(model, x[:2])
    full = to_onnx(model, x[:2], tmp_path / "full.onnx")
    small = to_onnx(smaller, x[:2], tmp_path / "small.onnx")
    answers = [open_session(f.path).run(None, {f.input_names[0]: x.numpy()})[0] for f in (full, small)]
    # Sums of integers are exact, so nothing differs.
    assert (answers[0] == answers[1]).mean() > 0.99
    assert small.bytes < 0.8 * full.bytes


def test_the_callback_exports_what_is_left_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 8, 8)
    loader = DataLoader(TensorDataset(x, x.mean((2, 3)).argmax(1)), batch_size=16)
    module = PlainModule()
    export = CompressedExport(tmp_path / "out", formats=["onnx", "packed"], latency=False)
    L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            GradualMagnitudePruning(
                0.5, pattern="channel", distribution="uniform", start=2, end=6, every=2, example_inputs=x[:2]
            ),
            QuantizationAwareTraining(start=4),
            export,
        ],
    ).fit(module, loader, loader)
    report = export.report
    assert report is not None
    assert any("pruned channels and attention heads were removed" in note for note in report["notes"])
    shapes = [tuple(item.dims) for item in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer]
    assert (4, 4, 3, 3) in shapes
    assert (16, 16, 3, 3) not in shapes
    assert report["agreement"] == 1.0
    fresh = load_packed(tmp_path / "out" / "model.packed", PlainModule())
    assert fresh.net.block1.conv1.weight.shape == (8, 8, 3, 3)
