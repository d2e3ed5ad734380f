"""What a training step launches on an accelerator and how often it waits, on a simulated one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import accelerator_counts as counts

from lightning_compress import pruning, quantization
from lightning_compress.foundation.nested import tensors
from lightning_compress.quantization.quantizers.learned import LearnedActivationQuantizer


@pytest.fixture(scope="module")
def base() -> counts.Counts:
    return counts.train()


@pytest.mark.parametrize("setting", counts.SETTINGS)
def test_a_step_stays_below_its_ceiling_and_never_waits(setting: str, base: counts.Counts) -> None:
    found = counts.SETTINGS[setting]()
    assert found.ratio(-1, base) <= counts.CEILINGS[setting]
    # The first step of masks holds their update.
    assert setting == "masks" or found.ratio(0, base) <= counts.FIRST_CEILING
    waits = [step.total() for step in found.waits]
    assert waits == ([2, 2, 0, 0] if setting == "masks" else [0, 0, 0, 0])


@pytest.mark.parametrize("settings", [
    {"distribution": "erk"},
    {"distribution": "uniform"},
    {"pattern": "2:4"},
    {"pattern": "block:1x4"},
    {"criterion": "random"},
], ids=str)  # fmt: skip
def test_a_mask_update_waits_twice_at_most(settings: dict[str, Any]) -> None:
    assert [step.total() <= 2 for step in counts.pruned(**settings).waits] == [True] * 4


def test_movement_pruning_looks_at_no_gradient() -> None:
    def observed(pruner: pruning.Pruner, step: int) -> None:
        for site in pruner._sites:
            site.parameter.grad = torch.zeros_like(site.parameter)
        pruner.observe(step)

    found = counts.train(
        lambda net, x: pruning.Pruner(net, final_sparsity=0.5, start=9, end=10, every=1, criterion="movement"), observed
    )
    assert [step.total() for step in found.waits] == [0, 0, 0, 0]


def test_training_with_frozen_ranges_waits_for_nothing() -> None:
    def frozen(net: nn.Module, step: int) -> None:
        quantization.find(net).frozen = True  # type: ignore[union-attr]

    for range_ in ("minmax", "learned"):
        found = counts.train(lambda net, x, r=range_: quantization.prepare(net, range=r, example_inputs=x), frozen)
        assert [step.total() for step in found.waits] == [0, 0, 0, 0]


def on_simulated(prepare: Callable[[nn.Module, torch.Tensor], Any]) -> tuple[nn.Module, Any, counts.Simulated]:
    mode = counts.Simulated()
    network = mode.adopt(counts.Network())
    with mode:
        return network, prepare(network, mode.tensor(torch.randn(4, 3, 16, 16))), mode


@pytest.mark.parametrize("range_", ["minmax", "learned"])
def test_ranges_are_made_on_the_networks_device(range_: str) -> None:
    network, _, _ = on_simulated(lambda net, x: quantization.prepare(net, range=range_, example_inputs=x))
    found = quantization.find(network)
    assert found is not None
    assert {parameter.device for parameter in found.parameters()} <= {counts.DEVICE}
    for quantizer in found.activations.values():
        tensors = [value for value in vars(quantizer).values() if isinstance(value, torch.Tensor)]
        assert {tensor.device for tensor in tensors} == {counts.DEVICE}
        assert len(tensors) == (7 if isinstance(quantizer, LearnedActivationQuantizer) else 4)


def test_masks_lie_on_the_networks_device_and_follow_their_weights() -> None:
    _, pruner, mode = on_simulated(lambda net, x: pruning.Pruner(net, final_sparsity=0.5, start=0, end=2))
    assert {mask.device for mask in pruner.masks.values()} == {counts.DEVICE}
    with mode:
        for site in pruner._sites:
            site.mask = torch.ones(site.mask.shape, dtype=torch.bool)
        assert {mask.device for mask in pruner.masks_by_parameter().values()} == {counts.DEVICE}


@pytest.mark.parametrize("range_", ["minmax", "learned"])
def test_ranges_of_a_checkpoint_from_the_cpu_go_to_the_networks_device(range_: str) -> None:
    settings = {"range": range_, "example_inputs": torch.randn(4, 3, 16, 16)}
    network = counts.Network()
    quantization.prepare(network, **settings)
    network(settings["example_inputs"])
    saved = quantization.find(network).state_dict()  # type: ignore[union-attr]
    other, _, mode = on_simulated(lambda net, x: quantization.prepare(net, range=range_, example_inputs=x))
    found = quantization.find(other)
    assert found is not None
    with mode:
        found.load_state_dict(saved)
    for quantizer in found.activations.values():
        assert {value.device for value in vars(quantizer).values() if isinstance(value, torch.Tensor)} == {
            counts.DEVICE
        }


def devices(quantizers: Iterable[Any]) -> set[str]:
    return {v.device.type for one in quantizers for v in vars(one).values() if isinstance(v, torch.Tensor)}


@pytest.fixture
def _new_parameters() -> Iterator[None]:
    """``.to`` makes parameters anew: data of the CPU cannot be exchanged for that of a tensor without values."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def test_learned_scales_are_moved_before_all_weights_are_quantized_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # The data of a tensor with values cannot become that of one without, so that the move itself is not simulated.
    network, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4)
    quantization.prepare(network, range="learned", example_inputs=x)
    found = list(quantization.find(network).layers.values())  # type: ignore[union-attr]
    moved: list[Any] = []
    monkeypatch.setattr(type(found[0]), "_follow", lambda one: moved.append(one))
    type(found[0]).begin(found)
    assert moved == found


