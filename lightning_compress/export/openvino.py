"""OpenVINO IR, converted from our ONNX and run once. Needs the extra ``lightning-compress[openvino]``."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError, first_line, refuse_missing
from lightning_compress.export.file_format import GraphFormat, OpenFile
from lightning_compress.export.fixed_batch import run_in_batches
from lightning_compress.export.onnx.write import refuse_projections, to_onnx
from lightning_compress.export.signatures import input_names
from lightning_compress.foundation.atomic_write import replacing
from lightning_compress.foundation.example_inputs import call_arguments
from lightning_compress.foundation.processor import has_vnni


@dataclass(frozen=True)
class OpenVinoFile:
    """A written IR: an ``.xml`` file with the graph, and the ``.bin`` file beside it with the weights.

    Attributes:
        path: The ``.xml`` file.
        weights: The ``.bin`` file.
        bytes: Size of both.
        batch: Samples of one call where their number is fixed; ``None`` where it is free.
        left_out: Classes of what the forward returns beside tensors.
    """

    path: Path
    weights: Path
    bytes: int
    batch: int | None = None
    left_out: tuple[str, ...] = ()


def to_openvino(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> OpenVinoFile:
    """Write a model, quantized or float, as OpenVINO IR, and run it once.

    Args:
        model: The model; it is not changed.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments.
        path: The ``.xml`` file; replaced atomically, after the ``.bin`` file beside it.
        input_names: Names of the graph's inputs; the forward's argument names by default.
        output_names: Names of the graph's outputs; by default the keys or fields under which the forward returns them.
        dynamic_batch: Leave the batch free where that can be; the result says whether it is.
        dynamic_axes: Argument's name → dimension → name in the graph, for other dimensions that stay free.
        metadata: Written into the graph, under ``lightning_compress``.

    Raises:
        CompressionError: OpenVINO is not installed, the model cannot be exported or run, or nothing can be written.
    """
    refuse_missing("to_openvino", "openvino", "OpenVINO")
    import openvino

    path = Path(path)
    if path.suffix != ".xml":
        raise CompressionError.field("to_openvino.path", expected="a file that ends in .xml", got=str(path))
    with tempfile.TemporaryDirectory() as folder:
        source, graph = Path(folder) / "model.onnx", Path(folder) / "model.xml"
        file = to_onnx(
            model,
            example_inputs,
            source,
            input_names=input_names,
            output_names=output_names,
            dynamic_batch=dynamic_batch,
            dynamic_axes=dynamic_axes,
        )
        try:
            converted = openvino.convert_model(source)
        except RuntimeError as error:
            raise CompressionError(f"to_openvino: OpenVINO cannot convert the model: {first_line(error)}.") from error
        for key, value in (metadata or {}).items():
            converted.set_rt_info(str(value), ["lightning_compress", str(key)])
        # Scales and norms in half precision would move the integers.
        openvino.save_model(converted, graph, compress_to_fp16=False)
        args, kwargs = call_arguments(example_inputs, model.forward)
        outputs = OpenVinoModel(graph, model.forward)(*args, **kwargs)
        if not all(bool(torch.isfinite(output).all()) for output in outputs if output.is_floating_point()):
            raise CompressionError(f"to_openvino: {path} gives values that are not finite for the example inputs.")
        weights = path.with_suffix(".bin")
        for written, target in ((graph.with_suffix(".bin"), weights), (graph, path)):
            with replacing(target) as temporary:
                temporary.write_bytes(written.read_bytes())
    return OpenVinoFile(path, weights, path.stat().st_size + weights.stat().st_size, file.batch, file.left_out)


class OpenVinoModel:
    """An IR that is called like the module that it was written from, on the CPU.

    Without VNNI, OpenVINO's 8-bit kernels add pairs of products of unsigned activations and signed weights in 16 bits
    and saturate, which changes results beyond recognition. On such processors the quantized graph is computed in
    float, exactly, unless ``exact`` is ``False``.

    Args:
        path: The ``.xml`` file.
        forward: The module's forward; its parameters name the inputs.
        threads: Threads of the runtime.
        exact: Whether to compute the quantized graph in float; ``None`` where integers would saturate.

    Raises:
        CompressionError: The file is missing, or OpenVINO cannot run it.
    """

    def __init__(
        self, path: str | Path, forward: Callable[..., Any], *, threads: int = 1, exact: bool | None = None
    ) -> None:
        refuse_missing("OpenVinoModel", "openvino", "OpenVINO")
        import openvino

        self.path = Path(path)
        self.exact = has_vnni() is False if exact is None else exact
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # Where there is bfloat16, float operators would else run in it, and not give what was trained.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if self.exact:
            options["LP_TRANSFORMS_MODE"] = False
        try:
            self.compiled = openvino.Core().compile_model(self.path, "CPU", options)
        except RuntimeError as error:
            raise CompressionError(f"{path}: OpenVINO cannot load this file: {_reason(error)}.") from error
        self._forward = forward
        self._request = self.compiled.create_infer_request()
        self._ports = list(self.compiled.inputs)

    def feed(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arrays that a call passes to the runtime: by their names, or by their order in a file with other names.

        Raises:
            CompressionError: The call lacks an input of the file, or one has another shape.
        """
        return self._arrays(self._tensors(args, kwargs))

    def __call__(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """Outputs of the file in order, on the CPU. A file of a fixed batch runs as often as it takes."""
        given = self._tensors(args, kwargs)
        shapes = [[None if size.is_dynamic else size.get_length() for size in p.partial_shape] for p in self._ports]
        return run_in_batches(lambda some: self.run(self._arrays(some)), given, shapes, str(self.path))

    def _tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        given = input_names(self._forward, args, kwargs)
        names = [next((name for name in port.names if name in given), None) for port in self._ports]
        if None in names and len(given) != len(names):
            raise CompressionError(
                f"{self.path}: the file's input {self._ports[names.index(None)].any_name!r} is not among what the "
                f"module is called with ({', '.join(given) or 'no tensors'}). Export with the arguments that the steps "
                f"use."
            )
        found = given.values() if None in names else (given[str(name)] for name in names)
        return [tensor.detach().cpu().contiguous() for tensor in found]

    def _arrays(self, given: list[torch.Tensor]) -> dict[str, Any]:
        import openvino

        for port, tensor in zip(self._ports, given, strict=True):
            if not port.partial_shape.compatible(openvino.PartialShape(list(tensor.shape))):
                # OpenVINO itself would reshape some such inputs and compute something with them.
                raise CompressionError(
                    f"{self.path}: input {port.any_name!r} has shape {port.partial_shape} in the file, and "
                    f"{list(tensor.shape)} was given."
                )
        return {port.any_name: tensor.numpy() for port, tensor in zip(self._ports, given, strict=True)}

    def run(self, feed: Mapping[str, Any]) -> list[torch.Tensor]:
        """Outputs for arrays by input name.

        Raises:
            CompressionError: OpenVINO refuses the inputs.
        """
        try:
            results = self._request.infer(dict(feed))
        except RuntimeError as error:
            raise CompressionError(f"{self.path}: OpenVINO refuses the inputs: {_reason(error)}.") from error
        return [torch.from_numpy(results[port].copy()) for port in self.compiled.outputs]

    def precisions(self) -> Counter[tuple[str, str]]:
        """How many operators run in which precision: (operator, precision) → count."""
        return Counter(
            (node.get_rt_info()["layerType"].astype(str), node.get_rt_info()["runtimePrecision"].astype(str))
            for node in self.compiled.get_runtime_model().get_ops()
        )


def openvino_name(threads: int = 1, *, exact: bool = False) -> str:
    """What ran, for reports."""
    import openvino

    version = openvino.__version__.split("-")[0]
    arithmetic = ", integers computed in float" if exact else ""
    return f"OpenVINO {version}, CPU, {threads} thread{'s' if threads > 1 else ''}{arithmetic}"


def _reason(error: BaseException) -> str:
    """The last line of OpenVINO's report, which says what happened; those before say where in its sources."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


class OpenVino(GraphFormat):
    """OpenVINO IR as a format of an export."""

    name, file, beside, package, dense = "openvino", "model.xml", "model.bin", "OpenVINO", "onnx"
    settings = frozenset({"dynamic_batch", "dynamic_axes", "input_names", "output_names"})

    def write(self, model: nn.Module, example_inputs: Any, path: Path, **settings: Any) -> OpenVinoFile:
        """Write a model."""
        return to_openvino(model, example_inputs, path, **settings)

    def open(self, path: Path, forward: Callable[..., Any], threads: int) -> OpenFile:
        """Compile the graph."""
        model = OpenVinoModel(path, forward, threads=threads)

        def prepare(*args: Any, **kwargs: Any) -> Callable[[], Any]:
            feed = model.feed(*args, **kwargs)
            return lambda: model.run(feed)

        return OpenFile(model, openvino_name(threads, exact=model.exact), prepare)

    def refuse(self, model: nn.Module) -> None:
        """Refuse layers that ONNX, from which it is converted, has no operator for."""
        refuse_projections(model)

    def run_notes(self, path: Path) -> list[str]:
        """How the quantized graph runs without VNNI."""
        if has_vnni() is not False:
            return []
        return [
            "This processor has no VNNI: OpenVINO computed the quantized graph in float, exactly and without gain, "
            "since its 8-bit kernels saturate here. Set LP_TRANSFORMS_MODE=False where you deploy on such "
            "processors, or deploy the ONNX file there."
        ]
