"""A trained model and some of its training batches, as the configuration's own training would see them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor
from typing_extensions import override

from lightning_compress.apps.train.job import Rehearsed, rehearse
from lightning_compress.delivery.dense_baseline import read_dense, refuse_other_model
from lightning_compress.delivery.evaluation import EvaluationData, Split, duplicate
from lightning_compress.delivery.network_call import Entry, EntryWatch
from lightning_compress.errors import CompressionError
from lightning_compress.foundation.pytree import tree_map_only

_APART = ("pruning", "quantization", "distillation", "export", "callbacks", "logger")
_LOGGING = r".*(You are trying to `self\.log\(\)`|`training_step` returned `None`)"


@dataclass(frozen=True)
class TrainingBatches:
    """A trained model and what it is measured or calibrated with.

    Attributes:
        model: A copy of the trained module in eval mode, in float32.
        batches: Training batches, on the model's device.
        entry: The call of the network in a training step.
        evaluation: Split → what its step runs on.
        command: Name of the command, for messages.
    """

    model: L.LightningModule
    batches: Sequence[Any]
    entry: Entry
    evaluation: Mapping[Split, EvaluationData]
    command: str

    def losses(self) -> Iterator[Tensor]:
        """The training loss of each batch, with the graph that the caller allows; equal random numbers every time.

        Raises:
            CompressionError: The training step gives no loss, or does not run without a Trainer.
        """
        with isolate_rng(), logging_apart():
            torch.manual_seed(0)
            for index, batch in enumerate(self.batches):
                yield step_loss(self.model, batch, index, self.command)

    def loss(self) -> float:
        """Mean training loss over the batches."""
        with torch.no_grad():
            found = [float(loss) for loss in self.losses()]
        return sum(found) / len(found)


def collect(
    cfg: DictConfig, folder: str, overrides: Sequence[str], checkpoint: Path, batches: int, command: str
) -> TrainingBatches:
    """Begin the training that a config describes, with a checkpoint's weights, and keep its first batches.

    Args:
        cfg: The composed config; its compression, callbacks and loggers are taken out.
        folder: For what a fit writes when it begins.
        overrides: The command line's overrides.
        checkpoint: Weights of the trained model.
        batches: How many batches; fewer where an epoch has no more.
        command: Name of the command, for messages.

    Raises:
        CompressionError: The checkpoint is of another model, there is no batch, or the module optimizes by hand.
    """
    with open_dict(cfg):
        for group in _APART:
            cfg[group] = {}
        for name in ("enable_progress_bar", "num_sanity_val_steps"):
            if OmegaConf.select(cfg, f"trainer.{name}") is not None:
                cfg.trainer[name] = 0 if name.startswith("num") else False
    watch = _Collect(read_dense(checkpoint, "--checkpoint"), batches, command)
    with logging_apart():
        rehearse(cfg, folder, overrides, watch)
    if watch.model is None or not watch.batches:
        raise CompressionError(
            f"{command}: the training data has no batch. Make it longer than one, or set drop_last=False."
        )
    model = watch.model
    like = next(p for p in model.parameters() if p.is_floating_point())
    kept = tree_map_only(
        Tensor, lambda t: t.to(like.device, like.dtype if t.is_floating_point() else None), watch.batches
    )
    with EntryWatch(model, redirected=False, field=command) as entries, torch.no_grad(), logging_apart():
        step_loss(model, kept[0], 0, command)
    return TrainingBatches(model, kept, entries.entry(), watch.evaluation, command)


@contextmanager
def logging_apart() -> Iterator[None]:
    """Leave out Lightning's warnings of steps that log outside of a Trainer, or give no loss."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_LOGGING)
        yield


class _Collect(Callback):
    """Keeps the first batches of a fit in which nothing is trained."""

    def __init__(self, state: Mapping[str, Tensor], count: int, command: str) -> None:
        self.state, self.count, self.command = state, count, command
        self.model: L.LightningModule | None = None
        self.batches: list[Any] = []
        self.evaluation: dict[Split, EvaluationData] = {}

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise CompressionError(
                f"{self.command}: {type(pl_module).__name__} optimizes by hand, so its training_step gives no loss "
                "that could be measured without training. Return the loss, with automatic_optimization=True."
            )
        refuse_other_model(self.state, pl_module, "--checkpoint")
        pl_module.load_state_dict(dict(self.state), strict=False)
        self.model = duplicate(pl_module).to(pl_module.device)
        self.evaluation = {"val": EvaluationData.of(trainer, "val"), "test": EvaluationData.of(trainer, "test")}
        # Batches pass all of the Trainer's hooks; a step without a loss changes no weight.
        pl_module.training_step = lambda *_, **__: None  # type: ignore[method-assign]

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(batch)
        if len(self.batches) == self.count:
            raise Rehearsed

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise Rehearsed


def step_loss(model: L.LightningModule, batch: Any, index: int, command: str) -> Tensor:
    """The loss of one training step, outside of a Trainer.

    Raises:
        CompressionError: The step does not run without a Trainer, or gives no loss.
    """
    parameters = inspect.signature(model.training_step).parameters
    try:
        # As Lightning does: the second argument is the index, whatever its name.
        result = model.training_step(batch, *([index] if len(parameters) > 1 else []))
    except RuntimeError as error:
        raise CompressionError(
            f"{command}: {type(model).__name__}.training_step does not run outside of a Trainer: "
            f"{' '.join(str(error).split())}"
        ) from error
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor):
        raise CompressionError.field(
            f"{type(model).__name__}.training_step",
            expected="a loss tensor, or a dict with one",
            got=type(loss).__name__,
        )
    return loss
