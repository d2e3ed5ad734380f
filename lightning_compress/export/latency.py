"""Latency of several models side by side: interleaved blocks, medians, ratios with their spread."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_compress.errors import CompressionError


@dataclass(frozen=True)
class Timing:
    """How long one call took.

    Attributes:
        median_ms: Median over all calls, in milliseconds.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        calls: Number of timed calls.
        blocks_ms: Median of each block, in order; blocks of the same index ran one after the other.
    """

    median_ms: float
    p90_ms: float
    p99_ms: float
    calls: int
    blocks_ms: tuple[float, ...]

    @classmethod
    def of(cls, blocks: Sequence[Sequence[float]]) -> Timing:
        """Summarize seconds per call, one sequence for each block.

        Example:
            >>> Timing.of([[0.001, 0.003], [0.002, 0.002]]).median_ms
            2.0
        """
        calls = 1e3 * np.concatenate([np.asarray(block) for block in blocks])
        median, p90, p99 = (float(value) for value in np.percentile(calls, [50, 90, 99]))
        return cls(median, p90, p99, len(calls), tuple(float(1e3 * np.median(block)) for block in blocks))

    def as_dict(self) -> dict[str, float]:
        """The numbers that a report keeps."""
        return {"median": self.median_ms, "p90": self.p90_ms, "p99": self.p99_ms, "calls": self.calls}


@dataclass(frozen=True)
class Ratio:
    """One latency as a multiple of another.

    Attributes:
        median: Median over blocks.
        low: Lower quartile over blocks.
        high: Upper quartile over blocks.
    """

    median: float
    low: float
    high: float

    @classmethod
    def between(cls, timing: Timing, reference: Timing) -> Ratio:
        """``timing`` ÷ ``reference``, block by block, so that a slow phase of the machine hits both.

        Example:
            >>> fast, slow = Timing.of([[1.0], [2.0]]), Timing.of([[2.0], [4.0]])
            >>> Ratio.between(fast, slow).median
            0.5
        """
        pairs = np.asarray(timing.blocks_ms) / np.asarray(reference.blocks_ms)
        low, median, high = (float(value) for value in np.percentile(pairs, [25, 50, 75]))
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} × ({self.low:.2f}–{self.high:.2f})"


def measure(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 1.0,
    blocks: int = 10,
    warmup: int = 5,
    pause: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time several callables against each other.

    Each block runs every callable some times in a row, in alternating order, with a pause between two callables:
    threads of one runtime may spin for a while after a call and would slow down the next one's.

    Args:
        calls: Name → what to time.
        seconds: About how long to time each callable, over all blocks.
        blocks: Rounds through all callables.
        warmup: Calls of each before the first block, untimed; at the start of each block one call is untimed as well.
        pause: Seconds between two callables.
        clock: Seconds, monotonic.

    Returns:
        Name → its timing. At least 3 calls are timed in each block.

    Raises:
        CompressionError: An argument is out of its range.

    Example:
        >>> timings = measure({"a": lambda: sum(range(9)), "b": lambda: sum(range(999))}, seconds=0.01, blocks=3)
        >>> timings["a"].median_ms < timings["b"].median_ms
        True
    """
    for name, value in (("blocks", blocks), ("warmup", warmup)):
        if value < 1:
            raise CompressionError.field(f"latency.{name}", expected="at least 1", got=value)
    if seconds <= 0:
        raise CompressionError.field("latency.seconds", expected="a positive time", got=seconds)
    repeats = {name: _repeats(call, seconds / blocks, warmup, clock) for name, call in calls.items()}
    samples: dict[str, list[list[float]]] = {name: [] for name in calls}
    for block in range(blocks):
        for name in list(calls) if block % 2 == 0 else list(calls)[::-1]:
            time.sleep(pause)
            calls[name]()
            samples[name].append(_timed(calls[name], repeats[name], clock))
    return {name: Timing.of(timed) for name, timed in samples.items()}


def _repeats(call: Callable[[], Any], seconds: float, warmup: int, clock: Callable[[], float]) -> int:
    """How many calls fill a block."""
    once = float(np.median(_timed(call, warmup, clock)))
    return max(3, round(seconds / max(once, 1e-7)))


def _timed(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> list[float]:
    marks = [clock()]
    for _ in range(repeats):
        call()
        marks.append(clock())
    return [end - begin for begin, end in itertools.pairwise(marks)]
