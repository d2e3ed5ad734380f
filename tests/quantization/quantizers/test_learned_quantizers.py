"""Learned ranges on live models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_modules import PlainModule, loader, quiet_trainer
from networks import Mlp, ResidualNet
from torch import nn

from lightning_compress import CompressionError
from lightning_compress.callbacks.quantization import QuantizationAwareTraining
from lightning_compress.export import load_packed, save_packed, to_onnx
from lightning_compress.export.onnx.session import open_session
from lightning_compress.quantization import find, prepare
from lightning_compress.quantization.ranges.optimizer import RangeOptimizer


def prepared(bits: int = 3, **settings: Any) -> nn.Module:
    return prepare(
        Mlp(),
        weight_bits=bits,
        activation_bits=bits,
        range="learned",
        first_last_bits=None,
        example_inputs=torch.randn(2, 12),
        **settings,
    )


def fitted(model: nn.Module, *, learn: bool, steps: int = 60) -> float:
    """Fit random targets; returns the last loss."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 12, generator=generator), torch.randint(0, 5, (64,), generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    ranges = RangeOptimizer(lr=0.01)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model.train()(x), y)
        loss.backward()
        if learn:
            ranges.track(find(model).parameters())
            ranges.step()
        optimizer.step()
    return float(loss.detach())


def test_scales_are_no_parameters_of_the_model() -> None:
    model = prepared()
    assert list(model.state_dict()) == list(Mlp().state_dict())
    assert len(list(model.parameters())) == len(list(Mlp().parameters()))
    # Three weights with a scale a channel, three activations with scale and shift.
    assert len(find(model).parameters()) == 3 + 2 * 3


def test_training_moves_the_scales_and_helps() -> None:
    torch.manual_seed(0)
    fixed = fitted(prepared(2), learn=False)
    torch.manual_seed(0)
    model = prepared(2)
    learned = fitted(model, learn=True)
    assert learned < fixed
    for quantizer in find(model).layers.values():
        started = torch.tensor([float(g) for g in quantizer.log_scale.detach().flatten()])
        assert started.isfinite().all()


def test_the_gradient_of_a_scale_is_the_slope_of_the_loss() -> None:
    model = prepared(4)
    model.train()(torch.randn(64, 12))
    quantizer = next(iter(find(model).layers.values()))
    probe = torch.randn(quantizer.weight.shape)
    quantizer.log_scale.grad = None
    (quantizer.fake_quantize() * probe).sum().backward()
    # LSQ, eq. 3, by hand: per channel sum of (round(v) - v) inside and of the clipped end outside, times 1/sqrt(N q).
    scale = quantizer.scale()[:, None]
    v = quantizer.weight.detach() / scale
    slope = torch.where(v.abs() < 7, v.round() - v, v.sign() * 7)
    factor = 1 / (quantizer.weight.shape[1] * 7) ** 0.5
    expected = (probe * slope).sum(1) * factor * scale[:, 0]
    torch.testing.assert_close(quantizer.log_scale.grad, expected)


def test_zero_stays_exact_while_offsets_learn() -> None:
    model = prepared(4)
    fitted(model, learn=True)
    find(model).synchronize()
    for quantizer in find(model).activations.values():
        zero_point = float(quantizer.zero_point)
        assert zero_point == round(zero_point)
        assert 0 <= zero_point <= 15
        assert float(quantizer(torch.zeros(3))[0]) == 0.0


def test_what_was_learned_is_what_is_exported_and_packed(tmp_path: Path) -> None:
    model = prepared(4)
    fitted(model, learn=True)
    model.eval()
    x = torch.randn(32, 12)
    expected = model(x).detach()
    file = to_onnx(model, x[:2], tmp_path / "model.onnx")
    actual = open_session(file.path).run(None, {file.input_names[0]: x.numpy()})[0]
    assert (torch.from_numpy(actual) - expected).abs().mean() < 0.02 * expected.abs().mean()
    save_packed(model, tmp_path / "model.packed")
    loaded = load_packed(tmp_path / "model.packed", Mlp()).eval()
    torch.testing.assert_close(loaded(x), expected, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_with_learned_ranges_ends_bit_identical(tmp_path: Path) -> None:
    def run(directory: Path, ckpt_path: str | None = None) -> tuple[PlainModule, dict[str, Any]]:
        torch.manual_seed(1)
        callback = QuantizationAwareTraining(4, 4, range="learned", start=3)
        checkpoint = ModelCheckpoint(directory, filename="{step}", every_n_train_steps=8, save_top_k=-1)
        module = PlainModule()
        trainer = quiet_trainer(callbacks=[callback, checkpoint], enable_checkpointing=True)
        trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True)
        return module, callback.state_dict()

    whole, state = run(tmp_path / "a")
    resumed, again = run(tmp_path / "b", str(tmp_path / "a" / "step=8.ckpt"))
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())
    for name, step in state["weight_steps"].items():
        assert torch.equal(step["log_scale"], again["weight_steps"][name]["log_scale"])
    for name, quantizer in state["activations"].items():
        assert torch.equal(quantizer["log_scale"], again["activations"][name]["log_scale"])


def test_the_callback_trains_the_scales() -> None:
    found = []
    for lr in (1e-9, 1e-2):
        torch.manual_seed(1)
        callback = QuantizationAwareTraining(4, 4, range="learned", range_lr=lr)
        quiet_trainer(callbacks=[callback]).fit(PlainModule(), loader())
        found.append(callback.quantization.layers["net.fc.weight"].log_scale.detach().clone())
    assert (found[0] - found[1]).abs().max() > 0.02


def test_groups_are_refused_and_so_is_a_rate_of_zero() -> None:
    with pytest.raises(CompressionError, match="Scales of groups are not learned"):
        prepare(ResidualNet(), range="learned", weight_granularity="group:32", example_inputs=torch.randn(1, 3, 8, 8))
    with pytest.raises(CompressionError, match=r"QuantizationAwareTraining\.range_lr: expected a positive number"):
        QuantizationAwareTraining(range="learned", range_lr=0)


def test_a_first_batch_that_is_not_finite_starts_nothing() -> None:
    model = prepared(4).train()
    bad = torch.randn(8, 12)
    bad[3, 5] = torch.nan
    model(bad)
    name, quantizer = next(iter(find(model).activations.items()))
    assert not quantizer.observed, name
    good = torch.randn(8, 12)
    model(good)
    assert quantizer.observed
    assert int(quantizer.nonfinite) == 1
    other = prepared(4).train()
    other(good)
    assert torch.equal(quantizer.log_scale, find(other).activations[name].log_scale)
