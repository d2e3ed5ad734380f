"""Weights that a training starts from."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_compress.export.dense import read_dense, refuse_other_model


class StartingWeights(Callback):
    """Loads a checkpoint's weights into the module when a fit begins, and nothing else of it.

    Stands before the other callbacks, so that these find the weights there. A fit that resumes keeps what it was.

    Args:
        path: A checkpoint, or a ``state_dict``.
        field: Name of the setting, for messages.

    Raises:
        CompressionError: The file cannot be read (at construction) or is of another model (when the fit begins).
    """

    def __init__(self, path: str | Path, field: str) -> None:
        super().__init__()
        self._state, self._field = read_dense(Path(path), field), field

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is None:
            refuse_other_model(self._state, pl_module, self._field)
            pl_module.load_state_dict(self._state, strict=False)
