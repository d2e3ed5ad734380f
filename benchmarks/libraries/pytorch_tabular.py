"""pytorch-tabular: category embeddings and a multilayer perceptron, as its basic usage trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import Trained

REQUIREMENTS = ("pytorch-tabular",)
LINES = "tabular_model.fit(..., callbacks=callbacks)"


def train(callbacks: list[Any], folder: Path) -> Trained:
    """Two classes from one category and two numbers."""
    import numpy as np
    import pandas as pd
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import CategoryEmbeddingModelConfig

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=160), "b": rng.normal(size=160), "c": rng.choice(list("xyz"), 160)})
    frame["target"] = (frame.a + frame.b > 0).astype(int)
    model = TabularModel(
        data_config=DataConfig(target=["target"], continuous_cols=["a", "b"], categorical_cols=["c"]),
        model_config=CategoryEmbeddingModelConfig(task="classification", layers="32-16"),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=16,
            max_epochs=3,
            accelerator="cpu",
            progress_bar="none",
            early_stopping=None,
            checkpoints=None,
            load_best=False,
            trainer_kwargs={"default_root_dir": str(folder), "enable_model_summary": False},
        ),
        verbose=False,
    )
    model.fit(train=frame[:120], validation=frame[120:], callbacks=callbacks)
    return Trained(model.model, lambda: model.predict(frame[120:]))
