"""Bits that fall along the timeline, by the callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_modules import PlainModule, loader, quiet_trainer

from lightning_compress import CompressedExport, CompressionError, CompressionMonitor, QuantizationAwareTraining
from lightning_compress.monitoring.phases import plan

DESCENT = {0: 8, 0.5: 4, 0.75: 2}


def trainer(*callbacks: Any, **settings: Any) -> L.Trainer:
    return quiet_trainer(**{"callbacks": list(callbacks), "max_epochs": 4, **settings})


@pytest.mark.parametrize("how", ["minmax", "learned"])
def test_bits_fall_at_their_optimizer_steps_and_the_monitor_logs_them(how: str) -> None:
    callback = QuantizationAwareTraining(DESCENT, 8, range=how, first_last_bits=None)
    monitor = CompressionMonitor(print_phases=False)
    trainer(callback, monitor).fit(PlainModule(), loader(4))
    assert callback.phases == {"start": 0, "weights to 4 bits": 8, "weights to 2 bits": 12}
    logged = [(point["step"], point["weight_bits"]) for point in monitor.history]
    assert {bits for step, bits in logged if 8 <= step < 12} == {4}
    assert {bits for step, bits in logged if step >= 12} == {2}
    assert callback.quantization.settled


def test_the_table_of_phases_shows_every_width() -> None:
    callback = QuantizationAwareTraining(DESCENT, {0: 8, 0.5: 4})
    trainer(callback).fit(PlainModule(), loader(4))
    names = [(phase.name, phase.start) for phase in plan(None, callback.phases, bits="8/8")]
    assert ("weights to 2 bits", 12) in names
    assert ("activations to 4 bits", 8) in names


def test_the_report_of_an_export_shows_the_bits_of_the_file(tmp_path: Path) -> None:
    export = CompressedExport(tmp_path, formats=["packed"], verify=False, latency=False)
    trainer(QuantizationAwareTraining(DESCENT, {0: 8, 0.5: 4}), export, CompressionMonitor()).fit(
        PlainModule(), loader(4)
    )
    assert export.report is not None
    plan = export.report["plan"]
    assert (plan["quantization"]["weight_bits"], plan["quantization"]["activation_bits"]) == (2, 4)
    assert {row["weight_bits"] for row in export.report["layers"] if "block1.conv" in row["name"]} == {2}


@pytest.mark.parametrize("how", ["minmax", "mse", "learned"])
def test_a_run_that_resumes_after_a_change_ends_bit_identical(how: str, tmp_path: Path) -> None:
    def run(checkpoint: Path | None, epochs: int) -> dict[str, torch.Tensor]:
        L.seed_everything(1)
        module = PlainModule()
        callback = QuantizationAwareTraining({0: 8, "8ba": 4, "12ba": 3}, {0: 8, "8ba": 4}, range=how)
        fit = trainer(callback, ModelCheckpoint(tmp_path, save_top_k=-1), max_epochs=epochs, enable_checkpointing=True)
        fit.fit(module, loader(4), ckpt_path=checkpoint)
        return module.state_dict()

    whole = run(None, 5)
    saved = sorted(tmp_path.glob("epoch=2*.ckpt"))[0]
    resumed = run(saved, 5)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({0: 4, 0.5: 8}, "weight_bits: expected bits from 2 to 8, or points in time with bits that fall"),
        ({}, "weight_bits: expected bits"),
        ({0: 8, 0.5: 1}, "weight_bits: expected an integer from 2 to 8"),
        ({0: 8, 1.5: 4}, "weight_bits: expected"),
    ],
)
def test_bad_descents_are_refused_at_construction(bits: dict, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        QuantizationAwareTraining(bits, 8)


@pytest.mark.parametrize("bits", [{0: 8, "12ba": 4, "8ba": 2}, {0: 8, "20ba": 4}])
def test_a_descent_that_cannot_happen_is_refused_before_training(bits: dict) -> None:
    with pytest.raises(CompressionError, match="QuantizationAwareTraining"):
        trainer(QuantizationAwareTraining(bits, 8)).fit(PlainModule(), loader(4))
