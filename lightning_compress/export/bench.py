"""Latency, throughput and memory of written files by batch size and threads, two files against each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_compress.errors import CompressionError
from lightning_compress.export.latency import Ratio, Timing, measure
from lightning_compress.export.runtime import open_session

Call = Callable[[], Any]
"""One run of a file, with inputs that were made before."""

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
        memory: Bytes that loading and running add to a fresh process at their peak, if they were measured.
        against_memory: The same of the other file.
    """

    batch_size: int
    threads: int
    timing: Timing
    against: Timing | None = None
    ratio: Ratio | None = None
    memory: int | None = None
    against_memory: int | None = None

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
            "memory_bytes": self.memory,
            "against_memory_bytes": self.against_memory,
        }


def bench(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    seconds: float = 1.0,
    dims: Mapping[str, int] | None = None,
    memory: bool = False,
) -> list[Row]:
    """Time a file, and another one interleaved with it.

    Args:
        path: An ONNX file, or another one that an export wrote; that one is loaded with the module and the data of its
            run.
        against: The other file.
        batch_sizes: Sizes of the first dimension.
        threads: Threads of the runtime.
        seconds: About how long each file is timed at each setting.
        dims: Sizes of other dimensions that an ONNX file leaves free, by the name they have in it.
        memory: Whether to measure memory as well, each file in a fresh process for each setting.

    Raises:
        CompressionError: A file cannot be run, or leaves a dimension free whose size is not given.
    """
    from lightning_compress.export.memory import peak_memory

    for name, numbers in (("batch-size", batch_sizes), ("threads", threads)):
        if any(number < 1 for number in numbers):
            raise CompressionError.field(f"bench --{name}", expected="positive integers", got=list(numbers))
    paths = [Path(path)] if against is None else [Path(path), Path(against)]
    rows = []
    for count in threads:
        with ExitStack() as stack:
            files = [stack.enter_context(opened(file, threads=count, dims=dims or {})) for file in paths]
            for batch_size in batch_sizes:
                calls = {str(index): make(batch_size) for index, make in enumerate(files)}
                timings = list(measure(calls, seconds=seconds).values())
                other = timings[1] if against is not None else None
                ratio = None if other is None else Ratio.between(timings[0], other)
                used = [peak_memory(f, batch_size, count, dims or {}) for f in paths] if memory else []
                rows.append(Row(batch_size, count, timings[0], other, ratio, *used))
    return rows


@contextmanager
def opened(path: Path, *, threads: int = 1, dims: Mapping[str, int] | None = None) -> Iterator[Callable[[int], Call]]:
    """Load a file; gives a function of the batch size that makes a call.

    Args:
        path: The file.
        threads: Threads of its runtime; PyTorch's own are set back afterwards.
        dims: As in ``bench``.
    """
    if path.suffix == ".onnx":
        session = open_session(path, threads=threads)

        def of_session(batch_size: int) -> Call:
            feed = inputs(session, path, batch_size, dims or {})
            return lambda: session.run(None, feed)

        yield of_session
        return
    if not path.is_file():
        raise CompressionError.field("bench", expected="a file that an export wrote", got=str(path))
    import torch

    from lightning_compress.export.entry import called_through
    from lightning_compress.export.evaluate import duplicate
    from lightning_compress.export.verify import deployed_form
    from lightning_compress.verification.run import find_run, read_run, run_config

    folder = find_run(path)
    with run_config(folder, []) as cfg:
        run = read_run(folder, path, cfg, (cfg.get("export") or {}).get("split") or "val")
    reference = called_through(duplicate(run.module), run.entry.name)
    form, _ = deployed_form(path, reference, threads=threads)

    def of_form(batch_size: int) -> Call:
        call = run.entry.repeated(batch_size)
        with torch.inference_mode():
            like = reference(*call.args, **call.kwargs)
        return lambda: form(like, *call.args, **call.kwargs)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield of_form
    finally:
        torch.set_num_threads(before)


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
