"""Biases in evaluation: those of the deployed file, by NumPy and by the file itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import ConcatNet, EncoderNet, FunctionalResidualNet, Mlp, ResidualNet
from torch import nn

from lightning_compress import CompressionError
from lightning_compress.export import load_packed, save_packed
from lightning_compress.export.deployable import deployable
from lightning_compress.quantization import find, prepare, strip
from lightning_compress.quantization.quantizers.bias import filling, folded, with_room

IMAGE = (8, 3, 8, 8)


def trained(model: nn.Module, shape: tuple[int, ...], **settings: Any) -> nn.Module:
    """A model whose ranges and batch norms have seen batches, in eval mode, with biases that matter."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    prepare(model, example_inputs=torch.randn(*shape), **settings).train()
    for _ in range(3):
        model(torch.randn(*shape))
    return model.eval()


@pytest.mark.parametrize("settings", [{}, {"weight_bits": 3}, {"weight_granularity": "tensor"}, {"range": "learned"}])
@pytest.mark.parametrize(
    ("network", "shape"),
    [(ResidualNet, IMAGE), (FunctionalResidualNet, IMAGE), (ConcatNet, IMAGE), (EncoderNet, (8, 7, 6)), (Mlp, (8, 12))],
)
def test_an_evaluated_model_is_its_deployed_form_but_for_the_order_of_sums(
    network: type[nn.Module], shape: tuple[int, ...], settings: dict[str, Any]
) -> None:
    model = trained(network(), shape, **settings)
    x = torch.randn(256, *shape[1:])
    with torch.no_grad():
        actual, expected = model(x), deployable(model, x[:2])(x)
    # A value between two integers may still go either way by the order of a sum, in few examples.
    near = (actual - expected).abs() <= 1e-5 * expected.abs().mean()
    assert near.all(dim=1).float().mean() >= 0.99


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_bias_is_rounded_as_numpy_rounds_it(bits: int) -> None:
    layer = trained(nn.Sequential(nn.Linear(6, 4)), (16, 6), weight_bits=bits, first_last_bits=None, reduce_range=False)
    weight, bias = (p.detach().double().numpy() for p in layer[0].parameters())
    quantizer = find(layer).activations["0:input[0]"]
    qmax = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=1) / qmax / {2: 64, 4: 16, 8: 1}[bits] * float(quantizer.scale)
    expected = np.rint(bias / scale) * scale
    assert np.abs(expected - bias).max() > 0
    (hook,) = find(layer).biases
    np.testing.assert_allclose(hook.rounded().detach().numpy(), expected, rtol=1e-6, atol=1e-7)


def test_training_and_the_parameters_are_left_alone() -> None:
    torch.manual_seed(0)
    model = trained(ResidualNet(), IMAGE)
    before = copy.deepcopy(model.state_dict())
    seen: list[torch.Tensor | None] = []
    model.block1.bn1.register_forward_pre_hook(lambda module, _: seen.append(module.__dict__.get("bias")))
    with torch.no_grad():
        model(torch.randn(*IMAGE))
        model.train()(torch.randn(*IMAGE))
    assert seen[0] is not None
    assert not torch.equal(seen[0], before["block1.bn1.bias"])
    assert seen[1] is None
    assert "bias" not in model.block1.bn1.__dict__
    assert torch.equal(model.state_dict()["block1.bn1.bias"], before["block1.bn1.bias"])


def test_a_switched_off_quantization_rounds_no_bias() -> None:
    model = trained(ResidualNet(), IMAGE)
    x = torch.randn(*IMAGE)
    find(model).enabled = False
    with torch.no_grad():
        actual = model(x)
        assert torch.equal(actual, strip(model)(x))


def test_gradients_of_a_frozen_batch_norm_pass_the_rounding_by() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), IMAGE, backend=None)
    model(torch.randn(*IMAGE)).sum().backward()
    torch.testing.assert_close(model[1].bias.grad, torch.full((4,), 8.0 * 36))


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_without_parameters_is_rounded_too(affine: bool) -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine), nn.ReLU()), IMAGE)
    x = torch.randn(*IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(model(x), deployable(model, x)(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_a_transposed_convolution_in_groups_keeps_its_batch_norm_and_is_exported(norm: bool, granularity: str) -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, 2, groups=2)]
    model = trained(nn.Sequential(*layers, *([nn.BatchNorm2d(6)] * norm)), IMAGE, weight_granularity=granularity)
    x = torch.randn(*IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(model(x), deployable(model, x)(x), rtol=1e-4, atol=1e-5)


def test_a_loaded_packed_file_rounds_the_same_biases(tmp_path: Path) -> None:
    model = trained(ResidualNet(), IMAGE, weight_bits=4)
    save_packed(model, tmp_path / "model.packed")
    loaded = load_packed(tmp_path / "model.packed", ResidualNet(), quantized=True).eval()
    x = torch.randn(*IMAGE)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(
    ("qmax", "narrow", "expected"), [(127, False, 1), (7, False, 16), (1, False, 64), (63, True, 1)]
)
def test_integers_of_few_bits_fill_a_byte(qmax: int, narrow: bool, expected: int) -> None:
    assert filling(qmax, narrow) == expected
    assert qmax * expected <= (63 if narrow else 127) < 2 * qmax * expected


def test_a_bias_that_would_overflow_widens_its_channel_alone() -> None:
    scale = with_room(torch.tensor([1e-9, 1e-3]), torch.tensor([4.0, 4.0]), 0.5)
    torch.testing.assert_close(scale, torch.tensor([4.0 / (0.5 * 2**30), 1e-3]))


def test_a_norm_without_statistics_cannot_be_folded() -> None:
    with pytest.raises(CompressionError, match="BatchNorm1d without running statistics cannot be folded"):
        folded(nn.BatchNorm1d(3, track_running_stats=False), None)
