"""Model, callbacks, loggers and Trainer of a job, as its config describes them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from lightning_compress import loggers
from lightning_compress.apps.configuration.instantiate import instantiate
from lightning_compress.apps.configuration.layer_patterns import by_pattern
from lightning_compress.apps.configuration.settings import COMPRESSION, Settings
from lightning_compress.callbacks.starting_weights import StartingWeights
from lightning_compress.errors import CompressionError
from lightning_compress.lightning_packages import is_instance

log = logging.getLogger(__name__)

TAKES_DENSE = {"distillation": "teacher", "export": "dense"}
"""Their settings that are the dense control, where nothing else is given."""


class Parts:
    """Builds the parts of a job again for each training.

    Args:
        cfg: The composed config.
        wanted: Its settings, checked.
    """

    def __init__(self, cfg: DictConfig, wanted: Settings) -> None:
        self.cfg, self.wanted = cfg, wanted

    def model(self) -> L.LightningModule:
        """A fresh model, with the same weights at every call."""
        L.seed_everything(self.wanted.seed, workers=True, verbose=False)
        model = instantiate(self.cfg.model, "model")
        if not is_instance(model, L.LightningModule):
            raise CompressionError.field(
                "model._target_",
                expected="a LightningModule",
                got=self.cfg.model.get("_target_"),
                fix="A network alone goes to model.net._target_.",
            )
        return model

    def callbacks(self, dense_checkpoint: Path | None = None) -> list[Callback]:
        """Fresh callbacks: those of the ``callbacks`` group, and one for each compression group in use."""
        callbacks = instantiate_all(self.cfg.get("callbacks"), "callbacks")
        if self.wanted.init_checkpoint is not None:
            callbacks.insert(0, StartingWeights(self.wanted.init_checkpoint, "init_checkpoint"))
        for group in COMPRESSION:
            if node := self.cfg.get(group):
                setting = TAKES_DENSE.get(group)
                lacks = setting is not None and node.get(setting) is None and dense_checkpoint is not None
                dense = {str(setting): str(dense_checkpoint)} if lacks else {}
                callbacks.append(instantiate(node, group, **dense, **by_pattern(node, group)))
        return callbacks

    def loggers(self) -> list[Logger]:
        """The loggers of the ``logger`` group; one whose server cannot be reached logs to this machine."""
        found: list[Logger] = []
        for name, node in (self.cfg.get("logger") or {}).items():
            if not node:
                continue
            logger = instantiate(node, f"logger.{name!s}")
            if reason := loggers.sink(logger).connect(silent=bool(OmegaConf.select(node, "settings.silent"))):
                log.warning("W&B cannot be reached, and the run continues offline (later: wandb sync). %s", reason)
                # W&B has read its environment by now, which is all that WandbLogger's own switch would set.
                logger = instantiate(node, f"logger.{name!s}", offline=True, mode="offline")
            found.append(logger)
        return found

    def trainer(self, logger: Any, callbacks: list[Callback]) -> L.Trainer:
        """A Trainer of the ``trainer`` group."""
        # Objects go to a partial: a config cannot hold them.
        build = instantiate(self.cfg.trainer, "trainer", _partial_=True)
        checkpoints = any(is_instance(callback, Checkpoint) for callback in callbacks)
        try:
            trainer = build(logger=logger, callbacks=callbacks, enable_checkpointing=checkpoints)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise CompressionError(f"trainer: {' '.join(str(error).split())}") from error
        if not is_instance(trainer, L.Trainer):
            raise CompressionError.field("trainer._target_", expected="a Trainer", got=self.cfg.trainer._target_)
        return trainer


def instantiate_all(group: DictConfig | None, key: str) -> list[Any]:
    """Everything in a group of named nodes; an entry set to null is left out."""
    return [instantiate(node, f"{key}.{name!s}") for name, node in (group or {}).items() if node]
