"""The main job: a dense control, the compressed model from the same initial weights, and what came out."""

from __future__ import annotations

import logging
import re
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from lightning_compress.config import Settings, retarget, settings
from lightning_compress.errors import CompressionError
from lightning_compress.instantiate import instantiate
from lightning_compress.outcome import RESULT_FILE, Outcome, read_report

log = logging.getLogger(__name__)

# Lightning says at every fit which accelerators there are, and warns of loaders without worker processes, which
# data in memory does not need. The third comes from Lightning's use of an older PyTorch interface.
_QUIET = ("does not have many workers", r"`isinstance\(treespec, LeafSpec\)`")

COMPRESSION = ("pruning", "quantization", "export")
"""Config groups whose node is one callback, or empty."""


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
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if self._asked and stepped:
            trainer.save_checkpoint(self.path)
            self.saved = True
            raise KeyboardInterrupt

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("\nStopping after this step. Press Ctrl-C again to stop at once.", file=sys.stderr)


def run(cfg: DictConfig, output_dir: str | Path, overrides: Sequence[str] = ()) -> Outcome:
    """Do the main job.

    Args:
        cfg: The composed config.
        output_dir: Where everything is written; must not hold the result of another run.
        overrides: The command line's overrides, for the command that resumes.

    Returns:
        What came out, which is also in ``result.json`` under ``output_dir``.

    Raises:
        CompressionError: Something in the config cannot be done.
        Interrupted: Ctrl-C.
    """
    output = Path(output_dir)
    retarget(cfg, overrides)
    wanted = settings(cfg)
    if (output / RESULT_FILE).exists():
        raise CompressionError.field(
            "hydra.run.dir", expected="a directory without results", got=str(output), fix="Choose a new one."
        )
    output.mkdir(parents=True, exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _QUIET:
        warnings.filterwarnings("ignore", message=f".*{message}")
    job = _Job(cfg, wanted, output, list(overrides))
    job.check()
    try:
        return job.run()
    finally:
        _finish_wandb()


class _Job:
    """One run of the main job: the parts are made anew for each of the two trainings."""

    def __init__(self, cfg: DictConfig, wanted: Settings, output: Path, overrides: list[str]) -> None:
        self.cfg, self.wanted, self.output, self.overrides = cfg, wanted, output, overrides
        self.seconds: dict[str, float] = {}

    def check(self) -> None:
        """Build everything once and drop it, so that bad settings are refused before the dense control trains."""
        self.model_and_data()
        self.callbacks()
        for group in COMPRESSION:
            self.compression(group)

    def run(self) -> Outcome:
        """Train what is asked for and gather the results."""
        dense: dict[str, float] = {}
        checkpoint = Path(self.wanted.dense_checkpoint) if self.wanted.dense_checkpoint else None
        if checkpoint is not None or self.wanted.dense_baseline:
            dense, checkpoint = self.dense(checkpoint)
        metrics, last = self.compressed(checkpoint)
        outcome = Outcome.gather(
            name=self.wanted.name,
            output_dir=self.output,
            metrics=metrics,
            dense=dense,
            report=read_report(self.cfg.export.dirpath) if self.cfg.get("export") else None,
            checkpoint=last,
            dense_checkpoint=checkpoint,
            seconds=self.seconds,
        )
        outcome.write()
        return outcome.with_objective(self.wanted.optimized_metric)

    def model_and_data(self) -> tuple[L.LightningModule, Any]:
        """A fresh model and data module, the same at every call."""
        L.seed_everything(self.wanted.seed, workers=True, verbose=False)
        data = instantiate(self.cfg.data, "data")
        model = instantiate(self.cfg.model, "model")
        if not isinstance(model, L.LightningModule):
            raise CompressionError.field(
                "model._target_",
                expected="a LightningModule",
                got=self.cfg.model.get("_target_"),
                fix="A network alone goes to model.net._target_.",
            )
        return model, data

    def callbacks(self) -> list[Callback]:
        """The callbacks of the ``callbacks`` group."""
        return _instantiate_all(self.cfg.get("callbacks"), "callbacks")

    def compression(self, group: str, **arguments: Any) -> list[Callback]:
        """The one callback of a compression group, or none."""
        node = self.cfg.get(group)
        return [instantiate(node, group, **arguments)] if node else []

    def dense(self, checkpoint: Path | None) -> tuple[dict[str, float], Path]:
        """Train the dense control, unless it is there, and evaluate it."""
        began = time.perf_counter()
        model, data = self.model_and_data()
        folder = self.output / "dense"
        keep = InterruptCheckpoint(folder)
        others = [c for c in self.callbacks() if not isinstance(c, Checkpoint) and not _is_ours(c)]
        trainer = self.trainer(CSVLogger(self.output, name="dense", version=""), [*others, keep])
        trained = checkpoint is None
        metrics: dict[str, float] = {}
        if checkpoint is None:
            log.info("Dense control: training without compression.")
            self.fit(trainer, model, data, keep, self.wanted.dense_ckpt_path, "dense_ckpt_path", [])
            metrics = _numbers(trainer.callback_metrics)
            checkpoint = folder / "dense.ckpt"
            trainer.save_checkpoint(checkpoint, weights_only=True)
        else:
            metrics = _evaluate(trainer.validate, "validation_step", "val_dataloader", model, data, checkpoint)
        metrics |= _evaluate(trainer.test, "test_step", "test_dataloader", model, data, None if trained else checkpoint)
        self.seconds["dense"] = time.perf_counter() - began
        return metrics, checkpoint

    def compressed(self, dense_checkpoint: Path | None) -> tuple[dict[str, float], Path | None]:
        """Train with the compression callbacks and evaluate what was trained."""
        began = time.perf_counter()
        model, data = self.model_and_data()
        dense = {"dense": str(dense_checkpoint)} if dense_checkpoint is not None else {}
        callbacks = [
            *self.callbacks(),
            *self.compression("pruning"),
            *self.compression("quantization"),
            *self.compression("export", **dense),
        ]
        keep = next((c for c in callbacks if isinstance(c, InterruptCheckpoint)), None)
        loggers: list[Logger] = _instantiate_all(self.cfg.get("logger"), "logger")
        trainer = self.trainer(loggers or False, callbacks)
        for logger in loggers:
            logger.log_hyperparams(_plain(self.cfg))
        done = [f"dense_checkpoint={_quote(dense_checkpoint)}"] if dense_checkpoint is not None else []
        self.fit(trainer, model, data, keep, self.wanted.ckpt_path, "ckpt_path", done)
        metrics = _numbers(trainer.callback_metrics)
        metrics |= _evaluate(trainer.test, "test_step", "test_dataloader", model, data)
        self.seconds["compressed"] = time.perf_counter() - began
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        return metrics, Path(best) if best else None

    def trainer(self, logger: Any, callbacks: list[Callback]) -> L.Trainer:
        """A Trainer of the ``trainer`` group."""
        # Objects go to a partial: a config cannot hold them.
        build = instantiate(self.cfg.trainer, "trainer", _partial_=True)
        checkpoints = any(isinstance(callback, Checkpoint) for callback in callbacks)
        try:
            trainer = build(logger=logger, callbacks=callbacks, enable_checkpointing=checkpoints)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise CompressionError(f"trainer: {' '.join(str(error).split())}") from error
        if not isinstance(trainer, L.Trainer):
            raise CompressionError.field("trainer._target_", expected="a Trainer", got=self.cfg.trainer._target_)
        return trainer

    def fit(
        self,
        trainer: L.Trainer,
        model: L.LightningModule,
        data: Any,
        keep: InterruptCheckpoint | None,
        ckpt_path: str | None,
        resume_key: str,
        done: list[str],
    ) -> None:
        """Fit, and turn an interrupt into one that says how to go on."""
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        except SystemExit:
            # Lightning's answer to KeyboardInterrupt; it leaves later interrupts ignored.
            if not trainer.interrupted:
                raise
            checkpoint = self.resumable(trainer, keep)
            kept = [text for text in self.overrides if not re.match(r"\+*(dense_)?(ckpt_path|checkpoint)=", text)]
            resume = [f"{resume_key}={_quote(checkpoint)}"] if checkpoint else []
            command = shlex.join(["lightning-compress", "train", *kept, *done, *resume])
            raise Interrupted(checkpoint, command) from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)

    @staticmethod
    def resumable(trainer: L.Trainer, keep: InterruptCheckpoint | None) -> Path | None:
        """The newest checkpoint of an interrupted fit."""
        if keep is not None and keep.saved:
            return keep.path
        last = getattr(trainer.checkpoint_callback, "best_model_path", "")
        return Path(last) if last else None


def _instantiate_all(group: DictConfig | None, key: str) -> list[Any]:
    """Everything in a group of named nodes; an entry set to null is left out."""
    return [instantiate(node, f"{key}.{name}") for name, node in (group or {}).items() if node]


def _is_ours(callback: Callback) -> bool:
    return type(callback).__module__.startswith("lightning_compress.")


def _evaluate(
    evaluate: Any, step: str, loader: str, model: L.LightningModule, data: Any, checkpoint: Path | None = None
) -> dict[str, float]:
    """Metrics of a validation or test pass; none where the module or the data has no such part."""
    if not is_overridden(step, model) or not is_overridden(loader, data):
        return {}
    found = evaluate(model, datamodule=data, verbose=False, ckpt_path=str(checkpoint) if checkpoint else None)
    return _numbers({name: value for part in found for name, value in part.items()})


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _quote(path: Path | None) -> str:
    """A path as Hydra's grammar wants it."""
    text = str(path)
    return text if re.fullmatch(r"[\w./:-]+", text) else f"'{text}'"


def _finish_wandb() -> None:
    """End the job's W&B run, or a sweep's jobs would all write into the first one."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
