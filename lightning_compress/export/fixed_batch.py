"""Files whose batch is fixed: written once they gave what the model gives, and run on any number of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.atomic_write import replacing
from lightning_compress.foundation.output_difference import same_outputs
from lightning_compress.foundation.pytree import tree_leaves

Run = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class FixedBatchFile:
    """A written file.

    Attributes:
        path: Where it is.
        bytes: Its size.
        batch_size: Samples of one call, which are fixed.
    """

    path: Path
    bytes: int
    batch_size: int


def write_checked(
    path: Path, data: bytes, run: Callable[[Path], list[Tensor]], expected: Any, batch_size: int, field: str
) -> FixedBatchFile:
    """Write a file, replaced atomically once it gave what the program gives.

    Args:
        path: Where to write.
        data: The file's contents.
        run: Runs a file on the inputs of ``expected``.
        expected: What the program gives, a tensor or a structure of tensors.
        batch_size: Samples of one call.
        field: Name of the caller, for messages.

    Raises:
        CompressionError: The file gives other outputs, or nothing can be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)
        leaves = [leaf for leaf in tree_leaves(expected) if isinstance(leaf, Tensor)]
        if not same_outputs(run(temporary), leaves, least=1e-6):
            raise CompressionError(f"{field}: {path} gives other outputs than the program it was written from.")
    return FixedBatchFile(path, path.stat().st_size, batch_size)


def run_in_batches(run: Run, given: list[Tensor], shapes: Sequence[Sequence[object]], name: str) -> list[Tensor]:
    """Run a file once, or once for each batch of its own size; the last one is filled up with its last sample.

    Args:
        run: Takes tensors and gives tensors.
        given: The inputs.
        shapes: Those of the file's inputs; a size that is free is anything but an ``int``.
        name: The file's, for messages.

    Raises:
        CompressionError: A result has no sample in its first dimension, so that batches cannot be put together.

    Example:
        >>> run_in_batches(lambda inputs: [inputs[0] * 2], [torch.arange(3)], [[2]], "model.onnx")
        [tensor([0, 2, 4])]
    """
    sizes = {shape[0] if isinstance(shape[0], int) else None for shape in shapes if shape}
    counts = {tensor.shape[0] for tensor in given if tensor.ndim}
    size, count = next(iter(sizes), None), next(iter(counts), 0)
    if len(sizes) != 1 or len(counts) != 1 or size in (None, count) or not count:
        return run(given)
    assert size is not None
    pieces = []
    for start in range(0, count, size):
        rows = torch.arange(start, start + size).clamp(max=count - 1)
        outputs = run([tensor[rows] if tensor.ndim else tensor for tensor in given])
        if any(not output.ndim or output.shape[0] != size for output in outputs):
            raise CompressionError(
                f"{name}: the file takes {size} samples at once and gives a result that is not one for each of them, "
                f"so that {count} samples cannot be run."
            )
        pieces.append(outputs)
    return [torch.cat(outputs)[:count] for outputs in zip(*pieces, strict=True)]
