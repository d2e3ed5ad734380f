"""Puts right what Lightning counts wrongly when it goes on from a checkpoint of an epoch's last batch."""

from __future__ import annotations

from typing import Any

import lightning as L


def mend_progress(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Let a fit begin the next epoch where its checkpoint was written in or after the last batch of one.

    Lightning 2.6 counts the epoch of a checkpoint that was written in its last batch (``every_n_train_steps``) as
    done, but the next one not as begun, so that a checkpoint from that next epoch starts it anew: its first batches
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
