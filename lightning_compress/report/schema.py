"""The schema of a report, on which other tools can rely."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_compress.errors import CompressionError

FORMAT = 1


class _Map:
    """A mapping with free keys and values of one kind."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Optional:
    """A value that may be null."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _AtLeastZero:
    """A number that counts or measures: bytes, samples, milliseconds."""

    def __init__(self, value: tuple[type, ...]) -> None:
        self.value = value


_NUMBER = (int, float)
_AMOUNT = _AtLeastZero(_NUMBER)
_COUNT = _AtLeastZero((int,))
_LARGEST = 1 << 63
_ANY: tuple[type, ...] = (object,)

_RESULT = {
    "label": str,
    "metrics": _Map(_NUMBER),
    "bytes": _Optional(_COUNT),
    "compression_ratio": _Optional(_AMOUNT),
    "latency_ms": _Optional({"median": _AMOUNT, "p90": _AMOUNT}),
    "runtime": _Optional(str),
    "source": _Optional(str),
}

SCHEMA = {
    "format": int,
    "name": str,
    "created": str,
    "environment": {
        "python": str,
        "torch": str,
        "lightning": str,
        "onnxruntime": _Optional(str),
        "cpu": str,
        "threads": _COUNT,
        "platform": str,
    },
    "seed": _Optional(int),
    "data": _Optional(_Map(_ANY)),
    "plan": {
        "pruning": _Optional(_Map(_ANY)),
        "quantization": _Optional(_Map(_ANY)),
        "phases": [{"name": str, "start": int, "end": int}],
    },
    "results": {"dense": _Optional(_RESULT), "fake_quantized": _Optional(_RESULT), "deployed": _Optional(_RESULT)},
    "agreement": _Optional(_AMOUNT),
    "samples": _Optional(_COUNT),
    "latency": {"ratio": _Optional({"median": _AMOUNT, "low": _AMOUNT, "high": _AMOUNT})},
    "max_abs_difference": _Optional(_AMOUNT),
    "artifacts": [{"format": str, "file": str, "bytes": _COUNT, "sha256": str, "breakdown": _Map(_COUNT)}],
    "layers": [
        {
            "name": str,
            "type": str,
            "shape": [_COUNT],
            "numel": _COUNT,
            "sparsity_target": _Optional(_AMOUNT),
            "sparsity": _AMOUNT,
            "weight_bits": _COUNT,
            "activation_bits": _COUNT,
            "bytes_dense": _COUNT,
            "bytes_packed": _AMOUNT,
            "macs": _Optional(_COUNT),
            "pattern": str,
            "dead_channels": _COUNT,
        }
    ],
    "history": [
        {
            "step": int,
            "sparsity": _AMOUNT,
            "sparsity_target": _AMOUNT,
            "weight_bits": _AMOUNT,
            "activation_bits": _AMOUNT,
            "phase": str,
        }
    ],
    "evaluations": [{"step": int, "metrics": _Map(_NUMBER)}],
    "stays_float": [str],
    "notes": [str],
    "failures": [str],
}
"""Key → type, or the same again for what is nested."""


def check(report: Mapping[str, Any]) -> None:
    """Check that a report holds everything it must; what it holds besides is left alone.

    Args:
        report: The report, as made or as read from ``report.json``.

    Raises:
        CompressionError: A key is missing, a value has another type, or the format is another.

    Example:
        >>> check({"format": 1})
        Traceback (most recent call last):
        lightning_compress.errors.CompressionError: report.name is missing.
    """
    if not isinstance(report, Mapping) or "format" not in report:
        raise CompressionError("report.format is missing: this is not a report of lightning-compress.")
    if report["format"] != FORMAT:
        raise CompressionError.field(
            "report.format", expected=str(FORMAT), got=report["format"], fix="Another release wrote it."
        )
    _check(report, SCHEMA, "report")


def _check(value: Any, expected: Any, where: str) -> None:
    if isinstance(expected, _Optional):
        if value is not None:
            _check(value, expected.value, where)
    elif isinstance(expected, dict):
        _refuse_type(value, (Mapping,), where)
        for key, inner in expected.items():
            if key not in value:
                raise CompressionError(f"{where}.{key} is missing.")
            _check(value[key], inner, f"{where}.{key}")
    elif isinstance(expected, _Map):
        _refuse_type(value, (Mapping,), where)
        for key, inner in value.items():
            _check(inner, expected.value, f"{where}.{key}")
    elif isinstance(expected, _AtLeastZero):
        _refuse_type(value, expected.value, where)
        if value < 0:
            raise CompressionError.field(where, expected="a number of at least 0", got=value)
    elif isinstance(expected, list):
        _refuse_type(value, (list, tuple), where)
        for index, inner in enumerate(value):
            _check(inner, expected[0], f"{where}[{index}]")
    else:
        _refuse_type(value, expected if isinstance(expected, tuple) else (expected,), where)


def _refuse_type(value: Any, expected: tuple[type, ...], where: str) -> None:
    names = " or ".join(t.__name__ for t in expected)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected != _ANY):
        raise CompressionError.field(where, expected=f"a value of type {names}", got=value)
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise CompressionError.field(where, expected="a number of less than 2**63", got=f"{str(value)[:20]}...")
    if isinstance(value, float) and not math.isfinite(value):
        raise CompressionError.field(where, expected="a finite number", got=value, fix="Use None for 'not measured'.")
