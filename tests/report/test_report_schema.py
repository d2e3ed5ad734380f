from __future__ import annotations

import json
import math
from typing import Any

import pytest
from reports import example_report

from lightning_compress import report
from lightning_compress.errors import CompressionError


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key of the fixed parts of a report."""
    free = {"metrics", "breakdown", "pruning", "quantization", "data"}
    if isinstance(value, dict) and (not prefix or prefix[-1] not in free):
        return [p for key, inner in value.items() for p in [(*prefix, key), *paths(inner, (*prefix, key))]]
    if isinstance(value, list) and value:
        return paths(value[0], (*prefix, 0))
    return []


def test_a_whole_report_passes() -> None:
    report.check(example_report())


def test_a_report_read_from_json_passes() -> None:
    report.check(json.loads(json.dumps(example_report())))


@pytest.mark.parametrize("path", paths(example_report()), ids=lambda path: ".".join(map(str, path)))
def test_each_missing_key_is_named(path: tuple[Any, ...]) -> None:
    broken = example_report()
    inner: Any = broken
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(CompressionError, match=rf"{path[-1]} is missing"):
        report.check(broken)


def test_the_whole_path_is_named() -> None:
    broken = example_report()
    del broken["layers"][3]["sparsity"]
    with pytest.raises(CompressionError, match=r"^report\.layers\[3\]\.sparsity is missing\.$"):
        report.check(broken)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", "42", r"report.seed: expected a value of type int, got '42'"),
        ("agreement", True, r"report.agreement: expected a value of type int or float, got True"),
        ("max_abs_difference", math.nan, r"report.max_abs_difference: expected a finite number, got nan"),
        ("layers", {}, r"report.layers: expected a value of type list or tuple"),
        ("format", 2, r"report.format: expected 1, got 2"),
    ],
)
def test_wrong_values_are_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        report.check({**example_report(), key: value})


def test_something_else_is_no_report() -> None:
    with pytest.raises(CompressionError, match="not a report"):
        report.check({"state_dict": {}})


def test_what_was_not_measured_may_be_null() -> None:
    found = example_report()
    found.update(seed=None, data=None, agreement=None, max_abs_difference=None)
    found["plan"].update(pruning=None, quantization=None, phases=[])
    found["results"].update(dense=None, fake_quantized=None)
    found["results"]["deployed"]["latency_ms"] = None
    report.check(found)
