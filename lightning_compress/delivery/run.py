"""Writing the files of an export, running them again, and saying what was found."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from lightning_compress.delivery.dense_baseline import as_dense
from lightning_compress.delivery.directory import ExportDirectory
from lightning_compress.delivery.evaluation import EvaluationData, duplicate, evaluate
from lightning_compress.delivery.network_call import Entry
from lightning_compress.delivery.output_cache import Remembered
from lightning_compress.delivery.side_by_side import evaluate_beside, evaluate_through
from lightning_compress.delivery.size_accounting import zipped
from lightning_compress.delivery.without_channels import without_channels
from lightning_compress.errors import CompressionError
from lightning_compress.export.compressed_tensors import save_compressed_tensors
from lightning_compress.export.divergence import SiteError, can_trace, first_divergence, site_errors
from lightning_compress.export.executorch.write import ExecuTorchModel, to_executorch
from lightning_compress.export.formats import BESIDE, DENSE_ONNX, FILES, GIVEN, deployed_of, files_of
from lightning_compress.export.latency import Ratio, Timing, measure
from lightning_compress.export.onnx.integer_share import IntegerShare, integer_share
from lightning_compress.export.onnx.session import OnnxModel, needs_exact_kernels, open_session
from lightning_compress.export.onnx.write import to_onnx
from lightning_compress.export.openvino import OpenVinoModel, to_openvino
from lightning_compress.export.packed.save_load import PackedFile, save_packed
from lightning_compress.export.pt2.write import to_torch_export
from lightning_compress.export.signatures import called_through, input_names
from lightning_compress.export.verification import Comparison, deployed_form, pytorch_name
from lightning_compress.foundation.checksum import sha256
from lightning_compress.foundation.processor import has_vnni
from lightning_compress.quantization import find


@dataclass
class Result:
    """One form of the model: where it ran and what it gave."""

    label: str
    runtime: str
    source: str
    bytes: int
    metrics: dict[str, float] = field(default_factory=dict)
    timing: Timing | None = None


@dataclass
class Findings:
    """Everything that an export found out.

    Attributes:
        results: ``"dense"`` (if there is one), ``"fake_quantized"``, ``"deployed"``.
        artifacts: One entry for each written file, as in the report.
        packed: The packed file, if it was written.
        comparisons: Format → how far its outputs are from the model's; empty if nothing was verified.
        divergence: Where the deployed form begins to differ by more than rounding, if it does.
        integers: How much of the ONNX file's arithmetic ONNX Runtime does in integers, where it is quantized.
        ratio: Latency of the deployed form ÷ that of the dense one, in the same runtime.
        notes: What a reader should know about the numbers.
    """

    results: dict[str, Result] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    packed: PackedFile | None = None
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    divergence: SiteError | None = None
    integers: IntegerShare | None = None
    ratio: Ratio | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Export:
    """One export: what is written, from what, and on what it is verified.

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

    def run(self, dense_bytes: int) -> Findings:
        """Write, verify, measure.

        Args:
            dense_bytes: Bytes of all parameters and buffers of the dense model in float32.

        Raises:
            CompressionError: A file cannot be written, or does not run.
        """
        found = Findings()
        self._write(found)
        deployed = deployed_of(self.formats) or self.formats[0]
        runtime = self._form(deployed, self._copy())[1]
        size = sum((self.directory / name).stat().st_size for name in files_of([deployed]) if name != DENSE_ONNX)
        if self.dense is not None:
            found.results["dense"] = Result("Dense", runtime, self.dense[1], dense_bytes)
            if self.dense[1] != GIVEN:
                found.notes.append(
                    f"The dense model is the one this fit began with ({self.dense[1]}). Give dense=... to compare "
                    f"with one that was trained as long."
                )
        trained = Result("Fake-quantized", pytorch_name(), "the trained module", dense_bytes)
        found.results["fake_quantized"] = trained
        found.results["deployed"] = Result("Deployed", runtime, FILES[deployed], size)
        if deployed == "openvino" and has_vnni() is False:
            found.notes.append(
                "This processor has no VNNI: OpenVINO computed the quantized graph in float, exactly and without gain, "
                "since its 8-bit kernels saturate here. Set LP_TRANSFORMS_MODE=False where you deploy on such "
                "processors, or deploy the ONNX file there."
            )
        if deployed == "onnx" and needs_exact_kernels(open_session(self.directory / FILES[deployed])):
            found.notes.append(
                "The file is for processors with VNNI (processor='vnni', or a backend that wants int8), and this one "
                "has none: ONNX Runtime ran its exact 8-bit kernels (session.x64quantprecision=1), since its default "
                "ones saturate here. Set the same where you deploy on such processors."
            )
        quantization = find(self.module)
        if deployed == "onnx" and quantization is not None and quantization.settings.activation_bits is not None:
            call = self.sample.first(1)
            path = self.directory / FILES["onnx"]
            feed = OnnxModel(path, self._copy().forward).feed(*call.args, **call.kwargs)
            found.integers = integer_share(path, feed)
        if self.data is not None:
            self._verify(found, self.data, deployed)
        if self.latency:
            self._measure(found, deployed)
        return found

    def _copy(self) -> nn.Module:
        return called_through(duplicate(self.module), self.entry.name)

    def _form(self, item: str, reference: nn.Module) -> tuple[Callable[..., Any], str]:
        return deployed_form(self.directory / FILES[item], reference, threads=self.threads)

    def _dense(self) -> nn.Module | None:
        return None if self.dense is None else as_dense(self._copy(), self.dense[0])

    def _write(self, found: Findings) -> None:
        # First, since it needs no trace: a long fit leaves it even where the others fail.
        if "packed" in self.formats:
            found.packed = save_packed(duplicate(self.module), self.directory / FILES["packed"])
        trained = self._smaller(found) if self.shrink else self._copy()
        if "onnx" in self.formats:
            self._write_onnx(trained, FILES["onnx"])
        if "openvino" in self.formats:
            to_openvino(trained, self.entry.example_inputs, self.directory / FILES["openvino"])
        if "torch_export" in self.formats:
            to_torch_export(trained, self.entry.example_inputs, self.directory / FILES["torch_export"])
        if "executorch" in self.formats:
            to_executorch(trained, self.entry.example_inputs, self.directory / FILES["executorch"])
        if "compressed_tensors" in self.formats:
            save_compressed_tensors(duplicate(self.module), self.directory / FILES["compressed_tensors"])
        if DENSE_ONNX in files_of(self.formats) and (dense := self._dense()) is not None:
            self._write_onnx(dense, DENSE_ONNX)
        for item in self.formats:
            path = self.directory / FILES[item]
            size = path.stat().st_size
            beside = {BESIDE[item]: self.directory / BESIDE[item]} if item in BESIDE else {}
            more = {name: file.stat().st_size for name, file in beside.items()}
            if item == "packed" and found.packed is not None:
                breakdown = dict(found.packed.breakdown)
            elif item == "onnx":
                breakdown = onnx_breakdown(path)
            else:
                breakdown = {path.name: size, **more}
            found.artifacts.append(
                {
                    "format": item,
                    "file": path.name,
                    "bytes": size + sum(more.values()),
                    "sha256": sha256(path),
                    "breakdown": breakdown,
                    "zipped": zipped(path, *beside.values()),
                    "beside": {name: sha256(file) for name, file in beside.items()},
                }
            )

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
            f"{sum(shrunk.removed.values())} pruned channels and attention heads are gone from the files that run: "
            f"{before} weights became {after}."
        )
        return smaller

    def _write_onnx(self, module: nn.Module, name: str) -> None:
        to_onnx(
            module,
            self.entry.example_inputs,
            self.directory / name,
            input_names=list(input_names(module.forward, self.entry.args, self.entry.kwargs)),
            metadata=self.provenance,
        )

    def _verify(self, found: Findings, data: EvaluationData, deployed: str) -> None:
        name = self.entry.name
        model = self._copy()
        reference = Remembered(model)
        found.results["fake_quantized"].metrics = evaluate_through(reference, self.module, data, entry=name)
        if self.dense is not None:
            dense = cast(L.LightningModule, as_dense(duplicate(self.module), self.dense[0]))
            found.results["dense"].metrics = evaluate(dense, data)
        for item in self.formats:
            form, _ = self._form(item, model)
            metrics, found.comparisons[item] = evaluate_beside(form, reference, self.module, data, entry=name)
            if item == deployed:
                found.results["deployed"].metrics = metrics
                path, agreement = self.directory / FILES[item], found.comparisons[item].agreement
                if agreement != 1.0 and can_trace(path):
                    call = self.sample
                    errors = site_errors(path, model, call.args, call.kwargs, threads=self.threads)
                    found.divergence = first_divergence(errors)

    def _measure(self, found: Findings, deployed: str) -> None:
        call = self.sample.first(1)
        reference = self._copy()
        timed: dict[str, Callable[[], Any]] = {"fake_quantized": _eager(reference, call)}
        if deployed == "onnx":
            timed["deployed"] = _session(self.directory / FILES["onnx"], reference, call, self.threads)
            if self.dense is not None:
                timed["dense"] = _session(self.directory / DENSE_ONNX, reference, call, self.threads)
        elif deployed == "openvino":
            timed["deployed"] = _openvino(self.directory / FILES["openvino"], reference, call, self.threads)
            if self.dense is not None:
                timed["dense"] = _openvino(self.directory / DENSE_ONNX, reference, call, self.threads)
        elif deployed == "executorch":
            timed["deployed"] = _executorch(self.directory / FILES["executorch"], reference, call)
            if (dense := self._dense()) is not None:
                with tempfile.TemporaryDirectory() as folder:
                    to_executorch(dense, call.example_inputs, file := Path(folder) / "dense.pte")
                    timed["dense"] = _executorch(file, dense, call)
        else:
            form, _ = self._form(deployed, reference)
            timed["deployed"] = lambda: form(None, *call.args, **call.kwargs)
            if (dense := self._dense()) is not None:
                timed["dense"] = _eager(dense, call)
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                timings = measure(timed, seconds=0.5)
        finally:
            torch.set_num_threads(threads)
        for form_name, timing in timings.items():
            found.results[form_name].timing = timing
        if "dense" in timings:
            found.ratio = Ratio.between(timings["deployed"], timings["dense"])


