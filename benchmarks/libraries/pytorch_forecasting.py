"""pytorch-forecasting: the temporal fusion transformer, as its tutorial trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import QUIET, Trained

REQUIREMENTS = ("pytorch-forecasting",)
LINES = "trainer = pl.Trainer(..., callbacks=callbacks)"


def train(callbacks: list[Any], folder: Path) -> Trained:
    """Two sines."""
    import lightning.pytorch as pl
    import numpy as np
    import pandas as pd
    from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
    from pytorch_forecasting.metrics import QuantileLoss

    time = np.arange(60)
    frame = pd.concat(
        pd.DataFrame({"time": time, "group": group, "value": np.sin(time / 5 + shift).astype("float32")})
        for group, shift in (("a", 0.0), ("b", 1.0))
    ).reset_index(drop=True)
    training = TimeSeriesDataSet(
        frame[frame.time < 50],
        time_idx="time",
        target="value",
        group_ids=["group"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_known_reals=["time"],
        time_varying_unknown_reals=["value"],
        static_categoricals=["group"],
    )
    validation = TimeSeriesDataSet.from_dataset(training, frame, predict=True, stop_randomization=True)
    loaders = [
        dataset.to_dataloader(train=train, batch_size=8, num_workers=0)
        for dataset, train in ((training, True), (validation, False))
    ]
    model = TemporalFusionTransformer.from_dataset(
        training, learning_rate=0.01, hidden_size=16, attention_head_size=2, hidden_continuous_size=8,
        loss=QuantileLoss(),
    )  # fmt: skip
    trainer = pl.Trainer(max_epochs=3, default_root_dir=folder, callbacks=callbacks, **QUIET)
    trainer.fit(model, *loaders)
    return Trained(model, lambda: model.predict(loaders[1], trainer_kwargs=dict(QUIET)))
