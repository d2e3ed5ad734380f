"""The main job: a dense control, the compressed model from the same initial weights, and their results."""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from lightning_compress import loggers
from lightning_compress.apps.configuration.instantiate import instantiate
from lightning_compress.apps.configuration.overrides import quoted
from lightning_compress.apps.configuration.settings import Settings, drop_unused, settings
from lightning_compress.apps.train.outcome import RESULT_FILE, Outcome, read_report
from lightning_compress.apps.train.parts import Parts, instantiate_all
from lightning_compress.callbacks.export import CompressedExport
from lightning_compress.callbacks.interrupt import InterruptCheckpoint, Interrupted
from lightning_compress.callbacks.starting_weights import StartingWeights
from lightning_compress.errors import CompressionError, DoesNotHold
from lightning_compress.lightning_packages import PACKAGES, is_instance, is_overridden, refuse_mixed

log = logging.getLogger(__name__)

# Lightning says at every fit which accelerators there are, and warns of loaders without worker processes, which
# data in memory does not need. A resumed run has a directory of its own. The last comes from Lightning's use of an
# older PyTorch interface.
_QUIET = ("does not have many workers", "The dirpath has changed from", r"`isinstance\(treespec, LeafSpec\)`")


class Rehearsed(Exception):
    """A training was set up, and goes no further."""


class _EndOfRehearsal(Callback):
    """Ends a fit when the callbacks before this one are ready to train."""

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise Rehearsed


def run(cfg: DictConfig, output_dir: str | Path, overrides: Sequence[str] = ()) -> Outcome:
    """Do the main job.

    Args:
        cfg: The composed config.
        output_dir: Where everything is written; must not hold the result of another run.
        overrides: The command line's overrides, for the command that resumes.

    Returns:
        The results, which are also in ``result.json`` under ``output_dir``.

    Raises:
        CompressionError: Something in the config cannot be done.
        Interrupted: Ctrl-C.
    """
    output = Path(output_dir)
    if (output / RESULT_FILE).exists():
        raise CompressionError.field(
            "hydra.run.dir", expected="a directory without results", got=str(output), fix="Choose a new one."
        )
    with _job(cfg, output, overrides) as job:
        return job.run()


def run_dense(cfg: DictConfig, output_dir: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, float], float]:
    """Train the dense control alone, for several jobs to share; its checkpoint is ``dense/dense.ckpt``.

    Args:
        cfg: The composed config.
        output_dir: Where it is written.
        overrides: The command line's overrides, for the command that resumes.

    Returns:
        Its metrics, and the seconds that it took.

    Raises:
        CompressionError: Something in the config cannot be done.
        Interrupted: Ctrl-C.
    """
    with _job(cfg, Path(output_dir), overrides) as job:
        metrics, _ = job.dense(None)
        return metrics, job.seconds["dense"]


def rehearse(cfg: DictConfig, output_dir: str | Path, overrides: Sequence[str], watch: Callback) -> None:
    """Set the compressed training up as ``run`` would, its export included, and train until a callback has seen enough.

    Args:
        cfg: The composed config; the export's directory is changed to one in ``output_dir``.
        output_dir: Where callbacks write what they write at the start of a fit.
        overrides: The command line's overrides.
        watch: Comes before all other callbacks, and ends the fit by raising ``Rehearsed``.

    Raises:
        CompressionError: Something in the config cannot be done.
    """
    if cfg.get("export"):
        cfg.export.dirpath = str(Path(output_dir) / "compressed")
    with _job(cfg, Path(output_dir), overrides) as job, contextlib.suppress(Rehearsed):
        trainer = job.trainer(False, [watch, *job.callbacks()])
        job.fit(trainer, job.model(), None, job.wanted.ckpt_path, "ckpt_path", [])


