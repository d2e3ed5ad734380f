"""GluonTS: DeepAR in PyTorch, as its quick start trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import QUIET, Trained

REQUIREMENTS = ("gluonts[torch]",)
LINES = 'estimator = DeepAREstimator(..., trainer_kwargs={"callbacks": callbacks})'


def train(callbacks: list[Any], folder: Path) -> Trained:
    """Two random walks."""
    import numpy as np
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import SimpleFeedForwardEstimator

    rng = np.random.default_rng(0)
    series = [{"start": "2020-01-01", "target": rng.normal(size=80).cumsum()} for _ in range(2)]
    dataset = ListDataset(series, freq="D")
    estimator = SimpleFeedForwardEstimator(
        prediction_length=4,
        context_length=16,
        hidden_dimensions=[32, 32],
        batch_size=8,
        num_batches_per_epoch=8,
        trainer_kwargs={**QUIET, "max_epochs": 3, "callbacks": callbacks, "default_root_dir": str(folder)},
    )
    trained = estimator.train_model(dataset, validation_data=dataset)
    return Trained(trained.trained_net, lambda: [forecast.mean for forecast in trained.predictor.predict(dataset)])
