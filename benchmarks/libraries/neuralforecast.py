"""neuralforecast: N-HiTS, as its quick start trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import QUIET, Trained

REQUIREMENTS = ("neuralforecast",)
LINES = "models = [NHITS(..., callbacks=callbacks)]"


def train(callbacks: list[Any], folder: Path) -> Trained:
    """Passengers of airlines."""
    from neuralforecast import NeuralForecast
    from neuralforecast.models import NHITS
    from neuralforecast.utils import AirPassengersDF

    model = NHITS(
        h=4,
        input_size=12,
        max_steps=24,
        val_check_steps=12,
        mlp_units=[[32, 32]] * 3,
        batch_size=4,
        windows_batch_size=16,
        callbacks=callbacks,
        default_root_dir=str(folder),
        **QUIET,
    )
    forecast = NeuralForecast(models=[model], freq="ME")
    forecast.fit(AirPassengersDF, val_size=12)
    return Trained(forecast.models[0], lambda: forecast.predict())
