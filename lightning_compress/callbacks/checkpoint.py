"""Checkpoints that count as best only once the model is compressed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_compress.callbacks.checkpoints.hyper_parameters import leave_out_ours
from lightning_compress.callbacks.checkpoints.progress import PlateauSteps, correct_progress, keep_plateau_metrics
from lightning_compress.callbacks.checkpoints.random_states import random_states, restore_random_states
from lightning_compress.callbacks.monitor import compression
from lightning_compress.errors import CompressionError
from lightning_compress.lightning_packages import package_of
from lightning_compress.monitoring.phases import ready

if TYPE_CHECKING:
    _Base = ModelCheckpoint
else:
    _Base = object


class OnlyCompressed(_Base):
    """Makes a ``ModelCheckpoint`` of either of Lightning's packages ignore epochs before the targets are reached.

    Attributes:
        keeps_random_states: That checkpoints hold the states of the random number generators.
    """

    keeps_random_states = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plateaus = PlateauSteps()
        self._refused = 0
        self._live_epoch = False
        self._live_validation: bool | None = None
        self._started_live = False
        self._before: Tensor | None = None
        self._last_batch: tuple[Any, ...] | None = None
        self._random: dict[str, Any] | None = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # A Trainer knows checkpoint callbacks by the class of its own package.
        if package_of(trainer) is not package_of(self):
            place = "callbacks.pytorch_lightning" if package_of(self) is L.pytorch else "callbacks"
            raise CompressionError(
                f"{type(self).__name__}: expected a Trainer of {package_of(self).__name__}, got one of "
                f"{package_of(trainer).__name__}. Take the class from lightning_compress.{place}."
            )
        super().setup(trainer, pl_module, stage)

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        keep_plateau_metrics(trainer, checkpoint)
        leave_out_ours(checkpoint)

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        correct_progress(trainer, checkpoint)
        self._plateaus.take(checkpoint)

    @override
    def state_dict(self) -> dict[str, Any]:
        # A run that goes on inside an epoch does not start it again.
        return {**super().state_dict(), "live_epoch": self._live_epoch, "random": random_states()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._live_epoch = state_dict["live_epoch"]
        self._random = state_dict["random"]

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if trainer.ckpt_path is None:
            # What was loaded was loaded for an evaluation.
            self._random = None
        # Checkpoint callbacks come last. What follows is drawn as at the start of every epoch.
        if self._random is not None:
            restore_random_states(self._random, trainer)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._plateaus.make(trainer)
        super().on_train_start(trainer, pl_module)
        self._refused = 0
        self._live_validation = None
        self._last_batch = None
        if not trainer.fit_loop.restarted_mid_epoch:
            self._random = None

    @override
    def on_train_batch_start(self, *arguments: Any) -> None:
        super().on_train_batch_start(*arguments)
        if self._random is not None:
            # Inside an epoch the run went on with its loader's iterator, where a resume draws seeds for a new one.
            states, self._random = self._random, None
            restore_random_states(states, arguments[0])

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        if trainer.is_last_batch and not self._waits_for_validation(trainer):
            self._last_batch = batch
        else:
            super().on_train_batch_end(trainer, pl_module, *batch)

    def _waits_for_validation(self, trainer: L.Trainer) -> bool:
        """Whether Lightning saves what falls on the last batch of this epoch in the validation that follows it."""
        every = trainer.check_val_every_n_epoch
        validates = trainer.enable_validation and (every is None or (trainer.current_epoch + 1) % every == 0)
        return self.monitor is not None and validates and not self._should_save_on_train_epoch_end(trainer)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._last_batch is not None:
            batch, self._last_batch = self._last_batch, None
            super().on_train_batch_end(trainer, pl_module, *batch)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._live_epoch = ready(*compression(trainer))

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started_live = ready(*compression(trainer))
        self._before = trainer.callback_metrics.get(self.monitor) if self.monitor else None

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A validation that logged the metric put a new tensor in its place.
        if self.monitor and trainer.callback_metrics.get(self.monitor) is not self._before:
            self._live_validation = self._started_live
        super().on_validation_end(trainer, pl_module)

    @override
    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        live = self._live_epoch if self._live_validation is None else self._live_validation
        # Equal on all ranks, so that the reduction behind super() is reached by all or by none.
        if live and ready(*compression(trainer)):
            return super().check_monitor_top_k(trainer, current)
        self._refused += 1
        return False

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self._refused and not self.best_model_path and self.save_top_k != 0:
            rank_zero_warn(
                f"{type(self).__name__}: no checkpoint was kept as best by {self.monitor!r}: target sparsity and bits "
                "were never live for a whole measurement of it. Train for longer, or let compression finish earlier."
            )


class CompressedCheckpoint(OnlyCompressed, ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, except that no dense epoch can be the best.

    Early epochs often score better only because they are not compressed yet. Here a value of ``monitor`` competes for
    the top k only if target sparsity and bits were live for all of its measurement: from the start of the last
    validation for a metric that validation logs, from the start of the training epoch for any other. Without
    ``monitor`` the newest checkpoints are kept, as Lightning does; ``save_last`` and ``save_on_exception`` are not
    gated either, since they are there to resume from. A checkpoint that falls on the last batch of an epoch
    (``every_n_train_steps``) is written at the epoch's end, or by the validation that follows where that measures
    ``monitor``, so that a run which goes on from there has validated that epoch. The states of the random number
    generators are in its checkpoints, so that a resumed run draws what the run would have drawn (dropout, the order of
    data), in a run of one process. All arguments are those of ``ModelCheckpoint``. A Trainer of ``pytorch_lightning``
    takes the class of the same name from ``lightning_compress.callbacks.pytorch_lightning``.

    Where nothing compresses, this is ``ModelCheckpoint``.

    Example:
        >>> CompressedCheckpoint(monitor="val/acc", mode="max").save_top_k
        1
    """
