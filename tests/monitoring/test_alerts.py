from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning_modules import PlainModule, loader, quiet_trainer

from lightning_compress.callbacks import CompressionMonitor, GradualMagnitudePruning, QuantizationAwareTraining
from lightning_compress.metrics.layer_table import LayerRow
from lightning_compress.monitoring import alerts


class Meddler(Callback):
    """Does something to the module at the end of every batch from the sixth on."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step > 5:
            with torch.no_grad():
                self.act(pl_module)


def told(*callbacks: Callback) -> list[str]:
    """The warnings of the monitor in a fit."""
    monitor = CompressionMonitor(torch.zeros(1, 3, 8, 8), print_phases=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(callbacks=[monitor, *callbacks]).fit(PlainModule(), loader(), loader(2))
    texts = [str(warning.message) for warning in caught]
    return [text for text in texts if text.startswith(("Sparsity has", "A layer is", "Activations "))]


def pruning() -> GradualMagnitudePruning:
    return GradualMagnitudePruning(0.8, start=2, end=8, every=1)


def test_a_sound_run_has_no_alerts() -> None:
    assert told(pruning(), QuantizationAwareTraining(8, 8, start=4)) == []


def test_sparsity_that_something_undoes_is_told_of_once() -> None:
    def fill(module: L.LightningModule) -> None:
        for parameter in module.parameters():
            parameter.add_(0.01)

    (text,) = told(pruning(), Meddler(fill))
    assert text.startswith("Sparsity has left its schedule: ")


def test_a_layer_without_weights_is_told_of_by_name() -> None:
    def kill(module: L.LightningModule) -> None:
        next(p for name, p in module.named_parameters() if p.dim() > 1).zero_()

    name = next(name for name, p in PlainModule().named_parameters() if p.dim() > 1)
    texts = told(Meddler(kill))
    assert len(texts) == 1
    assert f"entries of {name} are zero" in texts[0]


def test_activations_that_outgrow_a_frozen_range_are_told_of() -> None:
    def grow(module: L.LightningModule) -> None:
        for name, parameter in module.named_parameters():
            if "weight" in name and parameter.dim() > 1:
                parameter.mul_(2)

    texts = told(QuantizationAwareTraining(8, 8, start=0, freeze_range=4), Meddler(grow))
    assert texts
    assert all("lie beyond its range" in text for text in texts if text.startswith("Activations saturate"))
    assert any(text.startswith("Activations saturate") for text in texts)


def test_saturation_is_a_series_once_activations_are_quantized() -> None:
    monitor = CompressionMonitor(print_phases=False)
    trainer = quiet_trainer(callbacks=[monitor, QuantizationAwareTraining(8, 8, start=2)])
    trainer.fit(PlainModule(), loader(), loader(2))
    shares = [trainer.callback_metrics[f"compress/saturation/{kind}"] for kind in ("mean", "max")]
    assert 0 <= shares[0] <= shares[1] < 0.1


class Spoiler(Callback):
    """Puts a value into some batches, and keeps what comes of it out of the weights."""

    def __init__(self, value: float, *steps: int) -> None:
        self.value, self.steps = value, steps

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        if trainer.global_step in self.steps:
            batch[0][0, 0, 0, 0] = self.value

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("method", "value"),
    [("minmax", torch.inf), ("minmax", torch.nan), ("percentile", torch.nan), ("learned", torch.nan)],
)
def test_batches_that_are_not_finite_are_counted_told_of_and_kept_out_of_the_ranges(method: str, value: float) -> None:
    quantization = QuantizationAwareTraining(8, 8, range=method, example_inputs=torch.zeros(1, 3, 8, 8))
    monitor = CompressionMonitor(print_phases=False)
    trainer = quiet_trainer(callbacks=[monitor, Spoiler(value, 3, 5), quantization])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(PlainModule(), loader())
    assert trainer.callback_metrics["compress/nonfinite"] == 2
    assert sum(str(warning.message).startswith("Activations are not finite") for warning in caught) == 1
    assert all(q.scale.isfinite() for q in quantization.quantization.activations.values())


def test_the_drift_of_ranges_is_a_series_that_ends_where_they_are_frozen() -> None:
    logged: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            logged.append(float(trainer.callback_metrics.get("compress/drift/max", -1)))

    frozen = QuantizationAwareTraining(8, 8, freeze_range=4, example_inputs=torch.zeros(1, 3, 8, 8))
    monitor = CompressionMonitor(print_phases=False)
    quiet_trainer(callbacks=[monitor, frozen, Watch()], log_every_n_steps=1).fit(PlainModule(), loader())
    assert max(logged[:4]) > 0
    assert logged[-1] == 0


def test_a_layer_of_a_few_weights_is_no_alarm() -> None:
    # Of four weights, 0.9 is three: no other number of zeros comes nearer without going beyond.
    few = [LayerRow("fc.weight", "Linear", (1, 4), numel=4, zeros=3, sparsity_target=0.9)]
    many = [LayerRow("fc.weight", "Linear", (4, 100), numel=400, zeros=300, sparsity_target=0.9)]
    found = [list(alerts.find(rows, {}, before={}, sparsity=0.75, target=0.9)) for rows in (few, many)]
    assert [len(each) for each in found] == [0, 1]
