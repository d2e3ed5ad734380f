"""``.tflite`` files in LiteRT's interpreter, called like the module that they were written from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_compress.errors import CompressionError, first_line, refuse_missing
from lightning_compress.export.fixed_batch import run_in_batches
from lightning_compress.export.litert.flatbuffer import channels_last, operators, parsed
from lightning_compress.export.litert.micro import MicroInterpreter
from lightning_compress.export.signatures import input_names

Kernels = Literal["xnnpack", "reference", "micro"]
Detail = dict[str, Any]
"""What an interpreter says of a tensor: ``index``, ``shape``, ``dtype``, ``quantization_parameters``."""


class LiteRTModel:
    """A ``.tflite`` file that is called like the module that it was written from, with any number of samples.

    Args:
        path: The file.
        forward: The module's forward; its parameters order the inputs.
        threads: Threads of the interpreter.
        kernels: ``"xnnpack"``, LiteRT's kernels for processors, or ``"reference"``, its plain C++ ones, which keep the
            values of all tensors, or ``"micro"``, those for microcontrollers in the package tflite-micro.

    Raises:
        CompressionError: The file is missing, or LiteRT cannot load it.
    """

    def __init__(
        self, path: str | Path, forward: Callable[..., Any], *, threads: int = 1, kernels: Kernels = "xnnpack"
    ) -> None:
        self.path, self._forward = Path(path), forward
        self.interpreter: Any = (
            MicroInterpreter(path) if kernels == "micro" else litert_interpreter(path, threads=threads, kernels=kernels)
        )
        self.inputs: list[Detail] = self.interpreter.get_input_details()
        self.outputs: list[Detail] = self.interpreter.get_output_details()
        self._last = channels_last(parsed(self.path.read_bytes()))

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Outputs of the file in order, in the module's layout and in float where they are integers on a grid.

        Raises:
            CompressionError: The inputs do not fit the file's.
        """
        return self._batched(self.run, args, kwargs)

    def run(self, given: list[Tensor]) -> list[Tensor]:
        """One call with as many samples as the file takes."""
        for detail, tensor in zip(self.inputs, given, strict=True):
            self.interpreter.set_tensor(detail["index"], self._fed(detail, tensor))
        self.interpreter.invoke()
        return [self._outside(detail, self.interpreter.get_tensor(detail["index"])) for detail in self.outputs]

    def prepared(self, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """A function that runs the file once, on the inputs of this call."""
        self.run(self._given(args, kwargs))
        invoke: Callable[[], Any] = self.interpreter.invoke
        return invoke

    def activations(self, *args: Any, **kwargs: Any) -> tuple[list[tuple[Tensor, tuple[float, int]]], list[Tensor]]:
        """Activations inside a file that is run by reference kernels, and its outputs.

        Returns:
            Float values of every integer activation, as the kernels lay them out, in the order in which they are made,
            each with scale and zero point as uint8 would have them; then the outputs.
        """
        made = [index for operator in operators(parsed(self.path.read_bytes())) for index in operator.written]
        details = {detail["index"]: detail for detail in self.interpreter.get_tensor_details()}
        first = [detail["index"] for detail in self.inputs]
        wanted = [details[i] for i in dict.fromkeys([*first, *made]) if _is_on_grid(details[i])]
        seen: list[list[Tensor]] = []

        def run(given: list[Tensor]) -> list[Tensor]:
            outputs = self.run(given)
            seen.append([_dequantized(detail, self.interpreter.get_tensor(detail["index"])) for detail in wanted])
            return outputs

        outputs = self._batched(run, args, kwargs)
        grids = [(float(detail["quantization"][0]), int(detail["quantization"][1]) + 128) for detail in wanted]
        values = [torch.cat(parts) for parts in zip(*seen, strict=True)]
        return list(zip(values, grids, strict=True)), outputs

    def _batched(
        self, run: Callable[[list[Tensor]], list[Tensor]], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[Tensor]:
        given, shapes = self._given(args, kwargs), [self._shape(detail) for detail in self.inputs]
        if len(given) != len(shapes) or any(tuple(x.shape[1:]) != s[1:] for x, s in zip(given, shapes, strict=True)):
            raise CompressionError(
                f"{self.path}: the file takes inputs of {', '.join(str(list(shape)) for shape in shapes)}, and "
                f"{', '.join(str(list(value.shape)) for value in given)} came."
            )
        return run_in_batches(run, given, shapes, str(self.path))

    def _given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        return list(input_names(self._forward, tuple(args), kwargs).values())

    def _fed(self, detail: Detail, tensor: Tensor) -> np.ndarray[Any, Any]:
        """An input as the file takes it: in its layout, on its grid."""
        if self._last and tensor.ndim == 4:
            tensor = tensor.permute(0, 2, 3, 1)
        value = np.ascontiguousarray(tensor.detach().cpu().numpy())
        if _is_on_grid(detail) and value.dtype != np.int8:
            scale, zero_point = _grid(detail)
            value = np.clip(np.rint(value / scale) + zero_point, -128, 127)
        return value.astype(detail["dtype"])

    def _outside(self, detail: Detail, value: np.ndarray[Any, Any]) -> Tensor:
        found = _dequantized(detail, value) if _is_on_grid(detail) else torch.from_numpy(value)
        return found.permute(0, 3, 1, 2) if self._last and found.ndim == 4 else found

    def _shape(self, detail: Detail) -> tuple[int, ...]:
        shape = tuple(int(size) for size in detail["shape"])
        return (shape[0], shape[3], *shape[1:3]) if self._last and len(shape) == 4 else shape


def litert_interpreter(path: str | Path, *, threads: int = 1, kernels: Kernels = "xnnpack") -> Any:
    """LiteRT's own interpreter of a file, ready to run.

    Args:
        path: The file.
        threads: Its threads.
        kernels: ``"xnnpack"``, or ``"reference"``, which keep the values of all tensors.

    Raises:
        CompressionError: LiteRT is not installed, the file is missing, or LiteRT cannot load it.
    """
    refuse_missing("litert_interpreter", "ai_edge_litert", "LiteRT", "litert")
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = kernels == "reference"
    try:
        found = Interpreter(
            str(path),
            num_threads=threads,
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF if plain else OpResolverType.AUTO,
            experimental_preserve_all_tensors=plain,
        )
        found.allocate_tensors()
    except (OSError, RuntimeError, ValueError) as error:
        raise CompressionError(f"{path}: LiteRT cannot load this file ({first_line(error)}).") from error
    return found


def _grid(detail: Detail) -> tuple[np.float32, int]:
    parameters = detail["quantization_parameters"]
    return np.float32(parameters["scales"][0]), int(parameters["zero_points"][0])


def _is_on_grid(detail: Detail) -> bool:
    return detail["dtype"] is np.int8 and len(detail["quantization_parameters"]["scales"]) == 1


def _dequantized(detail: Detail, value: np.ndarray[Any, Any]) -> Tensor:
    scale, zero_point = _grid(detail)
    return torch.from_numpy((value.astype(np.float32) - zero_point) * scale)


def litert_name(threads: int) -> str:
    """What ran, for reports."""
    from importlib.metadata import version

    return f"LiteRT {version('ai-edge-litert')}, XNNPACK, CPU, {threads} thread{'s' if threads > 1 else ''}"
