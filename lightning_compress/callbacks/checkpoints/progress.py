"""Corrects what Lightning counts wrongly or leaves out when it resumes from a checkpoint of an epoch's last batch."""

from __future__ import annotations

from typing import Any

import lightning as L

_PLATEAU = "lightning_compress_plateau_metrics"


def correct_progress(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Let a fit begin the next epoch where its checkpoint was written in or after the last batch of one.

    Lightning 2.6 counts the epoch of a checkpoint that was written in its last batch (``every_n_train_steps``) as
    done, but the next one not as begun, so that a checkpoint from that next epoch restarts it: its first batches
    are trained twice (with ``max_epochs``). From a checkpoint of an epoch's end it goes on inside that epoch, with a
    batch too many or with its end a second time (with ``max_steps``). Its issues 18060, 19367 and 19617 are of this
    kind. Here the loaded counters become those of a run between two epochs, before Lightning reads them. Where they
    are so already nothing changes: every callback of a Trainer may call this.

    Args:
        trainer: Whose fit goes on.
        checkpoint: As loaded; its ``"loops"`` are changed.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop")
    if loops is None or trainer.state.fn != "fit":
        return
    epoch, batch = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    total = batch["total"]
    if not batch["is_last_batch"] or total["processed"] < total["ready"]:
        return
    if trainer.max_epochs not in (None, -1) and epoch["current"]["ready"] >= trainer.max_epochs:
        # It was the last epoch: there is none to begin.
        return
    by_steps = trainer.max_steps != -1
    in_batch_end = total["completed"] < total["processed"]
    ended = epoch["total"]["processed"] == epoch["total"]["ready"]
    # From the validation after a last batch, and by epochs from the end of one, Lightning goes on well.
    if not in_batch_end and not (by_steps and ended):
        return
    for counts in (epoch["total"], epoch["current"]):
        counts["processed"] = counts["completed"] = counts["ready"]
    # With max_steps Lightning always takes itself to be inside an epoch, here before its first batch. It then adds
    # what it had not counted yet when a checkpoint was written in on_train_batch_end, so that is what this must be.
    total["completed"] = total["processed"] - by_steps
    batch["current"] = {**dict.fromkeys(batch["current"], 0), "completed": -int(by_steps)}
    batch["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] += in_batch_end - by_steps
    validation = loops["epoch_loop.val_loop.batch_progress"]
    validation["total"] = dict.fromkeys(validation["total"], 0)


def keep_plateau_metrics(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Note in a checkpoint of an epoch's end which metrics ``ReduceLROnPlateau`` is about to be stepped with.

    Lightning steps such schedulers after the checkpoints of an epoch's end are written, and does not make up for it
    in a run that goes on from one: its learning rates lag behind by an epoch.
    """
    progress: Any = trainer.fit_loop.epoch_progress.current
    ended = progress.processed > progress.completed or (trainer.validating and trainer.is_last_batch)
    if trainer.state.fn != "fit" or not ended or not trainer.lightning_module.automatic_optimization:
        return
    checkpoint[_PLATEAU] = {
        index: float(trainer.callback_metrics[config.monitor])
        for index, config in enumerate(trainer.lr_scheduler_configs)
        if config.reduce_on_plateau
        and config.interval == "epoch"
        and (trainer.current_epoch + 1) % config.frequency == 0
        and config.monitor in trainer.callback_metrics
    }


class PlateauSteps:
    """The steps of ``ReduceLROnPlateau`` that the run of a checkpoint had still to make."""

    def __init__(self) -> None:
        self._metrics: dict[int, float] = {}

    def take(self, checkpoint: dict[str, Any]) -> None:
        """Take them from a checkpoint; the first callback of a Trainer gets them."""
        self._metrics = checkpoint.pop(_PLATEAU, {})

    def make(self, trainer: L.Trainer) -> None:
        """Make them, once the schedulers are as they were saved."""
        for index, metric in self._metrics.items():
            if index < len(trainer.lr_scheduler_configs):
                trainer.lightning_module.lr_scheduler_step(trainer.lr_scheduler_configs[index].scheduler, metric)
        self._metrics = {}
