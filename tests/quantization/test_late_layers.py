"""Layers that a later batch runs first: experts, heads of several tasks, dropped layers."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import QuantizationAwareTraining, quantization


class Experts(nn.Module):
    """Each batch goes through one of three experts; the fourth never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.experts = nn.ModuleList([self.expert() for _ in range(4)])

    @staticmethod
    def expert() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor, which: int = 0) -> torch.Tensor:
        return self.experts[which](F.relu(self.stem(x)))


def trained(net: Experts, x: torch.Tensor) -> quantization.Quantization:
    quantization.prepare(net, example_inputs=x)
    found = quantization.find(net)
    net.train()
    for which in (0, 1, 2, 0, 1, 2):
        net(x, which).sum().backward()
        found.place_late()
    return found


def sites(found: quantization.Quantization, expert: int) -> set[str]:
    prefix = f"experts.{expert}."
    return {name.removeprefix(prefix) for name in found.activations if name.startswith(prefix)}


def test_later_layers_get_the_quantizers_of_the_first() -> None:
    torch.manual_seed(0)
    found = trained(Experts(), torch.randn(16, 4))
    assert sites(found, 0)
    assert sites(found, 1) == sites(found, 2) == sites(found, 0)
    assert all(quantizer.observed for quantizer in found.activations.values())
    assert set(found.layer_input) == {"stem.weight", *(f"experts.{i}.{k}.weight" for i in range(3) for k in (0, 4))}
    assert {layer for layer in found.placement.folds} == {f"experts.{i}.0" for i in range(3)}


def test_what_never_runs_is_named() -> None:
    lines = trained(Experts(), torch.randn(16, 4)).unreached
    assert [line.partition(":")[0] for line in lines if "no training batch ran it" in line] == [
        "experts.3.0",
        "experts.3.4",
    ]


def test_placing_later_changes_no_statistics_and_no_random_numbers() -> None:
    torch.manual_seed(0)
    net, x = Experts(), torch.randn(16, 4)
    quantization.prepare(net, example_inputs=x)
    found = quantization.find(net)
    net.train()(x, 1)
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    assert found.place_late()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not found.place_late()


def test_evaluation_places_nothing() -> None:
    net, x = Experts(), torch.randn(16, 4)
    quantization.prepare(net, example_inputs=x)
    net.eval()(x, 1)
    assert not quantization.find(net).place_late()


def test_a_copy_keeps_its_calls_to_itself() -> None:
    net, x = Experts(), torch.randn(16, 4)
    quantization.prepare(net, example_inputs=x)
    copied = copy.deepcopy(net).train()
    copied(x, 1)
    assert not quantization.find(net).place_late()
    assert quantization.find(copied).place_late()


def test_a_state_holds_the_later_quantizers_and_what_still_waits() -> None:
    torch.manual_seed(0)
    net, x = Experts(), torch.randn(16, 4)
    found = trained(net, x)
    fresh = Experts()
    fresh.load_state_dict(net.state_dict())
    quantization.attach(fresh, found.state_dict())
    again = quantization.find(fresh)
    assert set(again.activations) == set(found.activations)
    assert again.unreached == found.unreached
    for which in range(3):
        torch.testing.assert_close(fresh.eval()(x, which), net.eval()(x, which))


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Experts()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.net(batch[0], index % 3).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.parametrize("method", ["minmax", "learned"])
def test_the_callback_places_them_between_batches(method: Any) -> None:
    quantizing = QuantizationAwareTraining(range=method)
    loader = DataLoader(TensorDataset(torch.randn(64, 4)), 16)
    trainer = L.Trainer(
        max_epochs=2,
        callbacks=[quantizing],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader)
    names = " ".join(quantizing.quantization.activations)
    assert [f"net.experts.{i}." in names for i in range(4)] == [True, True, True, False]


def test_the_output_projection_of_attention_does_not_wait() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x)[0]

    model, x = Attends(), torch.randn(2, 4, 8)
    quantization.prepare(model, example_inputs=x)
    model.train()(x)
    assert quantization.find(model).unreached == []
