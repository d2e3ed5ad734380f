"""Post-training quantization of a trained network: written, run, and compared with the float model."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from typing_extensions import override

from lightning_compress.apps.calibrate.verdict import Verdict, judge
from lightning_compress.apps.configuration.instantiate import instantiate
from lightning_compress.apps.train.job import rehearse
from lightning_compress.apps.training_batches import TrainingBatches, collect, logging_apart, step_loss
from lightning_compress.callbacks import CompressedExport, QuantizationAwareTraining
from lightning_compress.delivery.evaluation import Split, duplicate, evaluate
from lightning_compress.errors import CompressionError, DoesNotHold, closest
from lightning_compress.foundation.example_inputs import evaluating
from lightning_compress.quantization import QuantizationSettings, calibrate, find, install

_UNTRAINED = ("pruning", "distillation", "callbacks", "logger")
_ONE_STEP = {
    "max_epochs": 1, "min_epochs": None, "max_steps": -1, "min_steps": None, "limit_train_batches": 1,
    "overfit_batches": 0.0, "fast_dev_run": False, "check_val_every_n_epoch": 2, "val_check_interval": 1.0,
    "enable_progress_bar": False,
}  # fmt: skip
"""A fit in which one batch passes, and no validation but the sanity check."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        checkpoint: The trained network.
        output: The directory; files are written to ``compressed`` in it.
        batches: Training batches to calibrate with.
        bias_correction: Whether biases make up for the mean error of rounded weights.
        batchnorm: Whether batch-norm statistics are measured again.
        equalize: Whether consecutive layers get equal ranges of each channel first.
        max_drop: Most that the metric may lose, and whether it is a percentage.
        metric: Which metric; by default the first accuracy.
        mode: Whether more of it is better.
    """

    checkpoint: Path
    output: Path
    batches: int = 16
    bias_correction: bool = True
    batchnorm: bool = False
    equalize: bool = False
    max_drop: tuple[float, bool] = (0.01, True)
    metric: str | None = None
    mode: Literal["max", "min"] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be asked for."""
        if not self.checkpoint.is_file():
            raise CompressionError.field("--checkpoint", expected="a checkpoint file", got=str(self.checkpoint))
        if self.batches < 1:
            raise CompressionError.field("--batches", expected="at least 1", got=self.batches)


@dataclass(frozen=True)
class Calibrated:
    """The result of a calibration.

    Attributes:
        verdict: Whether training is needed.
        report: The content of ``report.json``.
        folder: Where the files are.
        batches: Batches that there were.
        seconds: How long the calibration took, without reading data, writing and measuring.
        left_out: Config groups that need training and were left out.
    """

    verdict: Verdict
    report: Mapping[str, Any]
    folder: Path
    batches: int
    seconds: float
    left_out: tuple[str, ...]

    @property
    def failures(self) -> list[str]:
        """What could not be done or does not hold, training that is needed aside."""
        return list(self.report["failures"])

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "verdict": self.verdict.as_dict(),
            "results": self.report["results"],
            "failures": self.failures,
            "folder": str(self.folder),
            "batches": self.batches,
            "seconds": self.seconds,
            "left_out": list(self.left_out),
        }


