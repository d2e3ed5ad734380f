"""``torch.compile`` of a prepared network, and what CUDA graphs rely on: states that stay where they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.kernel_modes import MODES
from support.networks import ConcatNet, EncoderNet, FunctionalResidualNet, Gpt, PlainNet
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from lightning_compress import pruning, quantization


def encoder() -> nn.Module:
    net = EncoderNet()
    net.encoder.layers = net.encoder.layers[:1]
    return net


def gpt() -> nn.Module:
    net = Gpt()
    net.blocks = net.blocks[:1]
    return net


NETWORKS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "plain": (PlainNet, torch.randn(4, 3, 8, 8)),
    "functional residual": (FunctionalResidualNet, torch.randn(4, 3, 8, 8)),
    "skip connection": (ConcatNet, torch.randn(4, 3, 8, 8)),
    "encoder": (encoder, torch.randn(4, 5, 6)),
    "gpt": (gpt, torch.randint(24, (4, 8))),
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def losses(net: nn.Module, call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """Of three training steps."""
    optimizer, found = torch.optim.SGD(net.parameters(), 0.05), []
    for _ in range(3):
        found.append(call(x).square().mean())
        found[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    return found


def graphs(net: nn.Module, x: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    """Graphs of three steps without a break, and their losses."""
    backend = CompileCounter()
    found = losses(net, torch.compile(net, fullgraph=True, backend=backend), x)
    assert not counters["graph_break"]
    return backend.frame_count, found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_prepared_network_is_one_graph_as_in_float_and_trains_as_without_a_compiler(name: str) -> None:
    make, x = NETWORKS[name]
    net = make()
    assert graphs(copy.deepcopy(net), x)[0] == 1
    quantization.prepare(net, example_inputs=x)
    # The first batch sets the ranges: it has a graph of its own, or none where it runs before the compiler.
    net(x)
    other = copy.deepcopy(net)
    for quantizer in quantization.find(net).activations.values():  # type: ignore[union-attr]
        quantizer.observed = None  # As on an accelerator, where the host does not know.
    count, found = graphs(net, x)
    assert count == 1
    torch.testing.assert_close(found, losses(other, other, x))
    for one, two in zip(*(quantization.find(n).activations.values() for n in (net, other)), strict=True):
        assert not one.range.isnan().any()
        torch.testing.assert_close(one.range, two.range)


@pytest.mark.parametrize("range_", ["minmax", "percentile", "learned"])
def test_the_first_batch_adds_one_graph_in_which_a_search_is_one_operator(range_: str) -> None:
    net, x = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(8, 6)
    quantization.prepare(net, range=range_, example_inputs=x)
    other, backend = copy.deepcopy(net), CompileCounter()
    found = losses(net, torch.compile(net, fullgraph=True, backend=backend), x)
    torch.testing.assert_close(found, losses(other, other, x))
    assert backend.frame_count == 2
    assert backend.op_count < 300


@pytest.mark.parametrize("range_", ["minmax", "mse"])
def test_a_compiled_step_observes_every_batch_in_the_same_graph(range_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(8, 6)
    other, backend = copy.deepcopy(net), CompileCounter()
    quantization.prepare(net, range=range_, observe_every=3, example_inputs=x)
    quantization.prepare(other, range=range_, observe_every=1, example_inputs=x)
    monkeypatch.setattr("lightning_compress.quantization.quantizers.activation._SEARCH_EVERY", 1)
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for factor in range(1, 12):
        torch.testing.assert_close(compiled(x * factor), other(x * factor))
    for one, two in zip(*(quantization.find(n).activations.values() for n in (net, other)), strict=True):
        torch.testing.assert_close(one.range, two.range)
    assert backend.frame_count == 2


@pytest.mark.skipif(True not in MODES, reason="Inductor needs a C++ compiler")
def test_inductor_trains_as_without_a_compiler() -> None:
    net, x = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(8, 6)
    quantization.prepare(net, example_inputs=x)
    net(x)
    other = copy.deepcopy(net)
    found = losses(net, torch.compile(net, fullgraph=True), x)
    torch.testing.assert_close(found, losses(other, other, x))


def places(net: nn.Module, pruner: pruning.Pruner) -> dict[str, tuple[int, torch.Size]]:
    """Address and shape of all that a step reads and writes in place."""
    found = quantization.find(net)
    assert found is not None
    owners: dict[str, Any] = {**found.activations, **found.layers}
    state = {
        f"{name}.{key}": value
        for name, owner in owners.items()
        for key, value in vars(owner).items()
        if isinstance(value, torch.Tensor)
    }
    state |= dict(net.named_parameters()) | {f"{name}.mask": mask for name, mask in pruner.masks.items()}
    return {name: (value.data_ptr(), value.shape) for name, value in state.items()}


@pytest.mark.parametrize("range_", ["minmax", "percentile", "mse", "learned"])
def test_states_keep_their_addresses_and_shapes_through_a_run(range_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_compress.quantization.quantizers.searched._EVERY", 2)
    net, x = PlainNet(), torch.randn(4, 3, 8, 8)
    quantization.prepare(net, range=range_, example_inputs=x)
    pruner = pruning.Pruner(net, final_sparsity=0.5, start=0, end=9, every=1)
    found = quantization.find(net)
    assert found is not None
    optimizer = torch.optim.SGD([*net.parameters(), *found.parameters()], 0.05)

    def step(number: int) -> None:
        net(x * number).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step(number)

    step(1)
    before = places(net, pruner)
    assert len(before) >= 28
    for number in range(2, 6):
        step(number)
    found.frozen = True
    step(6)
    found.frozen, found.enabled = False, False
    step(7)
    found.enabled = True
    net.eval()(x)
    net.train()
    step(8)
    assert pruner.sparsity() > 0.4
    assert places(net, pruner) == before