def onnx_breakdown(path: Path) -> dict[str, int]:
    """Bytes of an ONNX file by what they hold: ``integers`` and ``floats`` of its constants, and the ``graph``."""
    import onnx

    parts = {"integers": 0, "floats": 0}
    for constant in onnx.load(path).graph.initializer:
        array = onnx.numpy_helper.to_array(constant)
        parts["floats" if array.dtype.kind == "f" else "integers"] += array.nbytes
    return {**parts, "graph": path.stat().st_size - sum(parts.values())}


def _eager(module: nn.Module, call: Entry) -> Callable[[], Any]:
    return lambda: module(*call.args, **call.kwargs)


def _session(path: Path, reference: nn.Module, call: Entry, threads: int) -> Callable[[], Any]:
    model = OnnxModel(path, reference.forward, threads=threads)
    feed = model.feed(*call.args, **call.kwargs)
    return lambda: model.session.run(None, feed)


def _executorch(path: Path, reference: nn.Module, call: Entry) -> Callable[[], Any]:
    model = ExecuTorchModel(path, reference.forward)
    return lambda: model(*call.args, **call.kwargs)


def _openvino(path: Path, reference: nn.Module, call: Entry, threads: int) -> Callable[[], Any]:
    model = OpenVinoModel(path, reference.forward, threads=threads)
    feed = model.feed(*call.args, **call.kwargs)
    return lambda: model.run(feed)
