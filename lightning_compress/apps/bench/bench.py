"""Latency, throughput and memory of written files by batch size and threads, two files against each other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_compress.apps.bench.open_file import opened
from lightning_compress.errors import CompressionError
from lightning_compress.export.latency import Ratio, Timing, measure


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
    trust: bool = False,
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
        trust: Whether the config of a run may name any class, for files that need the module of their run; see
            ``verify_run``.

    Raises:
        CompressionError: A file cannot be run, or leaves a dimension free whose size is not given.
    """
    from lightning_compress.apps.bench.peak_memory import peak_memory

    for name, numbers in (("batch-size", batch_sizes), ("threads", threads)):
        if any(number < 1 for number in numbers):
            raise CompressionError.field(f"bench --{name}", expected="positive integers", got=list(numbers))
    paths = [Path(path)] if against is None else [Path(path), Path(against)]
    rows = []
    for count in threads:
        with ExitStack() as stack:
            files = [stack.enter_context(opened(file, threads=count, dims=dims or {}, trust=trust)) for file in paths]
            for batch_size in batch_sizes:
                calls = {str(index): make(batch_size) for index, make in enumerate(files)}
                timings = list(measure(calls, seconds=seconds).values())
                other = timings[1] if against is not None else None
                ratio = None if other is None else Ratio.between(timings[0], other)
                used = [peak_memory(f, batch_size, count, dims or {}, trust=trust) for f in paths] if memory else []
                rows.append(Row(batch_size, count, timings[0], other, ratio, *used))
    return rows
