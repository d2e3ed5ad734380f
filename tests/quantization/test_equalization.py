"""Cross-layer equalization against the paper's formula in NumPy; what a network computes stays."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from lightning_compress.quantization import calibrate, strip


class TwoReaders(nn.Module):
    """What the first layer makes is added to what the second one makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).relu()
        return hidden + self.second(hidden)


class HandsOut(nn.Module):
    """The first layer's result is a result of the network as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.first(x)
        return hidden, self.second(hidden.relu())


def equalized(net: nn.Module, x: torch.Tensor) -> nn.Module:
    return strip(calibrate(copy.deepcopy(net), [x], equalize=True, bias_correction=False))


def unequal(net: nn.Module) -> nn.Module:
    """Channels of very unlike ranges, and batch-norm statistics that are not those of a new norm."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10 ** torch.empty(len(parameter), *[1] * (parameter.ndim - 1)).uniform_(-1, 1))
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.2, 3)
                norm.running_var.uniform_(0.2, 3)
                norm.running_mean.normal_()
    return net.eval()


def ranges(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest absolute weight of each output channel of the first and of each input channel of the second."""
    axes = (0, *range(2, second.ndim))
    return np.abs(first).reshape(len(first), -1).max(1), np.abs(second).max(axes)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), id="linear"),
        pytest.param(
            lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 3, 1)), id="conv"
        ),
    ],
)
def test_a_pair_gets_the_geometric_mean_of_both_ranges(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = unequal(build())
    x = torch.randn(4, 5) if isinstance(net[0], nn.Linear) else torch.randn(4, 2, 9, 9)
    before = ranges(net[0].weight.detach().numpy(), net[-1].weight.detach().numpy())
    found = equalized(net, x)
    after = ranges(found[0].weight.detach().numpy(), found[-1].weight.detach().numpy())
    mean = np.sqrt(before[0] * before[1])
    np.testing.assert_allclose(after[0], mean, rtol=1e-5)
    np.testing.assert_allclose(after[1], mean, rtol=1e-5)
    factor = np.sqrt(before[0] / before[1])
    np.testing.assert_allclose(found[0].bias.detach(), net[0].bias.detach().numpy() / factor, rtol=1e-5)
    torch.testing.assert_close(found(x), net(x), rtol=1e-4, atol=1e-5)


def test_batch_norms_take_the_division_and_depthwise_layers_are_equalized_on_both_sides() -> None:
    torch.manual_seed(0)
    net = unequal(
        nn.Sequential(
            nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )
    )  # fmt: skip
    x = torch.randn(4, 3, 7, 7)
    found = equalized(net, x)
    torch.testing.assert_close(found(x), net(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0].weight, net[0].weight)

    def folded(layer: int) -> np.ndarray:
        norm = found[layer + 1]
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return (found[layer].weight * factor[:, None, None, None]).detach().numpy()

    for first, second in ((folded(0), folded(3)[:, 0][None]), (folded(3), found[6].weight.detach().numpy())):
        made = np.abs(first).reshape(8, -1).max(1)
        # Iterated over a chain, until a round changes less than a thousandth.
        read = (
            np.abs(found[3].weight[:, 0].detach().numpy()).reshape(8, -1).max(1)
            if first.shape[1] == 3
            else (np.abs(second).max((0, 2, 3)))
        )
        np.testing.assert_allclose(made, read, rtol=5e-3)
    made, read = ranges(found[6].weight.detach().numpy(), found[9].weight.detach().numpy())
    np.testing.assert_allclose(made, read, rtol=5e-3)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU6(), nn.Linear(6, 6)), id="relu6"),
        pytest.param(lambda: nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6)), id="gelu"),
        pytest.param(TwoReaders, id="two readers"),
        pytest.param(HandsOut, id="handed out"),
    ],
)
def test_what_would_change_the_network_is_left_alone(build: Callable[[], nn.Module]) -> None:
    net = unequal(build())
    found = equalized(net, torch.randn(4, 6))
    for (name, before), after in zip(net.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(before, after), name


def test_pruned_weights_stay_zero_and_channels_without_weights_stay_finite() -> None:
    net = unequal(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)))
    with torch.no_grad():
        net[0].weight[2] = 0.0
        net[2].weight[:, 3] = 0.0
        net[0].weight[4, 1] = 0.0
    found = equalized(net, torch.randn(4, 6))
    assert torch.equal(found[0].weight == 0, net[0].weight == 0)
    assert torch.equal(found[2].weight == 0, net[2].weight == 0)
    assert all(parameter.isfinite().all() for parameter in found.parameters())