@contextlib.contextmanager
def _job(cfg: DictConfig, output: Path, overrides: Sequence[str]) -> Iterator[_Job]:
    """A job whose settings are checked, in a process that is set up for it."""
    drop_unused(cfg, overrides)
    wanted = settings(cfg)
    output.mkdir(parents=True, exist_ok=True)
    for library in (*PACKAGES, "matplotlib", "onnx_ir", "onnxscript"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for message in _QUIET:
        warnings.filterwarnings("ignore", message=f".*{message}")
    if wanted.threads is not None:
        torch.set_num_threads(wanted.threads)
    try:
        yield _Job(cfg, wanted, output, list(overrides))
    finally:
        loggers.finish()


class _Job(Parts):
    """One run of the main job: the parts are made again for each training, from the same seed."""

    def __init__(self, cfg: DictConfig, wanted: Settings, output: Path, overrides: list[str]) -> None:
        super().__init__(cfg, wanted)
        self.output, self.overrides = output, overrides
        self.seconds: dict[str, float] = {}
        self.failures: list[str] = []
        self.data = instantiate(cfg.data, "data")

    def run(self) -> Outcome:
        """Train what is asked for and gather the results."""
        dense: dict[str, float] = {}
        checkpoint = Path(self.wanted.dense_checkpoint) if self.wanted.dense_checkpoint else None
        self.refuse_no_teacher()
        if self.wanted.dense_baseline and checkpoint is None:
            self.rehearse()
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
            failures=self.failures,
        )
        outcome.write()
        return outcome.with_objective(self.wanted.optimized_metric)

    def refuse_no_teacher(self) -> None:
        """A model that starts from random weights would learn from those."""
        node = self.cfg.get("distillation")
        if node and node.get("teacher") is None and not (self.wanted.dense_baseline or self.wanted.dense_checkpoint):
            raise CompressionError.field(
                "distillation.teacher",
                expected="a dense checkpoint or self, or a dense control to learn from",
                got=None,
                fix="Add dense_baseline=true, or dense_checkpoint=...",
            )

    def rehearse(self) -> None:
        """Set the compressed training up, so that the dense control is not trained in vain."""
        callbacks = self.callbacks()
        # Before the export, which at this point would write the weights down as those of the dense model.
        place = len(callbacks) - bool(self.cfg.get("export"))
        trainer = self.trainer(False, [*callbacks[:place], _EndOfRehearsal(), *callbacks[place:]])
        with contextlib.suppress(Rehearsed):
            self.fit(trainer, self.model(), None, None, "ckpt_path", [])

    def dense(self, checkpoint: Path | None) -> tuple[dict[str, float], Path]:
        """Train the dense control, unless it is there, and evaluate it."""
        began, metrics = time.perf_counter(), dict[str, float]()
        model, folder = self.model(), self.output / "dense"
        keep = InterruptCheckpoint(folder)
        others = instantiate_all(self.cfg.get("callbacks"), "callbacks")
        others = [c for c in others if not is_instance(c, Checkpoint) and not _is_ours(c)]
        if checkpoint is not None:
            others.insert(0, StartingWeights(checkpoint, "dense_checkpoint", stage="test"))
        trainer = self.trainer(CSVLogger(self.output, name="dense", version=""), [*others, keep])
        if checkpoint is None:
            log.info("Dense control: training without compression.")
            self.fit(trainer, model, keep, self.wanted.dense_ckpt_path, "dense_ckpt_path", [])
            metrics = _numbers(trainer.callback_metrics)
            checkpoint = folder / "dense.ckpt"
            trainer.save_checkpoint(checkpoint, weights_only=True)
        with self.interruptible(trainer, lambda: checkpoint, "dense_checkpoint", []):
            metrics |= self.test(trainer, model)
        self.seconds["dense"] = time.perf_counter() - began
        return metrics, checkpoint

    def compressed(self, dense_checkpoint: Path | None) -> tuple[dict[str, float], Path | None]:
        """Train with the compression callbacks and evaluate what was trained."""
        began = time.perf_counter()
        model, callbacks = self.model(), self.callbacks(dense_checkpoint)
        keep = next((c for c in callbacks if isinstance(c, InterruptCheckpoint)), None)
        own = self.loggers()
        trainer = self.trainer(own or False, callbacks)
        for logger in own:
            logger.log_hyperparams(_plain(self.cfg))
            if place := loggers.sink(logger).place:
                log.info("W&B run: %s", place)
        done = [f"dense_checkpoint={quoted(dense_checkpoint)}"] if dense_checkpoint is not None else []
        # All files are written by then; the run ends as usual, with exit code 1.
        with contextlib.suppress(DoesNotHold):
            self.fit(trainer, model, keep, self.wanted.ckpt_path, "ckpt_path", done)
        exports = (callback for callback in callbacks if isinstance(callback, CompressedExport))
        self.failures += [failure for callback in exports for failure in callback.failures]
        metrics = _numbers(trainer.callback_metrics)
        with self.interruptible(trainer, lambda: self.resumable(trainer, keep), "ckpt_path", done):
            metrics |= self.test(trainer, model)
        self.seconds["compressed"] = time.perf_counter() - began
        last = getattr(trainer.checkpoint_callback, "best_model_path", "")
        return metrics, Path(last) if last else None

    def fit(
        self,
        trainer: L.Trainer,
        model: L.LightningModule,
        keep: InterruptCheckpoint | None,
        ckpt_path: str | None,
        resume_key: str,
        done: list[str],
    ) -> None:
        """Fit, with the same random numbers at every call."""
        with self.interruptible(trainer, lambda: self.resumable(trainer, keep), resume_key, done):
            L.seed_everything(self.wanted.seed, workers=True, verbose=False)
            refuse_mixed(trainer, model, "model._target_")
            trainer.fit(model, datamodule=self.data, ckpt_path=ckpt_path)

    @contextlib.contextmanager
    def interruptible(
        self, trainer: L.Trainer, find: Callable[[], Path | None], resume_key: str, done: list[str]
    ) -> Iterator[None]:
        """Turn an interrupt into one that says how to go on.

        Args:
            trainer: What runs inside the block.
            find: Gives the checkpoint to go on from.
            resume_key: The setting that takes it.
            done: Other overrides of the command that goes on.
        """
        handler = signal.getsignal(signal.SIGINT)
        try:
            yield
        except SystemExit:
            # Lightning's answer to KeyboardInterrupt; it leaves later interrupts ignored.
            if not trainer.interrupted:
                raise
            checkpoint = find()
            kept = [text for text in self.overrides if not re.match(r"\+*(dense_)?(ckpt_path|checkpoint)=", text)]
            resume = [f"{resume_key}={quoted(checkpoint)}"] if checkpoint else []
            command = shlex.join(["lightning-compress", "train", *kept, *done, *resume])
            raise Interrupted(checkpoint, command) from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)

    def test(self, trainer: L.Trainer, model: L.LightningModule) -> dict[str, float]:
        """Metrics on test data; none where the module or the data has no test part."""
        if not is_overridden("test_step", model, L.LightningModule) or not is_overridden(
            "test_dataloader", self.data, L.LightningDataModule
        ):
            return {}
        found = trainer.test(model, datamodule=self.data, verbose=False)
        return _numbers({name: value for part in found for name, value in part.items()})

    @staticmethod
    def resumable(trainer: L.Trainer, keep: InterruptCheckpoint | None) -> Path | None:
        """The newest checkpoint of an interrupted fit."""
        if keep is not None and keep.saved:
            return keep.path
        last = getattr(trainer.checkpoint_callback, "best_model_path", "")
        return Path(last) if last else None


def _is_ours(callback: Callback) -> bool:
    return type(callback).__module__.startswith("lightning_compress.")


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}
