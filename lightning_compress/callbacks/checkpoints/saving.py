"""The part of every callback that acts on a checkpoint which is about to be written."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_compress.callbacks.checkpoints.hyper_parameters import leave_out_ours
from lightning_compress.callbacks.checkpoints.progress import keep_plateau_metrics


class SavingCallback(Callback):
    """A callback whose checkpoints hold what Lightning leaves out, and open where this package is not installed."""

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        keep_plateau_metrics(trainer, checkpoint)
        leave_out_ours(checkpoint)