def test_a_restored_ratio_is_no_tensor_of_the_checkpoint() -> None:
    network, x = nn.Linear(4, 4), torch.randn(2, 4)
    quantization.prepare(network, range="mse", example_inputs=x)
    network(x)
    (one,) = quantization.find(network).layers.values()  # type: ignore[union-attr]
    state = one.state_dict()
    one.load_state_dict(state)
    assert one.ratio.data_ptr() != state["ratio"].data_ptr()  # type: ignore[attr-defined]
    assert torch.equal(one.ratio, state["ratio"])  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_new_parameters")
@pytest.mark.parametrize("range_", ["minmax", "percentile", "mse"])
def test_ranges_follow_a_network_that_is_moved_after_it_was_prepared(range_: str) -> None:
    network, x = counts.Network(), torch.randn(4, 3, 16, 16)
    quantization.prepare(network, range=range_, example_inputs=x)
    network(x)
    found, mode = quantization.find(network), counts.Simulated()
    assert found is not None
    # Weights keep something of their own where their range is searched for: a ratio each.
    weights = set() if range_ == "minmax" else {"cpu"}
    assert (devices(found.activations.values()), devices(found.layers.values())) == ({"cpu"}, weights)
    with mode:
        network.to(counts.DEVICE)
        network(mode.tensor(x)).square().mean().backward()
    weights = set() if range_ == "minmax" else {counts.DEVICE.type}
    assert (devices(found.activations.values()), devices(found.layers.values())) == ({counts.DEVICE.type}, weights)
    assert {parameter.grad.device for parameter in network.parameters() if parameter.grad is not None} == {
        counts.DEVICE
    }


@pytest.mark.usefixtures("_new_parameters")
def test_ranges_follow_a_module_that_lightnings_strategy_moves() -> None:
    module, x = L.LightningModule(), torch.randn(4, 3, 16, 16)
    module.net = counts.Network()
    quantization.prepare(module.net, example_inputs=x)
    module.net(x)
    strategy, mode = SingleDeviceStrategy(device=counts.DEVICE), counts.Simulated()
    strategy.connect(module)
    with mode:
        strategy.model_to_device()
        module.net(mode.tensor(x)).square().mean().backward()
    assert module.device == counts.DEVICE
    found = quantization.find(module.net)
    assert found is not None
    assert devices(found.activations.values()) == {counts.DEVICE.type}


@pytest.mark.parametrize("range_", ["minmax", "percentile", "mse", "learned"])
def test_a_checkpoint_from_the_accelerator_holds_tensors_of_the_cpu(range_: str) -> None:
    network, _, mode = on_simulated(lambda net, x: quantization.prepare(net, range=range_, example_inputs=x))
    with mode:
        network(mode.tensor(torch.randn(4, 3, 16, 16))).square().mean().backward()
        found = quantization.find(network)
        assert found is not None
        saved = list(tensors(found.state_dict()))
    assert len(saved) > 40
    assert {tensor.device.type for _, tensor in saved} == {"cpu"}


def test_masks_of_a_checkpoint_from_the_cpu_go_to_the_networks_device() -> None:
    settings: dict[str, Any] = {"final_sparsity": 0.5, "start": 0, "end": 2, "every": 1}
    before = pruning.Pruner(counts.Network(), **settings)
    before.step(1)
    saved = before.state_dict()
    _, pruner, mode = on_simulated(lambda net, x: pruning.Pruner(net, **settings))
    with mode:
        pruner.load_state_dict(saved)
        assert {mask.device for mask in pruner.masks.values()} == {counts.DEVICE}
