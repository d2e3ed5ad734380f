"""The whole export: write the files, run them, measure, and collect the results."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import lightning as L
from torch import Tensor, nn

from lightning_compress.delivery.dense_baseline import as_dense
from lightning_compress.delivery.directory import ExportDirectory
from lightning_compress.delivery.evaluation import EvaluationData, duplicate, evaluate, in_training_modes
from lightning_compress.delivery.files import Files, GraphSettings
from lightning_compress.delivery.findings import Findings, Microcontroller, Result
from lightning_compress.delivery.network_call import Entry, Passed
from lightning_compress.delivery.output_cache import Remembered
from lightning_compress.delivery.side_by_side import (
    AsTrained,
    evaluate_as_trained,
    evaluate_beside,
    evaluate_through,
)
from lightning_compress.delivery.timing import timings
from lightning_compress.errors import CompressionError
from lightning_compress.export.divergence import can_trace, first_divergence, site_errors
from lightning_compress.export.file_format import WeightsFormat, pytorch_name
from lightning_compress.export.formats import DENSE_ONNX, FORMATS, deployed_of, files_of
from lightning_compress.export.integer_share import IntegerShare
from lightning_compress.export.latency import Ratio
from lightning_compress.export.litert.micro import has_micro, micro_memory
from lightning_compress.export.litert.run import LiteRTModel
from lightning_compress.export.onnx.format import Onnx
from lightning_compress.export.packed.save_load import PackedFile
from lightning_compress.export.signatures import called_through, restored
from lightning_compress.export.verification import deployed_form
from lightning_compress.export.without_channels import without_channels
from lightning_compress.quantization import find, strip


@dataclass(frozen=True)
class Export:
    """One export: what is written, from what, and on what it is verified.

    Nothing that a format does ends it: what cannot be written, run or measured is among the failures that it finds.

    Attributes:
        module: The module as trained. It is not changed.
        entry: The call that is exported.
        sample: A call with real data, for latency.
        directory: Where files are written.
        formats: What is written; ``deployed_of`` says which counts as deployed.
        dense: ``state_dict`` of the dense model, and where it is from.
        data: What the files are run on; ``None`` verifies nothing.
        latency: Whether latency is measured.
        threads: Threads of the runtimes.
        shrink: Whether pruned channels are left out of what runs; the packed file loads into the whole module.
        provenance: What ONNX files say of where they come from.
        settings: How graphs take and give tensors.
    """

    module: L.LightningModule
    entry: Entry
    sample: Entry
    directory: ExportDirectory
    formats: tuple[str, ...]
    dense: tuple[Mapping[str, Tensor], str] | None
    data: EvaluationData | None
    latency: bool = True
    threads: int = 1
    shrink: bool = False
    provenance: Mapping[str, str] = field(default_factory=dict)
    settings: GraphSettings = field(default_factory=GraphSettings)

    def run(self, dense_bytes: int) -> Findings:
        """Write, verify, measure.

        Args:
            dense_bytes: Bytes of all parameters and buffers of the dense model in float32.
        """
        found = Findings()
        trained_alone = self._evaluate(found)
        axes = {} if trained_alone is None else trained_alone.axes
        files = Files(self.directory.path, self.entry, self.provenance, self.settings, axes, found.notes)
        self._write(found, files)
        deployed = deployed_of(found.written)
        runtime = None
        if deployed is not None:
            with found.attempt(f"{FORMATS[deployed].file} was written and does not run"):
                runtime = self._form(deployed, self._copy())[1]
                found.notes += FORMATS[deployed].run_notes(self.directory / FORMATS[deployed].file)
        if self.dense is not None:
            found.results["dense"] = Result("Dense", runtime, self.dense[1], dense_bytes)
        trained = Result("Fake-quantized", pytorch_name(), "the trained module", dense_bytes)
        trained.metrics = {} if trained_alone is None else trained_alone.metrics
        found.results["fake_quantized"] = trained
        if deployed is not None:
            size = sum((self.directory / name).stat().st_size for name in FORMATS[deployed].files)
            found.results["deployed"] = Result("Deployed", runtime, FORMATS[deployed].file, size)
        if deployed is not None and runtime is not None:
            with found.attempt("What runs in integers was not counted"):
                found.integers = self._in_integers(deployed)
        if self.data is not None:
            self._verify(found, self.data, deployed, trained_alone)
        if self.latency and runtime is not None and deployed is not None:
            with found.attempt("Latency was not measured"):
                self._measure(found, deployed)
        return found

    def _in_integers(self, item: str) -> IntegerShare | None:
        """How much of a file runs in integers, for one sample; ``None`` where activations are float."""
        quantization = find(self.module)
        if quantization is None or not quantization.activations:
            return None
        call, kind = self._real_call.first(1), FORMATS[item]
        return kind.integer_share(self.directory / kind.file, self._copy(), call.args, call.kwargs, self.threads)

    @property
    def _real_call(self) -> Entry:
        """A call that the files take, with real data where the steps' own is such a call."""
        return self.entry if self.entry.left_out else self.sample

    def _copy(self) -> nn.Module:
        return called_through(duplicate(self.module), self.entry.name)

    def _form(self, item: str, reference: nn.Module) -> tuple[Callable[..., Any], str]:
        return deployed_form(self.directory / FORMATS[item].file, reference, threads=self.threads)

    def _dense(self) -> nn.Module | None:
        return None if self.dense is None else as_dense(self._copy(), self.dense[0])

    def _evaluate(self, found: Findings) -> AsTrained | None:
        """The trained module's own evaluation, where there is data."""
        if self.data is None:
            return None
        with found.attempt("The trained module was not evaluated"):
            return evaluate_as_trained(self.module, self.data, self.entry)
        return None

    def _write(self, found: Findings, files: Files) -> None:
        trained = self._smaller(found) if self.shrink else self._copy()
        for item in self.formats:
            with found.attempt(f"{item} was not written"):
                written = files.write(item, trained, duplicate(self.module))
                found.artifacts.append(files.artifact(item, written))
                if isinstance(written, PackedFile):
                    found.packed = written
        if DENSE_ONNX in files_of(found.written) and (dense := self._dense()) is not None:
            with found.attempt(f"{DENSE_ONNX} was not written"):
                files.write_graph(Onnx(), dense, DENSE_ONNX)

    def _smaller(self, found: Findings) -> nn.Module:
        """The trained module without its pruned channels; a note says how much that is, or why it cannot be."""
        trained = self._copy()
        try:
            smaller, shrunk = without_channels(trained, self.entry.example_inputs)
        except CompressionError as error:
            found.notes.append(f"The exported files keep the pruned channels, as zeros: {error}")
            return trained
        before, after = (sum(p.numel() for p in module.parameters()) for module in (trained, smaller))
        found.notes.append(
            f"{sum(shrunk.removed.values())} pruned channels and attention heads were removed from the files that run: "
            f"{before} weights became {after}."
        )
        return smaller

    def _verify(self, found: Findings, data: EvaluationData, deployed: str | None, trained: AsTrained | None) -> None:
        if self.dense is not None:
            with found.attempt("The dense module was not evaluated"):
                dense = as_dense(in_training_modes(duplicate(self.module), self.module, data.split), self.dense[0])
                found.results["dense"].metrics = evaluate(cast(L.LightningModule, dense), data)
        if not self.entry.known:
            self._verify_whole(found, data, deployed)
            return
        model = self._copy()
        reference = Remembered(model)
        passed = self.entry.takes(model)
        if passed is not None:
            found.notes.append(
                f"The exported call leaves out {', '.join(self.entry.left_out)}: results that need it, as a loss that "
                f"the network computes, are not part of the files or of their metrics."
            )
        for item in found.written:
            with found.attempt(f"{FORMATS[item].file} was written and not verified"):
                form, _ = self._form(item, model)
                metrics, compared = evaluate_beside(
                    form, reference, self.module, data, entry=self.entry.name, passed=passed
                )
                found.comparisons[item] = compared
                if item == "litert" and has_micro():
                    self._on_microcontroller(found, data, reference, passed)
                if item != deployed:
                    continue
                if trained is not None and trained.state is not None:
                    metrics = self._as_evaluated(item, trained.state, trained.axes, data)
                    found.notes.append(
                        f"{type(self.module).__name__} evaluates in another state than eval mode (set by its "
                        f"evaluation hooks). {FORMATS[item].file} is the network in eval mode, as predictions need it; "
                        f"its metrics are those of the same format, written in the state of the evaluation."
                    )
                found.results["deployed"].metrics = metrics
                if compared.agreement != 1.0 and can_trace(self.directory / FORMATS[item].file):
                    call, path = self._real_call, self.directory / FORMATS[item].file
                    errors = site_errors(path, model, call.args, call.kwargs, threads=self.threads)
                    found.divergence = first_divergence(errors)

    def _on_microcontroller(
        self, found: Findings, data: EvaluationData, reference: Callable[..., Any], passed: Passed | None
    ) -> None:
        """Run the LiteRT file as a microcontroller would, on the first batch, since plain kernels take their time."""
        path, compared = self.directory / FORMATS["litert"].file, None
        memory = micro_memory(path)
        if memory.arena is not None:
            file = LiteRTModel(path, self._copy().forward, kernels="micro")
            _, compared = evaluate_beside(
                lambda like, *args, **kwargs: restored(file(*args, **kwargs), like),
                reference,
                self.module,
                replace(data, limit=1),
                entry=self.entry.name,
                passed=passed,
            )
        found.microcontroller = Microcontroller.of(memory, compared)
        found.notes.append(found.microcontroller.sentence)

    def _verify_whole(self, found: Findings, data: EvaluationData, deployed: str | None) -> None:
        """Metrics of files that hold the whole module, where no single call can be put in its place."""
        kind = None if deployed is None else FORMATS[deployed]
        if isinstance(kind, WeightsFormat):
            with found.attempt(f"{kind.file} was written and not verified"):
                module = kind.load(self.directory / kind.file, strip(duplicate(self.module)))
                found.results["deployed"].metrics = evaluate(cast(L.LightningModule, module), data)
                found.notes.append("The steps call parts of the network: outputs were not compared one by one.")

    def _as_evaluated(
        self, item: str, evaluated: L.LightningModule, axes: Mapping[str, Mapping[int, str]], data: EvaluationData
    ) -> dict[str, float]:
        """Metrics of a format that is written in the state in which the module's hooks evaluate it."""
        model = called_through(evaluated, self.entry.name)
        with tempfile.TemporaryDirectory() as folder:
            Files(Path(folder), self.entry, axes=axes).write(item, model, evaluated)
            form, _ = deployed_form(Path(folder) / FORMATS[item].file, model, threads=self.threads)
            return evaluate_through(
                lambda *args, **kwargs: form(model(*args, **kwargs), *args, **kwargs),
                self.module,
                data,
                entry=self.entry.name,
            )

    def _measure(self, found: Findings, deployed: str) -> None:
        if not self.entry.known:
            found.notes.append("The steps call parts of the network: latency of one call was not measured.")
            return
        reference = self._copy()
        whole = self._real_call
        call = whole.first(1, reference)
        if call is whole and call.samples not in (None, 1):
            found.notes.append(f"Latency is that of a call with {call.samples} samples, which cannot be cut.")
        measured = timings(deployed, self.directory.path, reference, self._dense(), call, threads=self.threads)
        for form, timing in measured.items():
            found.results[form].timing = timing
        if "dense" in measured:
            found.ratio = Ratio.between(measured["deployed"], measured["dense"])
