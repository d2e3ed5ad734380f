from __future__ import annotations

import numpy as np
import pytest

from lightning_compress import CompressionError
from lightning_compress.export.latency import Ratio, Timing, measure


class Clock:
    """A clock that only the timed work moves on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float):
        def call() -> None:
            self.order.append(name)
            self.now += seconds

        return call


def test_percentiles_are_those_of_all_calls():
    rng = np.random.default_rng(0)
    blocks = rng.exponential(size=(4, 50))
    timing = Timing.of(blocks)
    expected = np.percentile(1e3 * blocks.ravel(), [50, 90, 99])
    np.testing.assert_allclose([timing.median_ms, timing.p90_ms, timing.p99_ms], expected)
    np.testing.assert_allclose(timing.blocks_ms, 1e3 * np.median(blocks, axis=1))


def test_times_are_in_milliseconds():
    clock = Clock()
    timing = measure({"a": clock.work("a", 0.25)}, seconds=1, blocks=2, pause=0, clock=clock)["a"]
    assert (timing.median_ms, timing.p90_ms, timing.p99_ms) == (250.0, 250.0, 250.0)


def test_each_callable_is_timed_for_about_the_time_asked_for():
    clock = Clock()
    calls = {"fast": clock.work("fast", 0.01), "slow": clock.work("slow", 0.05)}
    timings = measure(calls, seconds=2, blocks=4, pause=0, clock=clock)
    assert {name: timing.calls for name, timing in timings.items()} == {"fast": 200, "slow": 40}


def test_callables_take_turns_in_alternating_order():
    clock = Clock()
    calls = {"a": clock.work("a", 1.0), "b": clock.work("b", 1.0)}
    measure(calls, seconds=0.1, blocks=3, warmup=1, pause=0, clock=clock)
    warm, rest = clock.order[:2], clock.order[2:]
    assert warm == ["a", "b"]
    # Each turn is one untimed call and three timed ones.
    assert rest == ["a"] * 4 + ["b"] * 8 + ["a"] * 8 + ["b"] * 4


def test_warm_up_calls_are_not_timed():
    clock = Clock()
    durations = iter([9.0] * 5 + [1.0] * 100)

    def call() -> None:
        clock.now += next(durations)

    assert measure({"a": call}, seconds=1, blocks=2, warmup=5, pause=0, clock=clock)["a"].p99_ms == 1000.0


def test_the_ratio_is_taken_block_by_block():
    # The machine is twice as slow in the second half: the ratio does not move.
    ours = Timing.of([[1.0], [1.0], [2.0], [2.0]])
    theirs = Timing.of([[2.0], [2.0], [4.0], [4.0]])
    ratio = Ratio.between(ours, theirs)
    assert (ratio.low, ratio.median, ratio.high) == (0.5, 0.5, 0.5)


def test_the_spread_of_a_ratio_is_its_quartiles():
    ratio = Ratio.between(Timing.of([[1.0], [2.0], [3.0], [4.0], [5.0]]), Timing.of([[1.0]] * 5))
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 3.0, 4.0)
    assert str(ratio) == "3.00 × (2.00–4.00)"


@pytest.mark.parametrize("setting", [{"blocks": 0}, {"warmup": 0}, {"seconds": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(CompressionError, match=rf"latency\.{next(iter(setting))}"):
        measure({}, **setting)
