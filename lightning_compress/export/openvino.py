"""OpenVINO IR, converted from our ONNX and run once. Needs the extra ``lightning-compress[openvino]``."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError, first_line, refuse_missing
from lightning_compress.export.onnx.write import to_onnx
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
    """

    path: Path
    weights: Path
    bytes: int


def to_openvino(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> OpenVinoFile:
    """Write a model, quantized or float, as OpenVINO IR, and run it once.

    Args:
        model: The model; it is not changed.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments.
        path: The ``.xml`` file; replaced atomically, after the ``.bin`` file beside it.
        dynamic_batch: Leave the first dimension of every input free.
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
        to_onnx(model, example_inputs, source, dynamic_batch=dynamic_batch)
        try:
            converted = openvino.convert_model(source)
        except RuntimeError as error:
            raise CompressionError(f"to_openvino: OpenVINO cannot convert the model: {first_line(error)}.") from error
        for key, value in (metadata or {}).items():
            converted.set_rt_info(str(value), ["lightning_compress", str(key)])
        # Scales and norms in half precision would move the integers.
        openvino.save_model(converted, graph, compress_to_fp16=False)
        args, kwargs = call_arguments(example_inputs)
        outputs = OpenVinoModel(graph, model.forward)(*args, **kwargs)
        if not all(bool(torch.isfinite(output).all()) for output in outputs if output.is_floating_point()):
            raise CompressionError(f"to_openvino: {path} gives values that are not finite for the example inputs.")
        weights = path.with_suffix(".bin")
        for written, target in ((graph.with_suffix(".bin"), weights), (graph, path)):
            with replacing(target) as temporary:
                temporary.write_bytes(written.read_bytes())
    return OpenVinoFile(path, weights, path.stat().st_size + weights.stat().st_size)


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

    def feed(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arrays that a call passes to the runtime.

        Raises:
            CompressionError: The call lacks an input of the file, or one has another shape.
        """
        import openvino

        given = input_names(self._forward, args, kwargs)
        feed = {}
        for port in self.compiled.inputs:
            name = next((name for name in port.names if name in given), None)
            if name is None:
                raise CompressionError(
                    f"{self.path}: the file's input {port.any_name!r} is not among what the module is called with "
                    f"({', '.join(given) or 'no tensors'}). Export with the arguments that the steps use."
                )
            array = given[name].detach().cpu().contiguous().numpy()
            if not port.partial_shape.compatible(openvino.PartialShape(list(array.shape))):
                # OpenVINO itself would reshape some such inputs and compute something with them.
                raise CompressionError(
                    f"{self.path}: input {name!r} has shape {port.partial_shape} in the file, and {list(array.shape)} "
                    f"was given."
                )
            feed[name] = array
        return feed

    def __call__(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """Outputs of the file in order, on the CPU."""
        return self.run(self.feed(*args, **kwargs))

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
