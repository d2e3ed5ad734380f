"""Training through the accelerators' operators, run by Triton's interpreter, beside plain PyTorch operations."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_compress import quantization
from lightning_compress.quantization.fake_quantize import cpu as native
from lightning_compress.quantization.quantizers import activation, learned, weight_group
from lightning_compress.quantization.ranges import observers


def _any_device(x: torch.Tensor) -> bool:
    return x.dtype in (torch.float32, torch.bfloat16) and x.numel() > 0


@pytest.fixture(autouse=True)
def _plain_reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    native.use_compiled(False)
    monkeypatch.setattr(observers, "FRACTIONS", observers.FRACTIONS[:20:4])
    yield
    native.use_compiled("auto")


def serve(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (activation, learned, weight_group):
        monkeypatch.setattr(module, "served", _any_device)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.norm(self.conv(x))).mean((2, 3)))


def train(net: nn.Module, x: torch.Tensor, steps: int = 3, **settings: Any) -> dict[str, torch.Tensor]:
    """What three steps come to: losses, weights, ranges and learned parameters."""
    quantization.prepare(net, example_inputs=x, **settings)
    found = quantization.find(net)
    assert found is not None
    parameters = [*net.parameters(), *found.parameters()]
    optimizer, outcome = torch.optim.SGD(parameters, 0.05, momentum=0.9), {}
    for step in range(steps):
        loss = F.cross_entropy(net(x * (step + 1)), torch.arange(len(x)) % 3)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        outcome[f"loss {step}"] = loss.detach()
    outcome |= {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
    for name, quantizer in found.activations.items():
        outcome |= {f"{name} {key}": torch.as_tensor(value) for key, value in quantizer.state_dict().items()}
    for name, state in found.state_dict()["weight_steps"].items():
        outcome |= {f"{name} {key}": torch.as_tensor(value) for key, value in state.items() if value is not None}
    return outcome


@pytest.mark.parametrize("settings", [
    {"range": "minmax"},
    {"range": "minmax", "weight_granularity": "group:4", "activation_scheme": "symmetric"},
    {"range": "percentile", "weight_granularity": "tensor"},
    {"range": "mse", "weight_bits": 4},
    {"range": "learned"},
    {"range": "learned", "activation_scheme": "symmetric", "weight_granularity": "tensor"},
], ids=str)  # fmt: skip
def test_training_equals_that_of_plain_operations(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Net(), torch.randn(6, 2, 5, 5)
    other = copy.deepcopy(net)
    wanted = train(net, x, **settings)
    serve(monkeypatch)
    found = train(other, x, **settings)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_weights_are_made_once_a_forward_and_never_from_old_values(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch)
    made: list[int] = []
    real = weight_group.quantize_weights
    monkeypatch.setattr(weight_group, "quantize_weights", lambda w, *rest: made.append(len(w)) or real(w, *rest))
    net, x = Net(), torch.randn(2, 2, 5, 5)
    quantization.prepare(net, weight_bits=2, activation_bits=None)
    net(x).sum().backward()
    assert made == [2]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.data.add_(1.0)  # Not seen by version counters.
    plain = copy.deepcopy(net)
    assert torch.equal(net(x), plain(x))
    assert made == [2, 2, 2]
    with torch.no_grad():
        net(x)
    assert made[3:] == [1, 1]


def test_a_repeated_module_and_a_recomputed_one_do_not_make_all_weights_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch)
    made: list[int] = []
    real = weight_group.quantize_weights
    monkeypatch.setattr(weight_group, "quantize_weights", lambda w, *rest: made.append(len(w)) or real(w, *rest))

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.second, self.first(self.first(x)), use_reentrant=False)

    net, x = Twice(), torch.randn(4, 3)
    quantization.prepare(net, weight_bits=4, activation_bits=None)
    net(x).sum().backward()
    assert made == [2, 1, 1]
    gradients = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    monkeypatch.undo()
    net.zero_grad()
    net(x).sum().backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients, net.parameters(), strict=True) if b.grad is not None)


def test_a_gradient_of_something_else_does_not_add_to_learned_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch)
    net, x = Net(), torch.randn(2, 2, 5, 5)
    quantization.prepare(net, range="learned", example_inputs=x)
    found = quantization.find(net)
    assert found is not None
    x.requires_grad_()
    torch.autograd.grad(net(x).sum(), x)
    assert all(parameter.grad is None for parameter in found.parameters())
    net(x).sum().backward()
    assert all(parameter.grad is not None for parameter in found.parameters())


def test_gradients_of_gradients_pass_the_same_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(5, 3)
    quantization.prepare(net, example_inputs=x, range="percentile")
    net(x)

    def penalty() -> list[torch.Tensor]:
        given = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(given * 1.5).sum(), given, create_graph=True)
        return list(torch.autograd.grad(gradient.square().sum(), list(net.parameters())[:1]))

    net.eval()
    wanted = penalty()
    serve(monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(penalty(), wanted, strict=True))


def test_a_first_batch_that_is_not_finite_passes_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch)
    net, x = nn.Sequential(nn.Linear(3, 3)), torch.randn(5, 3)
    quantization.prepare(net, example_inputs=x, weight_bits=None)
    found = quantization.find(net)
    assert found is not None
    (quantizer,) = found.activations.values()
    spoiled = x.clone()
    spoiled[0, 0] = torch.inf
    assert torch.equal(quantizer(spoiled), spoiled)
    quantizer(x)
    assert int(quantizer.nonfinite) == 1
    assert torch.equal(quantizer.range, torch.stack(torch.aminmax(x)))
    assert quantizer(x).unique().numel() <= 256
    assert not torch.equal(quantizer(x), x)
