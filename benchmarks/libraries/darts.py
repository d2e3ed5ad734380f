"""darts: a temporal convolutional network, as its examples train it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import QUIET, Trained

REQUIREMENTS = ("darts[notorch]", "pytorch-lightning")
LINES = 'model = TCNModel(..., pl_trainer_kwargs={"callbacks": callbacks})'


def train(callbacks: list[Any], folder: Path) -> Trained:
    """A sine."""
    from darts.models import TCNModel
    from darts.utils.timeseries_generation import sine_timeseries

    series = sine_timeseries(length=140).astype("float32")
    model = TCNModel(
        input_chunk_length=24,
        output_chunk_length=4,
        num_filters=8,
        batch_size=16,
        n_epochs=3,
        work_dir=str(folder),
        pl_trainer_kwargs={**QUIET, "callbacks": callbacks},
    )
    model.fit(series[:100], val_series=series[100:])
    return Trained(model.model, lambda: model.predict(n=4).values())
