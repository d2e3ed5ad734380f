"""ExecuTorch ``.pte`` for XNNPACK's kernels, run once. Needs the extra ``lightning-compress[executorch]``.

The program is the one of ``export.pt2e``, with activations in int8, since XNNPACK has no kernels for unsigned ones.
Train with ``backend="executorch"``: XNNPACK's integer operators write integers, so every output needs a quantizer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError, first_line, refuse_missing
from lightning_compress.export.executorch.xnnpack import for_xnnpack
from lightning_compress.export.fixed_batch import FixedBatchFile, write_checked
from lightning_compress.export.pt2e import quiet, to_pt2e
from lightning_compress.export.signatures import input_names
from lightning_compress.export.trace import trace
from lightning_compress.foundation.example_inputs import call_arguments, first_samples
from lightning_compress.foundation.nested import mapped


def to_executorch(model: nn.Module, example_inputs: Any, path: str | Path, *, batch_size: int = 1) -> FixedBatchFile:
    """Write a model, quantized or float, as a ``.pte`` file, and load and run it once.

    Memory for every intermediate value is planned in the file, so the batch size is fixed.

    Args:
        model: The model; it is not changed.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments, with ``batch_size`` samples at
            least.
        path: Where to write; replaced atomically, once the file gave what the model gives.
        batch_size: Samples of one call.

    Raises:
        CompressionError: ExecuTorch is not installed, activations have fewer than 8 bits, the model cannot be
            exported, the file gives other outputs, or nothing can be written.
    """
    refuse_missing("to_executorch", "executorch", "ExecuTorch")
    path = Path(path)
    args, kwargs = mapped(first_samples(call_arguments(example_inputs, model.forward), batch_size), _plain)
    program = trace(model, (*args, kwargs), dynamic_batch=False, field="to_executorch").program
    example, named = program.example_inputs
    expected = program.module()(*example, **named)
    to_pt2e(program, signed=True)
    for_xnnpack(program)
    data = _lowered(program)
    return write_checked(
        path,
        data,
        lambda file: ExecuTorchModel(file, model.forward)(*args, **kwargs),
        expected,
        batch_size,
        "to_executorch",
    )


class ExecuTorchModel:
    """A ``.pte`` file that is called like the module that it was written from, with any number of samples.

    Args:
        path: The file.
        forward: The module's forward; its parameters order the inputs.

    Raises:
        CompressionError: The file is missing, or ExecuTorch cannot load it.
    """

    def __init__(self, path: str | Path, forward: Callable[..., Any]) -> None:
        refuse_missing("ExecuTorchModel", "executorch", "ExecuTorch")
        with quiet():
            # Kernels for what XNNPACK does not take over.
            importlib.import_module("executorch.kernels.quantized")
            from executorch.runtime import Runtime

        self.path = Path(path)
        try:
            self._program = Runtime.get().load_program(self.path.read_bytes())
            self._method = self._program.load_method("forward")
        except (OSError, RuntimeError) as error:
            raise CompressionError(f"{path}: ExecuTorch cannot load this file ({first_line(error)}).") from error
        self._forward = forward
        meta = self._method.metadata
        self._shapes = [tuple(meta.input_tensor_meta(k).sizes()) for k in range(meta.num_inputs())]

    def __call__(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """Outputs of the file in order.

        Raises:
            CompressionError: The inputs do not fit the file's, or their number is no multiple of its batch size.
        """
        given = [_plain(value) for value in input_names(self._forward, args, kwargs).values()]
        batch = self._shapes[0][0] if self._shapes and self._shapes[0] else 1
        count = given[0].shape[0] if given and given[0].ndim else 1
        fits = len(given) == len(self._shapes) and all(
            tuple(value.shape[1:]) == shape[1:] for value, shape in zip(given, self._shapes, strict=True)
        )
        if not fits or count % batch:
            shapes = ", ".join(str(list(value.shape)) for value in given)
            raise CompressionError(
                f"{self.path}: the file takes inputs of {', '.join(str(list(shape)) for shape in self._shapes)} or a "
                f"multiple of that many samples, and got {shapes}."
            )
        parts = []
        for start in range(0, count, batch):
            piece = [value[start : start + batch] if value.ndim else value for value in given]
            # The runtime hands out its own memory, which the next call writes over.
            parts.append([output.clone() for output in self._method.execute(piece)])
        return [torch.cat(outputs) if outputs[0].ndim else outputs[0] for outputs in zip(*parts, strict=True)]


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the strides of its shape: for one channel, images in channels-last order count as contiguous, too."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def executorch_name() -> str:
    """What ran, for reports."""
    from importlib.metadata import version

    return f"ExecuTorch {version('executorch')}, XNNPACK, CPU"


def _lowered(program: torch.export.ExportedProgram) -> bytes:
    try:
        with quiet():
            importlib.import_module("executorch.kernels.quantized")
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return bytes(edge.to_executorch().buffer)
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        raise CompressionError(f"to_executorch: ExecuTorch cannot lower the model: {first_line(error)}.") from error
