"""Latency of ONNX files by batch size and threads, two files against each other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_compress.errors import CompressionError
from lightning_compress.export.latency import Ratio, Timing, measure
from lightning_compress.export.runtime import open_session

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Row:
    """Latency at one setting.

    Attributes:
        batch_size: Samples in a call.
        threads: Threads of the runtime.
        timing: Of the file.
        against: Of the other file, if there is one.
        ratio: ``timing`` ÷ ``against``.
    """

    batch_size: int
    threads: int
    timing: Timing
    against: Timing | None = None
    ratio: Ratio | None = None

    @property
    def samples_per_second(self) -> float:
        """Throughput of the file."""
        return 1e3 * self.batch_size / self.timing.median_ms

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "batch_size": self.batch_size,
            "threads": self.threads,
            "latency_ms": self.timing.as_dict(),
            "samples_per_second": self.samples_per_second,
            "against_ms": None if self.against is None else self.against.as_dict(),
            "ratio": None if self.ratio is None else asdict(self.ratio),
        }


def bench(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    seconds: float = 1.0,
    dims: Mapping[str, int] | None = None,
) -> list[Row]:
    """Time an ONNX file, and another one interleaved with it.

    Args:
        path: The file.
        against: The other file; it gets the same inputs.
        batch_sizes: Sizes of the first dimension.
        threads: Threads of the runtime.
        seconds: About how long each file is timed at each setting.
        dims: Sizes of other dimensions that the file leaves free, by the name they have in it.

    Raises:
        CompressionError: A file cannot be run, or leaves a dimension free whose size is not given.
    """
    for name, numbers in (("batch-size", batch_sizes), ("threads", threads)):
        if any(number < 1 for number in numbers):
            raise CompressionError.field(f"bench --{name}", expected="positive integers", got=list(numbers))
    paths = [Path(path)] if against is None else [Path(path), Path(against)]
    for file in paths:
        if file.suffix != ".onnx":
            raise CompressionError.field("bench", expected="an .onnx file", got=str(file))
    rows = []
    for count in threads:
        sessions = [open_session(file, threads=count) for file in paths]
        for batch_size in batch_sizes:
            feeds = [
                inputs(session, file, batch_size, dims or {}) for session, file in zip(sessions, paths, strict=True)
            ]
            calls = {
                str(index): (lambda session=session, feed=feed: session.run(None, feed))
                for index, (session, feed) in enumerate(zip(sessions, feeds, strict=True))
            }
            timings = list(measure(calls, seconds=seconds).values())
            other = timings[1] if against is not None else None
            ratio = None if other is None else Ratio.between(timings[0], other)
            rows.append(Row(batch_size, count, timings[0], other, ratio))
    return rows


def inputs(session: Any, path: Path, batch_size: int, dims: Mapping[str, int]) -> dict[str, Any]:
    """Inputs for a session: seeded normal floats, zeros for integers (a valid index everywhere).

    Raises:
        CompressionError: A dimension is free and its size is not given, or the file fixes another batch size.
    """
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for item in session.get_inputs():
        if item.type not in _DTYPES:
            raise CompressionError(f"{path}: input {item.name!r} has type {item.type}, which bench cannot make.")
        shape = [_size(size, axis, item.name, path, batch_size, dims) for axis, size in enumerate(item.shape)]
        dtype = _DTYPES[item.type]
        floats = np.issubdtype(dtype, np.floating)
        feed[item.name] = rng.standard_normal(shape).astype(dtype) if floats else np.zeros(shape, dtype)
    return feed


def _size(size: Any, axis: int, name: str, path: Path, batch_size: int, dims: Mapping[str, int]) -> int:
    if axis == 0:
        if isinstance(size, int) and size != batch_size:
            raise CompressionError.field(
                "bench --batch-size", expected=f"{size}, which {path} fixes for {name!r}", got=batch_size
            )
        return batch_size
    if isinstance(size, int):
        return size
    if size not in dims:
        raise CompressionError(
            f"{path}: dimension {axis} of input {name!r} is free ({size}). Give its size with --dim {size}=<n>."
        )
    return dims[size]
