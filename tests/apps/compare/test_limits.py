from __future__ import annotations

from pathlib import Path

import pytest

from lightning_compress import CompressionError
from lightning_compress.apps.compare.limits import Limits, parse_drop, parse_latency, parse_size
from lightning_compress.apps.compare.sweep import Job


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("100KB", 100_000),
        ("100 kB", 100_000),
        ("0.5kb", 500),
        ("96KiB", 98_304),
        ("1.5MB", 1_500_000),
        ("2MiB", 2_097_152),
        (".5GB", 5e8),
        ("812B", 812),
        ("812", 812),
    ],
)
def test_sizes_have_units_of_1000_or_1024_bytes(given: str, expected: float) -> None:
    assert parse_size(given) == expected


@pytest.mark.parametrize(("given", "expected"), [("2ms", 2), ("150us", 0.15), ("150µs", 0.15), ("0.5 s", 500)])
def test_latencies_are_in_milliseconds(given: str, expected: float) -> None:
    assert parse_latency(given) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "expected"), [("1%", (0.01, True)), ("0.5 %", (0.005, True)), ("0.02", (0.02, False))]
)
def test_a_drop_is_a_percentage_or_a_number(given: str, expected: tuple[float, bool]) -> None:
    assert parse_drop(given) == expected


@pytest.mark.parametrize(
    ("parse", "given", "message"),
    [
        (parse_size, "100kBit", "--max-size: expected a size .* got '100kBit'. Closest: "),
        (parse_size, "big", "--max-size: expected a size"),
        (parse_size, "-5KB", "--max-size: expected a size"),
        (parse_latency, "2", "--max-latency: expected a time .* Give a unit."),
        (parse_latency, "2 minutes", "--max-latency: expected a time"),
        (parse_drop, "1 point", "--max-drop: expected a loss"),
        (parse_drop, "-1%", "--max-drop: expected a loss"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_option_and_an_example(parse, given: str, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        parse(given)


def job(**metrics: float) -> Job:
    dense = {"test/acc": 0.98, "test/loss": 0.5}
    return Job("a", Path("a"), "finished", metrics=metrics, dense_metrics=dense, bytes=100, latency_ms=1.0)


def test_one_percent_of_a_share_is_one_point() -> None:
    limits = Limits.of("test/acc", max_drop=(0.01, True))
    assert not limits.violations(job(**{"test/acc": 0.97}))
    assert limits.violations(job(**{"test/acc": 0.9699}))


def test_one_percent_of_a_loss_is_relative_and_upwards() -> None:
    limits = Limits.of("test/loss", max_drop=(0.1, True))
    assert not limits.violations(job(**{"test/loss": 0.55}))
    assert limits.violations(job(**{"test/loss": 0.56}))
    assert not Limits.of("test/loss", max_drop=(0.1, False)).violations(job(**{"test/loss": 0.6}))


def test_a_limit_on_a_loss_is_said_to_be_above_dense() -> None:
    (line,) = Limits.of("test/loss", max_drop=(0.1, True)).described()
    assert line == "test/loss at most 10.00 % of the dense value above dense"
    (line,) = Limits.of("test/acc", max_drop=(0.01, True)).described()
    assert line == "test/acc at most 1.00 points below dense"


def test_what_was_not_measured_keeps_no_limit() -> None:
    unknown = Job("a", Path("a"), "finished", metrics={"test/acc": 1.0}, bytes=100)
    found = Limits.of("test/acc", max_drop=(0.5, False), max_latency=10.0).violations(unknown)
    assert [violation.limit for violation in found] == ["drop", "latency"]


@pytest.mark.parametrize(
    ("limits", "objective"),
    [
        ({}, "bytes"),
        ({"max_drop": (0.01, True)}, "bytes"),
        ({"max_size": 1.0}, "metric"),
        ({"max_latency": 1.0}, "metric"),
        ({"max_drop": (0.01, True), "max_size": 1.0}, "bytes"),
        ({"max_size": 1.0, "objective": "latency"}, "latency"),
    ],
)
def test_the_objective_is_bytes_unless_only_size_or_latency_is_limited(limits, objective: str) -> None:
    assert Limits.of("test/acc", **limits).objective == objective
