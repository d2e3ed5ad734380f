"""Texts of a report: the table of its versions, the headline, sizes, and how it was made."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from lightning_compress.export.formats import AT_RESUME, AT_START
from lightning_compress.report.number_text import (
    NOTHING,
    change,
    is_share,
    metric,
    milliseconds,
    size,
    times,
)

BEGINNINGS = (AT_START, AT_RESUME)
"""Sources of weights that a fit began with."""
VERSIONS = {"dense": "Dense", "fake_quantized": "Fake-quantized", "deployed": "Deployed"}


def main_metric(report: Mapping[str, Any]) -> str | None:
    """The metric that headlines speak of: the first share, or else the first metric."""
    names = metric_names(report)
    return next((name for name in names if is_share(name)), names[0] if names else None)


def metric_names(report: Mapping[str, Any]) -> list[str]:
    """Every metric's name, in the order in which the versions bring them."""
    return list(dict.fromkeys(name for _, result in versions(report) for name in result["metrics"]))


def versions(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The versions that the report has: ``dense``, ``fake_quantized``, ``deployed``."""
    return [(key, report["results"][key]) for key in VERSIONS if report["results"][key] is not None]


def latency(result: Mapping[str, Any], which: str = "median") -> float | None:
    """A version's latency in milliseconds, ``median`` or ``p90``; ``None`` where it was not timed."""
    return None if result["latency_ms"] is None else float(result["latency_ms"][which])


def comparison(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows of the three-way table: what it is, then one text per version."""
    found = versions(report)
    rows = [(name, [metric(name, r["metrics"].get(name)) for _, r in found]) for name in metric_names(report)]
    rows.append(("Size", [size(r["bytes"]) for _, r in found]))
    rows.append(("Compression ratio", [times(r["compression_ratio"]) for _, r in found]))
    rows.append(("Latency, median", [milliseconds(latency(r)) for _, r in found]))
    rows.append(("Latency, p90", [milliseconds(latency(r, "p90")) for _, r in found]))
    rows.append(("Runtime", [r["runtime"] or NOTHING for _, r in found]))
    return rows


def accounting(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the model takes at each stage; empty for a report that does not say."""
    found = report.get("bytes")
    if found is None:
        return []
    rows = [("Dense, float32", found["dense"]), ("Quantized, each weight at its width", found["quantized"])]
    if found["packed"] is not None:
        rows += [
            ("Packed file", found["packed"]),
            ("of it integers and positions", found["integers"]),
            ("Entropy bound of the same integers", found["entropy_bound"]),
        ]
    for name, file in found["files"].items():
        rows += [(f"{name} on disk", file["on_disk"]), (f"{name} by zlib, level 9", file["zipped"])]
    return [
        (label, f"{size(count)} ({times(found['dense'] / count)})" if count else size(count)) for label, count in rows
    ]


def size_change(ratio: float) -> tuple[str, str]:
    """How a file's size compares with the dense float32 weights.

    Args:
        ratio: Dense bytes ÷ bytes of the file.

    Example:
        >>> size_change(3.61), size_change(0.8), size_change(1.001)
        (('3.61×', 'smaller'), ('1.25×', 'larger'), ('1×', 'the size'))
    """
    if abs(ratio - 1) < 0.005:
        return "1×", "the size"
    return (times(ratio), "smaller") if ratio > 1 else (times(1 / ratio), "larger")


def metric_change(report: Mapping[str, Any], name: str) -> str | None:
    """How a metric changed from the dense control to the deployed file; ``None`` without a control.

    Weights that a fit began with are no control, and are not called dense. A difference of shares below its standard
    error, for two independent samples of the size that was measured, is 'no measurable difference'.
    """
    dense, deployed = report["results"]["dense"], report["results"]["deployed"]
    before = None if dense is None else dense["metrics"].get(name)
    after = None if deployed is None else deployed["metrics"].get(name)
    if before is None or after is None:
        return None
    control = "the start of the fit" if dense["source"] in BEGINNINGS else "dense"
    samples = report["samples"]
    if samples and is_share(name) and 0 <= before <= 1 and 0 <= after <= 1:
        error = math.sqrt((before * (1 - before) + after * (1 - after)) / samples)
        if abs(after - before) <= error:
            return f"no measurable difference from {control} on {samples} samples"
    return f"{change(name, before, after)} against {control}"


def headline(report: Mapping[str, Any]) -> str:
    """What was gained and lost, in one sentence. Says no more than the report holds."""
    deployed = report["results"]["deployed"]
    if deployed is None:
        return "No file was run."
    parts = []
    if deployed["compression_ratio"] is not None:
        ratio, word = size_change(deployed["compression_ratio"])
        of = "of dense float32" if word == "the size" else "than dense float32"
        parts.append(f"{ratio} {word} {of}: {size(deployed['bytes'])}")
    name = main_metric(report)
    if name is not None and name in deployed["metrics"]:
        text, changed = f"{name} {metric(name, deployed['metrics'][name])}", metric_change(report, name)
        parts.append(text if changed is None else f"{text} ({changed})")
    if deployed["latency_ms"] is not None:
        parts.append(f"{milliseconds(latency(deployed))} median latency on {deployed['runtime']}")
    return "; ".join(parts) + "."


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the numbers were made: settings, data, seed and surroundings, as name and value."""
    found = [("Written", report["created"].replace("T", " ").removesuffix("+00:00").removesuffix("Z") + " UTC")]
    for name in ("pruning", "quantization"):
        settings = report["plan"][name]
        found.append((name.capitalize(), "none" if settings is None else _settings(settings)))
    if report["data"] is not None:
        found.append(("Data", _settings(report["data"])))
    if report["seed"] is not None:
        found.append(("Seed", str(report["seed"])))
    surroundings = report["environment"]
    threads = f"{surroundings['threads']} thread{'' if surroundings['threads'] == 1 else 's'}"
    found.append(("Processor", f"{surroundings['cpu']}, {threads}, {surroundings['platform']}"))
    software = {"Python": "python", "PyTorch": "torch", "Lightning": "lightning", "ONNX Runtime": "onnxruntime"}
    found.append(
        ("Software", ", ".join(f"{name} {surroundings[key]}" for name, key in software.items() if surroundings[key]))
    )
    return found


def _settings(settings: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in settings.items() if value is not False and value not in (None, [], {}, ())}
    return ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in shown.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key}: {_value(inner)}" for key, inner in value.items()) + ")"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    text = str(value)
    # A digest is told from another by its beginning; report.json has the whole.
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{40,128}", text) else text
