"""What a resume from a checkpoint of a run does not restore bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
from torch import nn

from lightning_compress.foundation.pytree import tree_leaves

_DRAWS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)


def resume_limits(trainer: L.Trainer, pl_module: L.LightningModule) -> list[str]:
    """Sentences on this very run; empty where a resume is bit-identical, or there is nothing to resume from.

    Args:
        trainer: The run's, when training begins.
        pl_module: Its module.
    """
    savers = [callback for callback in trainer.callbacks if _saves_states(callback)]  # type: ignore[attr-defined]
    if not savers:
        return []
    found = []
    kept = any(getattr(saver, "keeps_random_states", False) for saver in savers) and trainer.world_size == 1
    draws = sorted({type(part).__name__ for part in pl_module.modules() if isinstance(part, _DRAWS) and part.training})
    if draws and not kept:
        way = "in a run of one process" if trainer.world_size > 1 else "with CompressedCheckpoint"
        found.append(
            f"a run that resumes draws other random numbers ({', '.join(draws)}); their state is kept {way} alone."
        )
    averaging = [
        type(callback).__name__
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if any(kind.__name__ in ("StochasticWeightAveraging", "WeightAveraging") for kind in type(callback).__mro__)
    ]
    if averaging:
        found.append(
            f"a run that resumes averages its weights again from there ({', '.join(averaging)}), so that the averages, "
            f"and what is exported of them, differ from those of a run that was not stopped."
        )
    if trainer.accumulate_grad_batches > 1 and any(getattr(saver, "save_on_exception", False) for saver in savers):
        found.append(
            f"a checkpoint that save_on_exception writes between two optimizer steps lacks the gradients of up to "
            f"{trainer.accumulate_grad_batches - 1} batches (accumulate_grad_batches)."
        )
    inside = [saver for saver in savers if _saves_inside_epochs(saver)]
    if inside and not _keeps_place(tree_leaves(trainer.train_dataloader)):
        found.append(
            "a checkpoint from inside an epoch restarts that epoch's data, since the training loader does not save its "
            "position (state_dict and load_state_dict, as torchdata's StatefulDataLoader has)."
        )
    return [f"Resume: {line}" for line in found]


def _saves_states(callback: Any) -> bool:
    """Whether a callback writes checkpoints from which a fit can go on."""
    return hasattr(callback, "save_weights_only") and not callback.save_weights_only


def _saves_inside_epochs(callback: Any) -> bool:
    return getattr(callback, "every_n_epochs", 1) == 0 or bool(getattr(callback, "save_on_exception", False))


def _keeps_place(loaders: Iterable[Any]) -> bool:
    return all(hasattr(loader, "load_state_dict") and hasattr(loader, "state_dict") for loader in loaders)
