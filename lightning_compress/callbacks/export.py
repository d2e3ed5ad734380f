"""Exports, verifies and reports when a fit ends, as a Lightning callback."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from typing_extensions import override

from lightning_compress import loggers, report
from lightning_compress.callbacks.announcement import unreached
from lightning_compress.callbacks.checkpoints.kept_checkpoints import (
    KeptCheckpoints,
    chosen_checkpoint,
    newest_checkpoint,
    with_checkpoint,
)
from lightning_compress.callbacks.checkpoints.saving import SavingCallback
from lightning_compress.callbacks.dense_weights import DenseWeights
from lightning_compress.callbacks.first_call import FirstCall
from lightning_compress.callbacks.monitor import compression, measured
from lightning_compress.callbacks.on_error import FailurePolicy, OnError
from lightning_compress.callbacks.run_length import refuse_sharded
from lightning_compress.delivery.directory import ExportDirectory
from lightning_compress.delivery.evaluation import EvaluationData, Split
from lightning_compress.delivery.files import GraphSettings
from lightning_compress.delivery.limits import Limits
from lightning_compress.delivery.provenance import data_record, provenance
from lightning_compress.delivery.report import compose, described
from lightning_compress.delivery.run import Export
from lightning_compress.errors import CompressionError
from lightning_compress.export.formats import DENSE_STATE, GIVEN, REPORTS, check_formats, files_of
from lightning_compress.export.litert.settings import LiteRTSettings
from lightning_compress.quantization import find

_FIELD = "CompressedExport"


class CompressedExport(SavingCallback):
    """Writes the compressed model when a fit ends, runs what it wrote, and reports.

    The module itself stays as it was trained. What it exports is the module that the steps call. Metrics are those
    that the module's own ``validation_step`` or ``test_step`` logs, with its own evaluation hooks, for the dense model,
    the trained one, and the written file in its runtime. In the directory: ``model.onnx``, ``model.packed``,
    ``dense.onnx`` (for latency), ``dense.safetensors`` (the weights at the start of the fit, unless ``dense`` is
    given), ``report.json``, ``report.md``, ``report.html`` and ``manifest.json``, which lists what is ours.

    A fit is not lost to an export. Before the first optimizer step (after the sanity check, or the first backward pass)
    a copy of the network is traced for each format; what cannot be written is refused then. After the training, what a
    format does wrong is in the report's ``failures`` and in a warning, and everything else is written.

    Args:
        dirpath: The directory.
        formats: Some of ``"onnx"``, ``"openvino"``, ``"torch_export"``, ``"executorch"``, ``"litert"``, ``"packed"``,
            ``"compressed_tensors"``; the first of them in this order counts as deployed.
        verify: Whether to run the written files on data.
        split: ``"val"`` or ``"test"``: which step and which data.
        dataloaders: Data for ``split``, in place of the data module's or the module's own.
        dense: Checkpoint or ``state_dict`` of a trained dense model of the same architecture.
        example_inputs: Inputs of the exported module: a tensor, a tuple of arguments or a dict of keyword arguments.
            By default ``example_input_array`` where the steps call the module itself, or what a first step passed.
        module: Full name of the submodule to export, where the steps call several.
        monitor: Logged metric for ``max_drop``.
        mode: ``"max"`` if more of it is better, ``"min"`` if less.
        max_drop: Largest loss of ``monitor`` from dense to deployed; more fails the run.
        min_agreement: Smallest share of predictions in which the written file and the trained model agree.
        latency: Whether to measure latency, at batch size 1.
        threads: Threads of the runtimes, for verification and latency.
        overwrite: Whether to replace files that no export wrote.
        in_fast_dev_run: Whether to export under ``fast_dev_run`` too.
        name: Title of the report; the module's class by default.
        on_error: ``"refuse"`` raises for what cannot be written before the first optimizer step, and never after the
            training; ``"warn"`` goes on without such formats, and warns of limits that do not hold, too; ``"raise"``
            raises before the first step and, once all else is written, after the training.
        export_checkpoint: ``"last"`` exports the weights of the fit's end, ``"best"`` those of the best checkpoint of
            the Trainer's checkpoint callback. The module keeps the last ones either way.
        print_report: Whether to print the table of results and where the report is.
        input_names: Names of the graph's inputs, in the order of the forward's parameters, whose names they have by
            default.
        output_names: Names of the graph's outputs; by default the keys or fields under which the forward returns them.
        dynamic_batch: Whether the batch is left free where the network allows it; the report says where it is not.
        litert: ``layout`` (``"channels_first"``, ``"channels_last"``) of images in a LiteRT file, and what ``values``
            (``"float32"``, ``"int8"``) it takes and gives.

    Attributes:
        report: The report of the last export; ``None`` before, and on other ranks than zero.
        failures: What of the last export could not be done or does not hold; empty on other ranks than zero.

    Raises:
        CompressionError: A setting is not allowed (at construction) or does not fit the run, or a format cannot be
            written (before training).
        DoesNotHold: A limit does not hold (after everything is written).

    Example:
        >>> CompressedExport("compressed", formats=["onnx"]).formats
        ('onnx',)
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str],
        formats: Sequence[str] = ("onnx", "packed"),
        verify: bool = True,
        *,
        split: Split = "val",
        dataloaders: Any = None,
        dense: str | os.PathLike[str] | None = None,
        example_inputs: Any = None,
        module: str | None = None,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
        max_drop: float | None = None,
        min_agreement: float | None = None,
        latency: bool = True,
        threads: int = 1,
        overwrite: bool = False,
        in_fast_dev_run: bool = False,
        name: str | None = None,
        on_error: OnError = "refuse",
        export_checkpoint: Literal["last", "best"] = "last",
        print_report: bool = True,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        dynamic_batch: bool = True,
        litert: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.formats = check_formats(formats, f"{_FIELD}.formats")
        self.limits = Limits(monitor, mode, max_drop, min_agreement, _FIELD)
        self.report: dict[str, Any] | None = None
        self.failures: tuple[str, ...] = ()
        self._policy = FailurePolicy(on_error, _FIELD)
        choices = {"export_checkpoint": (export_checkpoint, ("last", "best")), "split": (split, ("val", "test"))}
        for setting, (value, allowed) in choices.items():
            if value not in allowed:
                raise CompressionError.field(f"{_FIELD}.{setting}", expected=" or ".join(map(repr, allowed)), got=value)
        if threads < 1:
            raise CompressionError.field(f"{_FIELD}.threads", expected="at least 1", got=threads)
        if not verify and (max_drop is not None or min_agreement is not None):
            raise CompressionError.field(f"{_FIELD}.verify", expected="True, since a limit is given", got=verify)
        self._directory = ExportDirectory(dirpath, overwrite=overwrite, field=_FIELD)
        self._verify, self._split, self._dataloaders = verify, split, dataloaders
        self._dense = DenseWeights(
            None if dense is None else Path(dense), self._directory / DENSE_STATE, f"{_FIELD}.dense"
        )
        self._latency, self._threads = latency, threads
        self._in_fast_dev_run, self._name = in_fast_dev_run, name
        self._export_checkpoint, self._print_report = export_checkpoint, print_report
        self._kept = KeptCheckpoints()
        of_litert = LiteRTSettings.of(litert, f"{_FIELD}.litert")
        self._settings = GraphSettings(input_names, output_names, dynamic_batch, of_litert)
        refuses = self._policy.refuses
        self._call = FirstCall(
            self.formats, example_inputs, module, dynamic_batch=dynamic_batch, refuses=refuses, field=_FIELD
        )

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or not self._wanted(trainer):
            return
        refuse_sharded(trainer, _FIELD)
        if trainer.is_global_zero:
            kept = [DENSE_STATE] if self._dense.given is None else []
            self._directory.claim([*files_of(self.formats), *REPORTS, *kept])
        self._dense.read_given()
        if self._verify and self._split == "test":
            self._data(trainer).refuse_missing(pl_module, _FIELD)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._wanted(trainer):
            return
        self._call.forget()
        self._dense.begin(trainer, pl_module)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._kept.look(trainer, begins=True)
        if self._verify and self._wanted(trainer):
            data = self._data(trainer)
            data.refuse_missing(pl_module, _FIELD)
            data.refuse_empty(trainer.val_dataloaders if self._split == "val" else None, _FIELD)

    @override
    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._call.watch(trainer, pl_module)

    @override
    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # A validation step need not call the network; a training step must.
        self._call.found(required=False)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Known from the sanity check on, hours before the export needs it.
        if self._split == "val" and self._dataloaders is None and trainer.state.fn == "fit":
            self.limits.refuse_unlogged(trainer.callback_metrics)

    @override
    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._call.rehearse(trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._kept.look(trainer)
        # Where a step optimizes by hand, its end is past its optimizer steps.
        self._call.rehearse(trainer, pl_module)
        self._call.watch(trainer, pl_module)

    @override
    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.automatic_optimization:
            self._call.found(required=True)
            self._call.rehearse(trainer, pl_module)

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        # A step that returns nothing passes its batch over.
        self._call.found(required=bool(outputs) or not pl_module.automatic_optimization)

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._call.close()

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._wanted(trainer):
            return
        self._kept.look(trainer)
        try:
            if trainer.is_global_zero:
                self._finish(trainer, pl_module)
        finally:
            trainer.strategy.barrier("lightning_compress.export")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"kept": self._kept.state_dict(), **self._dense.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._dense.load_state_dict(state_dict)
        self._kept.load_state_dict(state_dict["kept"])

    def _wanted(self, trainer: L.Trainer) -> bool:
        return self._in_fast_dev_run or not trainer.fast_dev_run  # type: ignore[attr-defined]

    def _data(self, trainer: L.Trainer) -> EvaluationData:
        return EvaluationData.of(trainer, self._split, self._dataloaders)

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export, and keep from the fit what goes wrong in it."""
        broken: list[str] = []
        try:
            with self._directory.new_set():
                broken = self._export(trainer, pl_module)
        except Exception as error:  # Whatever it is, the training before it must not be lost.
            self.failures = (*self.failures, self._policy.unexpected(error))
        self._policy.conclude(self.failures, broken, self._directory.path)

    def _export(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[str]:
        """Write everything; gives the limits that do not hold."""
        self.report, self.failures = None, ()
        seen, entry = self._call.seen(), self._call.exported(pl_module)
        pruner, _ = compression(trainer)
        notes: list[str] = []
        checkpoint = chosen_checkpoint(trainer, self._export_checkpoint, f"{_FIELD}.export_checkpoint")
        module = pl_module if checkpoint is None else with_checkpoint(trainer, pl_module, checkpoint, notes)
        rows, size = described(module, entry, pruner, notes)
        data = self._data(trainer) if self._verify else None
        record = data_record(trainer, None if data is None else data.split)
        name = self._name or type(pl_module).__name__
        found = Export(
            module=module,
            entry=entry,
            sample=seen,
            directory=self._directory,
            formats=tuple(item for item in self.formats if item not in self._call.refused),
            dense=None if self._dense.state is None else (self._dense.state, self._dense.source),
            data=data,
            latency=self._latency,
            threads=self._threads,
            shrink=pruner is not None and pruner.pattern == "channel",
            provenance=provenance(pl_module, run=name, data=record),
            settings=self._settings,
        ).run(size)
        if self._dense.state is not None and self._dense.source != GIVEN:
            found.judge_start(self.limits.monitor, self.limits.mode)
        refused = [f"{item} was not written: {why}" for item, why in self._call.refused.items()]
        found.failures[:0] = [*unreached(trainer), *refused]
        found.notes += [*notes, *self._kept.warn_of_early(trainer, _FIELD, exported=checkpoint)]
        broken = self.limits.failures(found, found.agreement)
        self.report = compose(
            found,
            name=name,
            rows=rows,
            float_bytes=size,
            **measured(trainer),
            pruner=pruner,
            quantization=find(module),
            data=record,
            failures=broken,
        )
        self.failures = tuple(self.report["failures"])
        report.write(self.report, self._directory.path)
        self._directory.commit()
        if self._print_report:
            report.show(self.report, self._directory.path)
        files = [name for item in self.report["artifacts"] for name in (item["file"], *item["beside"])]
        loggers.log_report(
            trainer.loggers,
            self.report,
            [self._directory / name for name in (*files, *REPORTS)],
            dense=self._dense.given or self._directory / DENSE_STATE,
            checkpoint=checkpoint or newest_checkpoint(trainer),
        )
        return broken
