"""Running a file whose batch is fixed on any number of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError

Run = Callable[[list[Tensor]], list[Tensor]]


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
