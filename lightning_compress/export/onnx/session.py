"""Running a written ONNX file: one set of session options for verification and for latency."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_compress.errors import CompressionError
from lightning_compress.export.fixed_batch import run_in_batches
from lightning_compress.export.onnx.weight_signs import EXACT
from lightning_compress.export.signatures import input_names
from lightning_compress.foundation.processor import has_vnni

if TYPE_CHECKING:
    import onnxruntime


FLOAT_ACTIVATIONS = "session.qdq_matmulnbits_accuracy_level"
"""Set to 1 it keeps the activations of products by INT4 weights in float; other files run the same with it."""


def open_session(
    path: str | os.PathLike[str],
    *,
    threads: int = 1,
    optimized_path: str | None = None,
    content: bytes | None = None,
) -> onnxruntime.InferenceSession:
    """Open an ONNX file in ONNX Runtime on the CPU, as somebody does who sets no options but those it needs.

    A file that was written for processors with VNNI says so in its metadata; on others, where ONNX Runtime's default
    kernels would saturate, it runs with the option ``session.x64quantprecision``. One with INT4 weights runs with
    ``session.qdq_matmulnbits_accuracy_level=1``, since ONNX Runtime else rounds the float activations that it
    multiplies by them to 8 bits. Threads do not spin between calls, so that they do not slow down what runs next.

    Args:
        path: The file.
        threads: Threads of one operator.
        optimized_path: Where to write the graph as ONNX Runtime runs it.
        content: What to open in place of the file's own content.

    Raises:
        CompressionError: The file is missing, or ONNX Runtime cannot run it.
    """
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import (
        Fail,
        InvalidGraph,
        InvalidProtobuf,
        NoSuchFile,
        NotImplemented,
    )

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(FLOAT_ACTIVATIONS, "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimized_path is not None:
        options.optimized_model_filepath = optimized_path
    model = os.fspath(path) if content is None else content
    providers = ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
        if needs_exact_kernels(session):
            options.add_session_config_entry("session.x64quantprecision", "1")
            session = onnxruntime.InferenceSession(model, options, providers=providers)
        return session
    except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile, NotImplemented) as error:
        reason = " ".join(str(error).split())
        raise CompressionError(f"{path}: ONNX Runtime cannot load this file: {reason}") from error


def needs_exact_kernels(session: onnxruntime.InferenceSession) -> bool:
    """Whether a file was written for processors with VNNI, and runs on one without."""
    return EXACT in session.get_modelmeta().custom_metadata_map and has_vnni() is False


def runtime_name(threads: int = 1) -> str:
    """What ran, for reports: ``"ONNX Runtime 1.32.0, CPU, 1 thread"``."""
    import onnxruntime

    return f"ONNX Runtime {onnxruntime.__version__}, CPU, {threads} thread{'s' if threads > 1 else ''}"


class OnnxModel:
    """An ONNX file that is called like the module that it was written from.

    Args:
        path: The file.
        forward: The module's forward; its parameters name the inputs.
        threads: Threads of one operator.
        content: What to run in place of the file's own content.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        forward: Callable[..., Any],
        *,
        threads: int = 1,
        content: bytes | None = None,
    ) -> None:
        self.path = Path(path)
        self.session = open_session(path, threads=threads, content=content)
        self._forward = forward
        self._inputs = {item.name: item.shape for item in self.session.get_inputs()}

    def feed(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arrays that a call passes to the session: by their names, or by their order in a file with other names.

        Raises:
            CompressionError: The call lacks an input of the file.
        """
        return {name: tensor.numpy() for name, tensor in self._tensors(args, kwargs).items()}

    def _tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
        given = input_names(self._forward, args, kwargs)
        missing = [name for name in self._inputs if name not in given]
        if missing and len(given) == len(self._inputs):
            given = dict(zip(self._inputs, given.values(), strict=True))
        elif missing:
            raise CompressionError(
                f"{self.path}: the file's input {missing[0]!r} is not among what the module is called with "
                f"({', '.join(given) or 'no tensors'}). Export with the arguments that the steps use."
            )
        return {name: given[name].detach().cpu().contiguous() for name in self._inputs}

    def __call__(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """Outputs of the file in order, on the CPU. A file of a fixed batch runs as often as it takes.

        Raises:
            CompressionError: ONNX Runtime refuses the inputs.
        """
        given = list(self._tensors(args, kwargs).values())
        return run_in_batches(self._run, given, list(self._inputs.values()), str(self.path))

    def _run(self, given: list[torch.Tensor]) -> list[torch.Tensor]:
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

        feed = {name: tensor.numpy() for name, tensor in zip(self._inputs, given, strict=True)}
        try:
            return [torch.from_numpy(array) for array in self.session.run(None, feed)]
        except (Fail, InvalidArgument, RuntimeException) as error:
            shapes = ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in feed.items())
            reason = " ".join(str(error).split())
            raise CompressionError(f"{self.path}: ONNX Runtime refuses {shapes}: {reason}") from error
