"""Prepared models under ``torch.func``, beside plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

from lightning_compress.quantization import find, prepare
from lightning_compress.quantization.ranges import observers


def trained(**settings: object) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), torch.randn(6, 4)
    prepare(net, example_inputs=x, **settings)
    net.train()(x)
    return net, x


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("method", ["minmax", "learned"])
def test_gradients_of_each_sample_are_those_of_autograd(method: str, training: bool) -> None:
    net, x = trained(range=method)
    find(net).frozen = True
    net.train(training)
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    each = vmap(grad(lambda p, row: functional_call(net, p, (row[None],)).sum()), in_dims=(None, 0))(parameters, x)
    for index, row in enumerate(x):
        net.zero_grad()
        net(row[None]).sum().backward()
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(each[name][index], parameter.grad)


def test_forces_are_those_of_autograd_and_can_be_trained_on() -> None:
    net, x = trained()
    net.eval()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(leaf).sum(), leaf)
    torch.testing.assert_close(grad(lambda x: net(x).sum())(x), expected)
    torch.testing.assert_close(jacrev(lambda row: net(row[None]).sum())(x[0]), expected[0])
    grad(lambda x: net(x).sum())(x).square().sum().backward()
    assert net[0].weight.grad is not None
    assert net[0].weight.grad.abs().sum() > 0


def test_ensembles_of_weights_run_side_by_side() -> None:
    net, x = trained()
    net.eval()
    stacked = {name: torch.stack([p.detach(), p.detach() * 0.5]) for name, p in net.named_parameters()}
    both = vmap(lambda p: functional_call(net, p, (x,)))(stacked)
    for index in range(2):
        alone = functional_call(net, {name: p[index] for name, p in stacked.items()}, (x,))
        torch.testing.assert_close(both[index], alone)


@pytest.mark.parametrize("method", ["minmax", "percentile", "learned"])
def test_ranges_are_learned_under_a_transform_as_without(method: str) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(6, 4)
    prepare(net, example_inputs=x, range=method)
    net.train()
    with torch.no_grad():
        vmap(lambda row: net(row[None]).sum())(x)
    found = find(net)
    assert all(quantizer.observed for quantizer in found.activations.values())
    expected = observers.observe(x, "mse" if method == "learned" else method, 8, symmetric=False)
    torch.testing.assert_close(found.activations["0:input[0]"].range, expected)
