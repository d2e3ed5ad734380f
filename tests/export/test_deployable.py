"""The deployable copy: batch norm folded exactly, biases that fit into int32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from networks import ConcatNet, FunctionalResidualNet, ResidualNet
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.export import to_onnx
from lightning_compress.export.deployable import deployable
from lightning_compress.quantization import find, prepare

IMAGE = (8, 3, 8, 8)


def trained(model: nn.Module) -> nn.Module:
    prepare(model, example_inputs=torch.randn(*IMAGE))
    model.train()
    for _ in range(4):
        model(torch.randn(*IMAGE))
    return model.eval()


@pytest.mark.parametrize("network", [ResidualNet, FunctionalResidualNet, ConcatNet])
def test_folded_norms_compute_nothing_and_the_answers_stay(network: type[nn.Module]) -> None:
    model = trained(network())
    copy = deployable(model, torch.randn(*IMAGE))
    norms = [module for module in copy.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.fill_(torch.nan)
    x = torch.randn(*IMAGE)
    with torch.no_grad():
        # Rounding may tip single elements to the next step; a wrong fold would move all of them.
        assert (copy(x) - model(x)).abs().mean() < 0.005 * model(x).abs().mean()


def test_folding_without_rounding_is_exact_to_float_precision() -> None:
    model = ResidualNet()
    for _ in range(3):
        model(torch.randn(*IMAGE))
    model.double().eval()
    x = torch.randn(*IMAGE, dtype=torch.float64)
    torch.testing.assert_close(deployable(model, x)(x), model(x), rtol=1e-12, atol=1e-12)


class NormAndActivation(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(super().forward(x))


class Both(nn.Module):
    """Returns what the convolution makes beside what the norm makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x)
        return self.norm(y), y


class Kept(nn.Module):
    """Returns what a hook has kept of the convolution's result."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kept: list[torch.Tensor] = []
        hook = self.net[0].register_forward_hook(lambda module, args, output: kept.append(output))
        y = self.net(x)
        hook.remove()
        return y, *kept


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(
    "network",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), NormAndActivation(8), nn.Conv2d(8, 4, 3)),
        Both,
        lambda: nn.Sequential(nn.Identity(), nn.Sequential(Both())),
        Kept,
    ],
    ids=["activation in the norm", "both returned", "both returned by a block", "kept by a hook"],
)
def test_a_file_returns_what_a_norm_does_besides_and_what_its_layer_makes(
    network: Callable[[], nn.Module], quantized: bool, tmp_path: Path
) -> None:
    model, x = network(), torch.randn(*IMAGE)
    trained(model) if quantized else model(x)
    to_onnx(model.eval(), x, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(x) if isinstance(model(x), tuple) else (model(x),)
    for actual, wanted in zip(session.run(None, {session.get_inputs()[0].name: x.numpy()}), expected, strict=True):
        assert (torch.from_numpy(actual) - wanted).abs().mean() < 0.01 * wanted.abs().mean()


def test_a_norm_folds_through_the_containers_around_its_layer() -> None:
    wrapped = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3))), nn.Sequential(nn.BatchNorm2d(8)))
    model = trained(nn.Sequential(wrapped, nn.Conv2d(8, 4, 3)))
    assert find(model).placement.folds == {"0.0.0.0": "0.1.0"}


class Tied(nn.Module):
    """A norm follows one of two reads of a weight."""

    def __init__(self, other: str) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        nn.init.uniform_(self.norm.weight, 2, 3)
        if other == "layer":
            self.head.weight = self.conv.weight
        elif other == "function":
            self.kernel = self.head.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "kernel"):
            return self.head(self.norm(F.conv2d(x, self.kernel)))
        return self.head(self.norm(self.conv(x)))


@pytest.mark.parametrize("other", ["layer", "function"])
def test_a_norm_does_not_fold_into_a_weight_that_others_read(other: str) -> None:
    model, x = trained(Tied(other)), torch.randn(*IMAGE)
    with torch.no_grad():
        assert (deployable(model, x)(x) - model(x)).abs().mean() < 0.005 * model(x).abs().mean()


def test_a_negative_gamma_moves_its_sign_into_the_integers() -> None:
    model = ResidualNet()
    with torch.no_grad():
        model.stem[1].weight[0] = -0.5
        model.stem[1].weight[1] = 0.0
    trained(model)
    integers = find(model).layers["stem.0.weight"].integers()
    copy = deployable(model, torch.randn(*IMAGE))
    stored = copy.stem[0].weight_integers
    assert torch.equal(stored[0], -integers[0])
    assert (stored[1] == 0).all()
    assert (copy.stem[0].weight_scale > 0).all()
    x = torch.randn(*IMAGE)
    assert (copy(x) - model(x)).abs().mean() < 0.01 * model(x).abs().mean()


def test_a_large_bias_beside_tiny_weights_does_not_overflow_its_integers() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[0] = 1e-30
        model[0].bias[0] = 1e3
    prepare(model, example_inputs=torch.randn(1, 4))
    model.train()(torch.randn(8, 4))
    copy = deployable(model.eval(), torch.randn(1, 4))
    restored = copy[0].bias_integers.double() * copy[0].bias_scale.double()
    assert restored[0] == pytest.approx(1e3, rel=1e-6)


class Decoding(nn.Module):
    """Has a branch that only evaluation runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.integral = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return x if self.training else self.integral(x.softmax(1))


def test_a_branch_that_only_evaluation_runs_is_written_in_float_and_named() -> None:
    model, x = trained(Decoding()), torch.randn(*IMAGE)
    assert [line.partition(":")[0] for line in find(model).unreached] == ["integral"] * 2
    with torch.no_grad():
        torch.testing.assert_close(deployable(model, x)(x), model(x))


def test_without_any_training_batch_nothing_is_written() -> None:
    model, x = Decoding(), torch.randn(*IMAGE)
    prepare(model, example_inputs=x)
    with pytest.raises(CompressionError, match="seen no training batch"):
        deployable(model.eval(), x)
