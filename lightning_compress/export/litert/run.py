"""``.tflite`` files in LiteRT's interpreter, called like the module that they were written from."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_compress.errors import CompressionError, first_line
from lightning_compress.export.fixed_batch import run_in_batches
from lightning_compress.export.litert.flatbuffer import channels_last
from lightning_compress.export.signatures import input_names

Kernels = Literal["xnnpack", "reference"]


def refuse_missing_litert(field: str) -> None:
    """Check that LiteRT and its converter are installed.

    Raises:
        CompressionError: They are not.
    """
    for package in ("ai_edge_litert", "litert_torch"):
        if importlib.util.find_spec(package) is None:
            raise CompressionError(
                f"{field}: LiteRT is not installed ({package} is missing). Run: pip install "
                f"'lightning-compress[litert]'"
            )


class LiteRTModel:
    """A ``.tflite`` file that is called like the module that it was written from, with any number of samples.

    Args:
        path: The file.
        forward: The module's forward; its parameters order the inputs.
        threads: Threads of the interpreter.
        kernels: ``"xnnpack"``, LiteRT's kernels for processors, or ``"reference"``, its plain C++ ones.

    Raises:
        CompressionError: The file is missing, or LiteRT cannot load it.
    """

    def __init__(
        self, path: str | Path, forward: Callable[..., Any], *, threads: int = 1, kernels: Kernels = "xnnpack"
    ) -> None:
        refuse_missing_litert("LiteRTModel")
        self.path, self._forward = Path(path), forward
        self.interpreter = interpreter(self.path, threads=threads, kernels=kernels)
        self._channels_last = channels_last(self.path.read_bytes())
        self._inputs = self.interpreter.get_input_details()
        self._outputs = self.interpreter.get_output_details()

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Outputs of the file in order, in the module's layout and in float where they are integers on a grid.

        Raises:
            CompressionError: The inputs do not fit the file's.
        """
        given = list(input_names(self._forward, args, kwargs).values())
        shapes = [self._shape(detail) for detail in self._inputs]
        if len(given) != len(shapes) or any(tuple(x.shape[1:]) != s[1:] for x, s in zip(given, shapes, strict=True)):
            raise CompressionError(
                f"{self.path}: the file takes inputs of {', '.join(str(list(shape)) for shape in shapes)}, and "
                f"{', '.join(str(list(value.shape)) for value in given)} came."
            )
        return run_in_batches(self.run, given, shapes, str(self.path))

    def run(self, given: list[Tensor]) -> list[Tensor]:
        """One call with as many samples as the file takes."""
        for detail, tensor in zip(self._inputs, given, strict=True):
            self.interpreter.set_tensor(detail["index"], self.fed(detail, tensor))
        self.interpreter.invoke()
        return [self._given(detail) for detail in self._outputs]

    def fed(self, detail: dict[str, Any], tensor: Tensor) -> np.ndarray[Any, Any]:
        """An input as the file takes it: its layout, its integers."""
        if self._channels_last and tensor.ndim == 4:
            tensor = tensor.permute(0, 2, 3, 1)
        value = np.ascontiguousarray(tensor.detach().cpu().numpy())
        if detail["dtype"] is np.int8 and value.dtype != np.int8:
            scale, zero_point = detail["quantization"]
            value = np.clip(np.rint(value / np.float32(scale)) + zero_point, -128, 127)
        return value.astype(detail["dtype"])

    def _given(self, detail: dict[str, Any]) -> Tensor:
        value = torch.from_numpy(self.interpreter.get_tensor(detail["index"]))
        if value.dtype == torch.int8 and detail["quantization"][0]:
            scale, zero_point = detail["quantization"]
            value = (value.float() - zero_point) * scale
        return value.permute(0, 3, 1, 2) if self._channels_last and value.ndim == 4 else value

    def _shape(self, detail: dict[str, Any]) -> tuple[int, ...]:
        shape = tuple(int(size) for size in detail["shape"])
        return (shape[0], shape[3], *shape[1:3]) if self._channels_last and len(shape) == 4 else shape


def interpreter(path: Path, *, threads: int = 1, kernels: Kernels = "xnnpack", keep: bool = False) -> Any:
    """LiteRT's interpreter of a file, ready to run.

    Args:
        path: The file.
        threads: Its threads.
        kernels: Which kernels run.
        keep: Whether to keep the values of all tensors, which LiteRT's own kernels alone do.

    Raises:
        CompressionError: LiteRT cannot load the file.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if kernels == "xnnpack" else OpResolverType.BUILTIN_REF
    try:
        found = Interpreter(
            str(path),
            num_threads=threads,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=keep,
        )
        found.allocate_tensors()
    except (OSError, RuntimeError, ValueError) as error:
        raise CompressionError(f"{path}: LiteRT cannot load this file ({first_line(error)}).") from error
    return found


def litert_name(threads: int) -> str:
    """What ran, for reports."""
    from importlib.metadata import version

    return f"LiteRT {version('ai-edge-litert')}, XNNPACK, CPU, {threads} thread{'s' if threads > 1 else ''}"
