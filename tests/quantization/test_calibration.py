from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress.errors import CompressionError
from lightning_compress.export import to_onnx
from lightning_compress.models.cnn import SmallCNN
from lightning_compress.quantization import calibrate, find, strip


class Net(nn.Module):
    """A convolution with a batch norm, one with a bias, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.second, self.head = nn.Conv2d(6, 5, 3, stride=2), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).relu()
        return self.head(self.second(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.norm.running_mean += torch.randn(6) / 4  # type: ignore[operator]
        model.norm.running_var *= torch.rand(6) + 0.5  # type: ignore[operator]
        model.norm.weight += torch.randn(6) / 4
    return model.eval()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    torch.manual_seed(1)
    # Of unlike widths, so that no single batch has the mean of all.
    return [torch.randn(32, 2, 9, 9) * scale + 0.5 for scale in (1.0, 3.0, 0.5)]


def numpy_grid(weight: torch.Tensor, qmax: int) -> np.ndarray:
    """Symmetric, one scale an output channel, in NumPy."""
    w = weight.detach().numpy().astype(np.float64)
    scale = np.abs(w).reshape(len(w), -1).max(1).reshape(-1, *[1] * (w.ndim - 1)) / qmax
    return np.asarray(np.rint(w / scale) * scale, dtype=np.float32)


def rounded(net: Net, qmax: int) -> Net:
    """A plain copy with rounded weights, and nothing of ours."""
    plain = copy.deepcopy(strip(copy.deepcopy(net)))
    for layer in (plain.first, plain.second, plain.head):
        layer.weight.data = torch.tensor(numpy_grid(layer.weight, qmax))
    return plain


def mse_range(x: np.ndarray) -> tuple[float, float]:
    """Least squared error among many shrunk ranges, of 8 bits with a zero point."""
    best, found = np.inf, (0.0, 0.0)
    for share in np.linspace(0.5, 1, 400):
        low, high = min(x.min() * share, 0), max(x.max() * share, 0)
        scale = (high - low) / 255
        zero = np.rint(-low / scale)
        error = (((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale - x) ** 2).sum()
        if error < best:
            best, found = error, (low, high)
    return found


@pytest.mark.parametrize(
    ("method", "reference"),
    [
        ("minmax", lambda x: (x.min(), x.max())),
        ("percentile", lambda x: tuple(np.percentile(x, [0.01, 99.99]))),
        ("mse", mse_range),
    ],
)
def test_ranges_are_the_mean_over_the_batches_of_what_numpy_finds(
    net: Net, batches: list[torch.Tensor], method: str, reference: Callable[[np.ndarray], tuple[float, float]]
) -> None:
    qmax = 127
    plain = rounded(net, qmax)
    calibrate(net, batches, bias_correction=False, range=method, reduce_range=False)
    activations = find(net).activations  # type: ignore[union-attr]
    with torch.no_grad():
        hidden = [plain.norm(plain.first(x)).relu() for x in batches] if method == "minmax" else []
    tolerance = 0.02 if method == "mse" else 1e-4
    inputs = np.mean([reference(x.numpy()) for x in batches], 0)
    np.testing.assert_allclose(activations["first:input[0]"].range, inputs, rtol=tolerance)
    if hidden:
        found = np.stack([q.range.numpy() for q in activations.values()])
        expected = np.mean([reference(x.numpy()) for x in hidden], 0)
        assert np.isclose(found, expected, rtol=1e-4, atol=1e-5).all(1).any()


def test_a_batch_with_nan_gives_no_range_and_is_counted(net: Net, batches: list[torch.Tensor]) -> None:
    bad = batches[0].clone()
    bad[0, 0, 0, 0] = torch.nan
    calibrate(net, [bad, batches[1]], bias_correction=False)
    first = find(net).activations["first:input[0]"]  # type: ignore[union-attr]
    np.testing.assert_allclose(first.range, [batches[1].min(), batches[1].max()], rtol=1e-6)
    assert int(first.nonfinite) == 1


@pytest.mark.parametrize("bits", [4, 8])
def test_bias_correction_is_the_mean_output_error_of_rounded_weights(
    net: Net, batches: list[torch.Tensor], bits: int
) -> None:
    before = copy.deepcopy(net)
    calibrate(
        net, batches, weight_bits=bits, activation_bits=None, first_last_bits=None, reduce_range=False,
    )  # fmt: skip
    plain = rounded(before, 2 ** (bits - 1) - 1)
    x = torch.cat(batches)
    with torch.no_grad():
        # Weights alone are quantized, so that each layer's input is that of the rounded network.
        a = plain.norm(plain.first(x)).relu()
        b = plain.second(a).relu().mean((2, 3))
        errors = {
            name: (getattr(plain, name)(given) - getattr(before, name)(given)).double()
            for name, given in (("first", x), ("second", a), ("head", b))
        }
    change = (net.norm.running_mean - before.norm.running_mean).double()  # type: ignore[operator]
    torch.testing.assert_close(change, errors["first"].mean((0, 2, 3)), rtol=1e-3, atol=2e-6)
    for name, axes in (("second", (0, 2, 3)), ("head", (0,))):
        change = (getattr(net, name).bias - getattr(before, name).bias).detach().double()
        torch.testing.assert_close(change, -errors[name].mean(axes), rtol=1e-3, atol=2e-6)
    assert torch.equal(net.second.weight, before.second.weight), "float weights stay"


def test_bias_correction_brings_mean_outputs_back(net: Net, batches: list[torch.Tensor]) -> None:
    """At 3 bits, where rounding moves means visibly."""

    def error(**settings: Any) -> float:
        model = calibrate(copy.deepcopy(net), batches, weight_bits=3, first_last_bits=None, **settings)
        with torch.no_grad():
            moved = torch.cat([model(x) - net(x) for x in batches]).mean(0)
        return float(moved.norm())

    assert error(bias_correction=True) < 0.5 * error(bias_correction=False)


def test_batch_norm_statistics_are_those_that_pytorch_measures_on_the_quantized_network(
    net: Net, batches: list[torch.Tensor]
) -> None:
    plain = rounded(net, 127)
    calibrate(net, batches, activation_bits=None, batchnorm=True, reduce_range=False)
    update_bn(batches, plain)
    torch.testing.assert_close(net.norm.running_mean, plain.norm.running_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.norm.running_var, plain.norm.running_var, rtol=1e-4, atol=1e-5)
    assert not net.norm.training
    assert net.norm.momentum == 0.1


def test_onnx_runtime_runs_what_was_calibrated_and_keeps_its_predictions(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(digits.target)
    model = SmallCNN(1, 10)
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for _ in range(3):
        for given, label in DataLoader(TensorDataset(x[:1200], y[:1200]), 50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(given), label).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        dense = model(x[1200:]).argmax(1)
    calibrate(model, x[:256].split(64))
    with torch.no_grad():
        simulated = model(x[1200:])
    to_onnx(model, x[:2], tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (scores,) = session.run(None, {session.get_inputs()[0].name: x[1200:].numpy()})
    assert (scores.argmax(1) == simulated.argmax(1).numpy()).mean() > 0.995
    assert (scores.argmax(1) == dense.numpy()).mean() > 0.985
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "model.onnx")).graph.node]
    assert "QuantizeLinear" in kinds


def test_a_call_that_is_not_the_forward_alone_calibrates_the_same(net: Net, batches: list[torch.Tensor]) -> None:
    direct = calibrate(copy.deepcopy(net), batches)
    labelled = [(x, torch.zeros(len(x))) for x in batches]
    through = calibrate(copy.deepcopy(net), labelled, call=lambda model, batch: model(batch[0]).sum())
    for one, other in zip(find(direct).activations.values(), find(through).activations.values(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(one.range, other.range)
    assert all(torch.equal(a, b) for a, b in zip(direct.parameters(), through.parameters(), strict=True))


def test_bad_input_is_refused_and_the_model_stays_as_it_was(net: Net, batches: list[torch.Tensor]) -> None:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CompressionError, match=r"calibrate.batches: expected at least one batch"):
        calibrate(net, [])
    with pytest.raises(CompressionError, match=r"calibrate.range: expected minmax, percentile or mse"):
        calibrate(net, batches, range="learned")
    with pytest.raises(RuntimeError):
        calibrate(net, [batches[0], batches[0][:, :1]])
    with pytest.raises(CompressionError, match=r"calibrate.batchnorm: .* Give larger ones"):
        calibrate(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), [torch.randn(1, 4)], batchnorm=True)
    assert find(net) is None
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
