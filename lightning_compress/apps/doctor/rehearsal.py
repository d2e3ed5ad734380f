"""Watching a training begin, for ``doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from typing_extensions import override

from lightning_compress.apps.doctor.diagnose import Diagnosis, diagnose
from lightning_compress.apps.train.job import Rehearsed, rehearse
from lightning_compress.callbacks import GradualMagnitudePruning, KnowledgeDistillation, QuantizationAwareTraining
from lightning_compress.callbacks.checkpoints.resume_limits import resume_limits
from lightning_compress.callbacks.run_length import run_length
from lightning_compress.delivery.evaluation import duplicate
from lightning_compress.delivery.network_call import Entry, EntryWatch
from lightning_compress.errors import CompressionError
from lightning_compress.export.signatures import called_through
from lightning_compress.foundation.processor import has_vnni
from lightning_compress.timeline import Run


class Watch(Callback):
    """Notes what a fit begins with, and ends it in its first training step.

    Attributes:
        model: A copy of the module as training begins, its parts in the modes in which they train.
        run: Length of the run.
        resume: What a resume of this run would not give back bit for bit.
        callbacks: The Trainer's callbacks.
        entry: The call of the network in the first training step.
        example: Whether the module has an ``example_input_array``.
    """

    def __init__(self) -> None:
        self.model: L.LightningModule | None = None
        self.run = Run()
        self.callbacks: list[Callback] = []
        self.resume: list[str] = []
        self.entry: Entry | None = None
        self.example = False
        self._entries: EntryWatch | None = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.callbacks = trainer.callbacks  # type: ignore[attr-defined]

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.run = run_length(trainer, before=self)
        self.example = pl_module.example_input_array is not None
        modes = {name: module.training for name, module in pl_module.named_modules()}
        self.model = duplicate(pl_module)
        for name, module in self.model.named_modules():
            module.training = modes[name]

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.resume = resume_limits(trainer, pl_module)
        self._entries = EntryWatch(pl_module, redirected=trainer.strategy.model is not pl_module, field="doctor")

    @override
    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        self._finish()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._entries is not None:
            self._entries.close()
            self.entry = self._entries.entry()
        raise Rehearsed


def examine(cfg: DictConfig, folder: str, overrides: Sequence[str]) -> Diagnosis:
    """Begin the training that a config describes, and say what it would do.

    Args:
        cfg: The composed config.
        folder: For what a fit writes when it begins.
        overrides: The command line's overrides.
    """
    watch, refused = Watch(), None
    if OmegaConf.select(cfg, "trainer.enable_progress_bar") is not None:
        with open_dict(cfg):
            cfg.trainer.enable_progress_bar = False
    if cfg.get("distillation") and cfg.distillation.get("teacher") is None and cfg.get("dense_baseline"):
        # The dense control would be trained first: here the untrained weights teach in its place.
        with open_dict(cfg):
            cfg.distillation.teacher = "self"
    for callback in (cfg.get("callbacks") or {}).values():
        # The phases are part of what is found; once is enough.
        if callback and str(callback.get("_target_", "")).endswith(".CompressionMonitor"):
            with open_dict(callback):
                callback.print_phases = False
    try:
        rehearse(cfg, folder, overrides, watch)
    except CompressionError as error:
        refused = str(error)
    found = _diagnosis(watch, bool(cfg.get("export")))
    if refused is not None:
        # What training says of a setting stands for what was found of it besides.
        setting = refused.partition(":")[0]
        found.errors = [refused, *(error for error in found.errors if error.partition(":")[0] != setting)]
    return found


def _diagnosis(watch: Watch, exports: bool) -> Diagnosis:
    if watch.model is None:
        return Diagnosis(watch.run)
    pruning = next((c for c in watch.callbacks if isinstance(c, GradualMagnitudePruning)), None)
    quantizing = next((c for c in watch.callbacks if isinstance(c, QuantizationAwareTraining)), None)
    distilling = next((c for c in watch.callbacks if isinstance(c, KnowledgeDistillation)), None)
    entry = watch.entry
    model = watch.model if entry is None else called_through(watch.model, entry.name)
    found = diagnose(
        model,
        watch.run,
        pruning=None if pruning is None else pruning.settings,
        quantization=None if quantizing is None else quantizing.settings,
        times=None if quantizing is None else quantizing.times,
        distillation=None if distilling is None else distilling.phases or None,
        example_inputs=None if entry is None else entry.example_inputs,
        keeps_dense=exports,
    )
    found.notes += watch.resume
    if quantizing is not None and quantizing.settings.activation_bits is not None:
        if not watch.example:
            found.notes.append(
                "The module has no example_input_array: the first training batch runs in float, to see where "
                "activations are quantized."
            )
        settings = quantizing.settings
        if settings.backend == "onnxruntime" and settings.processor == "vnni" and has_vnni() is False:
            found.warnings.append(
                "The file is for processors with VNNI, and this one has none: ONNX Runtime's default 8-bit kernels "
                "saturate here. Verification sets session.x64quantprecision=1; processor='any' gives a file that is "
                "right in every session."
            )
        if settings.backend == "onnxruntime" and settings.activation_scheme == "symmetric":
            found.warnings.append(
                "activation_scheme='symmetric': on x86, ONNX Runtime computes in float where activations are signed. "
                "'affine' runs in integers."
            )
    return found
