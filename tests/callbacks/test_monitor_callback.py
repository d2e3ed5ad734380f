from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning_modules import PlainModule, loader, quiet_trainer

from lightning_compress.callbacks import CompressionMonitor, GradualMagnitudePruning, QuantizationAwareTraining

IMAGE = torch.zeros(1, 3, 8, 8)
KEYS = {
    "compress/sparsity/global",
    "compress/sparsity/target",
    "compress/bits/weight",
    "compress/bits/activation",
    "compress/size_mb/dense",
    "compress/size_mb/packed",
    "compress/compression_ratio",
    "compress/bops",
}


def pruning(**settings: Any) -> GradualMagnitudePruning:
    return GradualMagnitudePruning(0.8, **{"start": 4, "end": 12, "every": 1, **settings})


def fit(*callbacks: Callback, module: L.LightningModule | None = None, **settings: Any) -> L.Trainer:
    trainer = quiet_trainer(callbacks=list(callbacks), **settings)
    trainer.fit(module or PlainModule(), loader(), loader(2))
    return trainer


def rows(directory: Path) -> list[dict[str, str]]:
    with next(directory.rglob("metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def series(directory: Path, key: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row[key])) for row in rows(directory) if row.get(key)]


def test_every_series_is_logged_at_the_interval_and_at_epoch_ends(tmp_path: Path) -> None:
    fit(CompressionMonitor(IMAGE), pruning(), logger=CSVLogger(tmp_path), log_every_n_steps=4)
    for key in KEYS:
        assert [step for step, _ in series(tmp_path, key)] == [3, 7, 7, 11, 15, 15]


def test_the_module_s_own_metrics_are_kept_for_each_validation_of_a_fit(tmp_path: Path) -> None:
    monitor, logger = CompressionMonitor(), CSVLogger(tmp_path)
    trainer = fit(monitor, pruning(), logger=logger, num_sanity_val_steps=2, log_every_n_steps=1)
    trainer.validate(PlainModule(), loader(2))
    logged = series(tmp_path, "val/loss")[: trainer.max_epochs]
    assert [point["step"] for point in monitor.evaluations] == [step + 1 for step, _ in logged]
    assert [point["metrics"]["val/loss"] for point in monitor.evaluations] == pytest.approx([v for _, v in logged])
    assert not any(name.startswith("compress/") for point in monitor.evaluations for name in point["metrics"])
    other = CompressionMonitor()
    other.load_state_dict(monitor.state_dict())
    assert other.evaluations == monitor.evaluations


def test_the_phase_is_logged_as_a_number(tmp_path: Path) -> None:
    quantizing = QuantizationAwareTraining(start=9)
    fit(CompressionMonitor(), pruning(), quantizing, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    found = series(tmp_path, "compress/phase")
    # Dense until step 4, then pruning; quantized, too, from 9 on, and pruned from 12 on.
    expected = [0.0] * 4 + [1.0] * 5 + [4.0] * 3 + [5.0] * 4
    assert all(value == expected[step] for step, value in found)
    assert {value for _, value in found} == set(expected)


def test_logged_sparsity_is_that_of_the_weights(tmp_path: Path) -> None:
    class Witness(Callback):
        """Counts zeros by itself at the start of every step."""

        def __init__(self) -> None:
            self.found: dict[int, float] = {}

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            weights = torch.cat([p.detach().flatten() for p in pl_module.parameters() if p.ndim > 1])
            self.found[trainer.global_step] = float((weights == 0).double().mean())

    witness = Witness()
    fit(CompressionMonitor(), pruning(), witness, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    within = dict(series(tmp_path, "compress/sparsity/global")[:7])
    assert within == pytest.approx({step: witness.found[step] for step in range(7)}, abs=1e-6)
    assert within[6] == pytest.approx(0.8 * (1 - 0.75**3), abs=1e-3)


@pytest.mark.parametrize("first", [True, False])
def test_order_in_the_list_does_not_matter(first: bool) -> None:
    monitor = CompressionMonitor()
    others = [pruning(), QuantizationAwareTraining(start=8, example_inputs=IMAGE)]
    fit(*([monitor, *others] if first else [*others, monitor]))
    by_step = {point["step"]: point for point in monitor.history}
    assert by_step[5]["sparsity_target"] == pytest.approx(0.8 * (1 - (7 / 8) ** 3))
    assert by_step[5]["sparsity"] == pytest.approx(by_step[5]["sparsity_target"], abs=1e-3)
    assert [by_step[step]["phase"] for step in (0, 4, 8, 12)] == [
        "dense",
        "pruning",
        "pruning + quantized",
        "pruned + quantized",
    ]
    assert (by_step[16]["weight_bits"], by_step[16]["activation_bits"]) == (8, 8)


def test_alone_it_reports_a_dense_model(tmp_path: Path) -> None:
    monitor = CompressionMonitor()
    fit(monitor, logger=CSVLogger(tmp_path))
    assert {point["phase"] for point in monitor.history} == {"dense"}
    assert "compress/bops" not in rows(tmp_path)[0]


def test_bit_operations_use_the_module_s_own_example(tmp_path: Path) -> None:
    module = PlainModule()
    module.example_input_array = IMAGE
    fit(CompressionMonitor(), QuantizationAwareTraining(), module=module, logger=CSVLogger(tmp_path))
    macs = 64 * 8 * 27 + 2 * 64 * 8 * 72 + 16 * (16 * 72 + 16 * 144 + 16 * 8) + 80
    assert series(tmp_path, "compress/bops")[-1][1] == macs * 64


def test_activations_found_in_the_first_batch_show_up() -> None:
    monitor = CompressionMonitor()
    fit(monitor, QuantizationAwareTraining())
    assert [point["activation_bits"] for point in monitor.history[:2]] == [32, 8]


def test_a_metric_can_be_monitored_by_checkpoints(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="compress/sparsity/global", mode="max")
    fit(CompressionMonitor(), pruning(), checkpoint, enable_checkpointing=True)
    assert checkpoint.best_model_score == pytest.approx(0.8, abs=1e-3)


def test_the_table_of_layers_is_written_when_training_ends(tmp_path: Path) -> None:
    fit(CompressionMonitor(IMAGE), pruning(), logger=CSVLogger(tmp_path))
    with next(tmp_path.rglob("compress_layers.csv")).open() as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == [name for name, _ in PlainModule().named_parameters()]
    weights = [row for row in table if row["sparsity_target"]]
    zeros = sum(float(row["sparsity"]) * int(row["numel"]) for row in weights)
    assert zeros / sum(int(row["numel"]) for row in weights) == pytest.approx(0.8, abs=1e-3)


def test_history_goes_on_after_a_resume(tmp_path: Path) -> None:
    whole = CompressionMonitor()
    checkpoint = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=8, save_top_k=-1)
    fit(whole, pruning(), checkpoint, enable_checkpointing=True)
    resumed = CompressionMonitor()
    trainer = quiet_trainer(callbacks=[resumed, pruning()])
    trainer.fit(PlainModule(), loader(), ckpt_path=tmp_path / "step=8.ckpt", weights_only=True)
    steps = [point["step"] for point in resumed.history]
    assert steps == sorted(set(steps)) == [point["step"] for point in whole.history]
    assert resumed.history[:5] == whole.history[:5]


def test_a_second_fit_starts_the_history_anew() -> None:
    monitor = CompressionMonitor()
    fit(monitor, max_epochs=2)
    fit(monitor, max_epochs=1)
    assert [point["step"] for point in monitor.history][-1] == 8


def test_measurements_are_bounded_however_often_masks_change() -> None:
    monitor = CompressionMonitor()
    trainer = quiet_trainer(callbacks=[monitor, pruning(start=0, end=1.0)], max_steps=300)
    trainer.fit(PlainModule(), loader(100))
    assert 90 <= len(monitor.history) <= 110


def test_gradient_accumulation_changes_nothing_about_steps() -> None:
    monitor = CompressionMonitor()
    fit(monitor, pruning(start=1, end=3), accumulate_grad_batches=4)
    assert [point["step"] for point in monitor.history] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("settings", [{"fast_dev_run": 2}, {"log_every_n_steps": 0}, {"num_sanity_val_steps": 2}])
def test_special_runs_work(tmp_path: Path, settings: dict[str, Any]) -> None:
    monitor = CompressionMonitor(IMAGE)
    fit(monitor, QuantizationAwareTraining(), logger=CSVLogger(tmp_path), **settings)
    assert monitor.history[-1]["weight_bits"] == 8


@pytest.mark.parametrize("bar", [TQDMProgressBar(), RichProgressBar()])
def test_the_progress_bar_shows_sparsity_and_bits(bar: Any, capfd: pytest.CaptureFixture[str]) -> None:
    class Reader(Callback):
        shown: dict[str, Any]

        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.shown = dict(bar.get_metrics(trainer, pl_module))

    reader = Reader()
    fit(CompressionMonitor(), pruning(), QuantizationAwareTraining(), bar, reader, enable_progress_bar=True)
    assert (reader.shown["sparsity"], reader.shown["bits"]) == ("80.0%", "8/8")
    assert "sparsity" in capfd.readouterr().out


def test_evaluation_after_training_logs_no_series(tmp_path: Path) -> None:
    trainer = fit(CompressionMonitor(), pruning(), logger=CSVLogger(tmp_path))
    assert not any(
        key.startswith("compress/") for key in trainer.test(trainer.lightning_module, loader(1), verbose=False)[0]
    )