def calibrate_run(cfg: DictConfig, overrides: Sequence[str], request: Request) -> Calibrated:
    """Quantize a checkpoint's network by some of its training batches, export it, and judge what it lost.

    Args:
        cfg: The composed config; used up.
        overrides: The command line's overrides.
        request: What is asked for.

    Raises:
        CompressionError: The configuration, the checkpoint or the request cannot be used; or nothing could be compared.
    """
    settings = _settings(cfg)
    _refuse_unmeasured(cfg)
    left_out = tuple(group for group in ("pruning", "distillation") if cfg.get(group))
    with tempfile.TemporaryDirectory() as folder:
        found = collect(cfg.copy(), folder, overrides, request.checkpoint, request.batches, "calibrate")
    if request.metric is not None:
        _refuse_unlogged(request.metric, found, cfg.export.get("split", "val"))
    began = time.perf_counter()
    with logging_apart():
        calibrate(
            found.model,
            range(len(found.batches)),
            call=_call(found),
            bias_correction=request.bias_correction,
            batchnorm=request.batchnorm,
            equalize=request.equalize,
            **settings,
        )
    seconds = time.perf_counter() - began
    with open_dict(cfg):
        cfg.quantization = {}
        for group in _UNTRAINED:
            cfg[group] = {}
        cfg.export.dense, cfg.export.export_checkpoint = str(request.checkpoint), "last"
        for name, value in _ONE_STEP.items():
            if value is not None or OmegaConf.select(cfg, f"trainer.{name}") is not None:
                cfg.trainer[name] = value
    watch = _TakesOver(found.model, QuantizationSettings(**settings))
    # Limits of the export that do not hold are in the report.
    with contextlib.suppress(DoesNotHold), logging_apart():
        rehearse(cfg, request.output, overrides, watch)
    if watch.export is None or watch.export.report is None:
        reasons = "" if watch.export is None else " ".join(watch.export.failures)
        raise CompressionError(f"calibrate: nothing was exported. {reasons}".rstrip())
    report = watch.export.report
    return Calibrated(
        verdict=judge(report, request.max_drop, request.metric, request.mode),
        report=report,
        folder=request.output / "compressed",
        batches=len(found.batches),
        seconds=seconds,
        left_out=left_out,
    )


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """The fields of ``QuantizationSettings`` that the config asks for."""
    node = cfg.get("quantization")
    if not node:
        raise CompressionError.field("quantization", expected="a choice such as w8a8", got="none")
    for name in ("weight_bits", "activation_bits"):
        if OmegaConf.is_dict(node.get(name)):
            raise CompressionError.field(
                f"quantization.{name}", expected="one bit width: bits that fall need training", got=dict(node[name])
            )
    callback = instantiate(node, "quantization")
    if not isinstance(callback, QuantizationAwareTraining):
        raise CompressionError.field(
            "quantization._target_", expected="QuantizationAwareTraining", got=type(callback).__name__
        )
    return {**callback.settings.as_dict(), "field": "quantization"}


def _refuse_unmeasured(cfg: DictConfig) -> None:
    """Without an export that is run there is nothing to judge."""
    export = cfg.get("export")
    if not export:
        raise CompressionError.field("export", expected="a choice such as default", got="none")
    if export.get("verify") is False:
        raise CompressionError.field(
            "export.verify", expected="true", got=False, fix="The written file is run to see what it lost."
        )


def _refuse_unlogged(metric: str, found: TrainingBatches, split: Split) -> None:
    """Check that the evaluation logs a metric; one batch of it shows what it logs."""
    logged = evaluate(duplicate(found.model), replace(found.evaluation[split], limit=1))
    if metric not in logged:
        raise CompressionError.field(
            "--metric", expected="a metric that the evaluation logs", got=metric, fix=closest(metric, logged)
        )


def _call(found: TrainingBatches) -> Callable[[torch.nn.Module, Any], Any]:
    """Runs the training step on the batch of a number."""
    return lambda model, index: step_loss(model, found.batches[index], index, found.command)  # type: ignore[arg-type]


class _TakesOver(Callback):
    """Gives a fit's module a calibrated copy's weights and quantizers, and lets nothing be trained."""

    def __init__(self, calibrated: L.LightningModule, settings: QuantizationSettings) -> None:
        self.calibrated, self.settings = calibrated, settings
        self.export: CompressedExport | None = None

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self.export = next((c for c in callbacks if isinstance(c, CompressedExport)), None)
        quantization = find(self.calibrated)
        assert quantization is not None
        pl_module.load_state_dict(self.calibrated.state_dict())
        install(pl_module, self.settings).load_state_dict(quantization.state_dict())
        step = pl_module.training_step

        @functools.wraps(step)
        def unchanged(*args: Any, **kwargs: Any) -> None:
            """The step, for what it calls; without a loss no weight changes."""
            with evaluating(pl_module), torch.no_grad():
                step(*args, **kwargs)

        pl_module.training_step = unchanged  # type: ignore[method-assign]

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        del pl_module.training_step
