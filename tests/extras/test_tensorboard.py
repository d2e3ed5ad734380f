from __future__ import annotations

import csv
from pathlib import Path

import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_modules import PlainModule, loader, quiet_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_compress.callbacks import CompressionMonitor, GradualMagnitudePruning, QuantizationAwareTraining


def test_tensorboard_and_csv_get_the_same_series(tmp_path: Path) -> None:
    board, table = TensorBoardLogger(tmp_path), CSVLogger(tmp_path)
    callbacks = [
        CompressionMonitor(torch.zeros(1, 3, 8, 8), histograms=True),
        GradualMagnitudePruning(0.8, start=4, end=12, every=1),
        QuantizationAwareTraining(8, 8, start=8),
    ]
    trainer = quiet_trainer(logger=[board, table], log_every_n_steps=2, callbacks=callbacks)
    trainer.fit(PlainModule(), loader(), loader(2))
    events = EventAccumulator(board.log_dir)
    events.Reload()
    with (Path(table.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    keys = [key for key in rows[0] if key.startswith("compress/")]
    assert {"compress/sparsity/global", "compress/saturation/max", "compress/bits/weight"} <= set(keys)
    for key in keys:
        written = [(int(row["step"]), round(float(row[key]), 5)) for row in rows if row[key]]
        shown = [(event.step, round(event.value, 5)) for event in events.Scalars(key)]
        assert shown == written, key
    assert events.Tags()["images"] == ["compress/schedule"]
    assert events.Tags()["histograms"]
    for folder in (board.log_dir, table.log_dir):
        names = {path.name for path in Path(folder).iterdir()}
        assert {"compress_layers.csv", "compress_layers_over_time.csv", "compress_plan.json"} <= names
