"""Weights that a training starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_compress.delivery.dense_baseline import read_dense, refuse_other_model


class StartingWeights(Callback):
    """Loads a checkpoint's weights into the module when a fit or a test begins, and nothing else of it.

    Stands before the other callbacks, so that these find the weights there. A fit that resumes keeps what it was.

    Args:
        path: A checkpoint, or a ``state_dict``.
        field: Name of the setting, for messages.
        stage: Whether it is a fit or a test that begins with them.

    Raises:
        CompressionError: The file cannot be read (at construction) or is of another model (when the stage begins).
    """

    def __init__(self, path: str | Path, field: str, stage: Literal["fit", "test"] = "fit") -> None:
        super().__init__()
        self._state, self._field, self._stage = read_dense(Path(path), field), field, stage

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._stage == "fit" and trainer.ckpt_path is None:
            self._load(pl_module)

    @override
    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._stage == "test":
            self._load(pl_module)

    def _load(self, module: L.LightningModule) -> None:
        refuse_other_model(self._state, module, self._field)
        module.load_state_dict(self._state, strict=False)
