"""Ctrl-C that writes a checkpoint from which the run resumes to the same weights."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override


class Interrupted(KeyboardInterrupt):
    """The run was stopped by Ctrl-C.

    Attributes:
        checkpoint: From which it can go on; ``None`` if it had not trained yet.
        command: Command line that goes on.
    """

    def __init__(self, checkpoint: Path | None, command: str) -> None:
        super().__init__(f"Go on with:\n  {command}" if checkpoint else "Nothing was trained yet.")
        self.checkpoint, self.command = checkpoint, command


class InterruptCheckpoint(Checkpoint):
    """Lets Ctrl-C take effect at the end of an optimizer step, with a checkpoint that goes on from there.

    An interrupt in the middle of a batch would leave weights that do not fit the batch counter. A second Ctrl-C
    stops at once, without a checkpoint of its own.

    Args:
        dirpath: Directory of the checkpoint ``interrupted.ckpt``.
    """

    def __init__(self, dirpath: str | Path) -> None:
        super().__init__()
        self.path = Path(dirpath) / "interrupted.ckpt"
        self.saved = False
        self._asked = False
        self._previous: Any = None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved = self._asked = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # After the last batch, validation and the end of the epoch belong to the step as well.
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch:
            self._stop_if_asked(trainer)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # After the last epoch there would be nothing to go on with.
        if not trainer.fit_loop.done:
            self._stop_if_asked(trainer)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        if self._asked:
            trainer.save_checkpoint(self.path)
            self.saved = True
            raise KeyboardInterrupt

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("\nStopping after this step. Press Ctrl-C again to stop at once.", file=sys.stderr)
