"""Loaders without a length: epochs are counted in the first one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning_modules import PlainModule, quiet_trainer
from torch.utils.data import DataLoader, IterableDataset

from lightning_compress import (
    CompressionError,
    CompressionMonitor,
    GradualMagnitudePruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
)

STEPS = 3


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        for _ in range(8 * STEPS):
            yield torch.randn(3, 8, 8, generator=generator), int(torch.randint(5, (), generator=generator))


class Seen(L.Callback):
    """What holds at the end of each epoch."""

    def __init__(self, folder: Path | None = None) -> None:
        self.sparsities: list[float] = []
        self.quantized: list[bool] = []
        self.folder = folder

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradualMagnitudePruning) and callback.pruner is not None:
                self.sparsities.append(round(callback.pruner.sparsity(), 3))
            if isinstance(callback, QuantizationAwareTraining) and callback.quantization is not None:
                self.quantized.append(callback.quantization.enabled)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


def fit(*callbacks: Any, resume: Path | None = None, **settings: Any) -> tuple[PlainModule, Seen]:
    torch.manual_seed(0)
    module, seen = PlainModule(), next((c for c in callbacks if isinstance(c, Seen)), Seen())
    others = [callback for callback in callbacks if callback is not seen]
    trainer = quiet_trainer(callbacks=[*others, seen], **{"max_epochs": 5, **settings})
    trainer.fit(module, DataLoader(Stream(), 8), ckpt_path=resume)
    return module, seen


def test_pruning_follows_epochs_that_nobody_knew_the_length_of() -> None:
    pruning = GradualMagnitudePruning(0.8, start="1ep", end="3ep", every="1ep", schedule="linear")
    _, seen = fit(pruning)
    assert seen.sparsities == [0.0, 0.0, 0.4, 0.8, 0.8]
    assert (pruning.pruner.schedule.start, pruning.pruner.schedule.end) == (STEPS, 3 * STEPS)


def test_a_start_at_zero_and_fractions_behind_the_first_epoch_are_placed() -> None:
    pruning = GradualMagnitudePruning(0.8, start=0.0, end=0.6, every=0.2, schedule="linear")
    quantizing = QuantizationAwareTraining(start=0.4, freeze_range=0.8)
    _, seen = fit(pruning, quantizing, CompressionMonitor(print_phases=False))
    assert seen.sparsities == [0.0, 0.267, 0.533, 0.8, 0.8]
    assert seen.quantized == [False, False, True, True, True]
    assert quantizing.phases == {"start": 2 * STEPS, "freeze_range": 4 * STEPS}


def test_distillation_ends_with_an_epoch() -> None:
    distilling = KnowledgeDistillation("self", start=0, end="2ep")
    fit(distilling)
    assert distilling.phases == {"start": 0, "end": 2 * STEPS}


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (GradualMagnitudePruning(0.8, start=0.1), r"GradualMagnitudePruning\.start: .*got '0\.1 of 5 epochs'.*'1ep'"),
        (QuantizationAwareTraining(start="0.5ep"), r"QuantizationAwareTraining\.start: .*got '0\.5ep'"),
    ],
)
def test_a_point_inside_the_first_epoch_is_refused_with_what_can_be_given(callback: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        fit(callback)


def test_a_fraction_of_an_endless_run_is_refused() -> None:
    with pytest.raises(CompressionError, match="set a finite max_steps/max_epochs"):
        fit(GradualMagnitudePruning(0.8, start=0.5), max_epochs=-1)


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_run_goes_on_to_the_same_weights(tmp_path: Path, epoch: int) -> None:
    def callbacks() -> list[Any]:
        return [
            GradualMagnitudePruning(0.8, start="1ep", end="3ep", every="1ep"),
            QuantizationAwareTraining(start="2ep"),
            KnowledgeDistillation("self", end="4ep"),
        ]

    whole, _ = fit(*callbacks(), Seen(tmp_path))
    again, _ = fit(*callbacks(), resume=tmp_path / f"{epoch}.ckpt")
    for (name, mine), theirs in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_the_plan_speaks_of_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    fit(GradualMagnitudePruning(0.8, start="1ep", end="3ep", every="1ep"), CompressionMonitor())
    printed = capsys.readouterr().err
    assert "epoch 1" in printed
    assert "epoch 3" in printed
