"""Numbers as people read them, the same in every form of the report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "–"

VERSIONS = {"dense": "Dense", "fake_quantized": "Fake-quantized", "deployed": "Deployed"}


def size(count: float | None) -> str:
    """Bytes, in kB of 1000 bytes and so on.

    Example:
        >>> size(812), size(9_512), size(94_000_000)
        ('812 B', '9.5 kB', '94.0 MB')
    """
    if count is None:
        return NOTHING
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if count < 999.5:
            break
        count, unit = count / 1000, larger
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage.

    Example:
        >>> percent(0.8)
        '80.0 %'
    """
    return NOTHING if share is None else f"{share * 100:.{digits}f} %"


def times(ratio: float | None) -> str:
    """A ratio.

    Example:
        >>> times(18.23), times(1.52)
        ('18.2×', '1.52×')
    """
    return NOTHING if ratio is None else f"{ratio:.3g}×" if ratio < 100 else f"{ratio:.0f}×"


def milliseconds(latency: Mapping[str, float] | None, which: str = "median") -> str:
    """A latency in milliseconds.

    Example:
        >>> milliseconds({"median": 0.4123, "p90": 0.5})
        '0.412 ms'
    """
    return NOTHING if latency is None else f"{latency[which]:.3g} ms"


def metric(name: str, value: float | None) -> str:
    """A metric's value: accuracies and other shares as percentages, the rest with four digits.

    Example:
        >>> metric("test/acc", 0.9722), metric("test/loss", 0.1)
        ('97.22 %', '0.1000')
    """
    if value is None:
        return NOTHING
    return percent(value, 2) if is_share(name) and 0 <= value <= 1 else f"{value:.4f}"


def is_share(name: str) -> bool:
    """Whether a metric's name says that it is a share from 0 to 1, and that more is better."""
    return re.search(r"acc|top.?\d|precision|recall|f1|auroc|iou|agreement", name.lower()) is not None


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


def change(name: str, before: float | None, after: float | None) -> str | None:
    """How a metric changed.

    Example:
        >>> change("test/acc", 0.9750, 0.9722)
        '−0.28 points'
    """
    if before is None or after is None:
        return None
    difference = after - before
    sign = "−" if difference < 0 else "+"
    if is_share(name):
        points = f"{abs(difference) * 100:.2f}"
        return f"{'±' if points == '0.00' else sign}{points} points"
    return f"{sign}{abs(difference):.4f}"


def comparison(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows of the three-way table: what it is, then one text per version."""
    found = versions(report)
    rows = [(name, [metric(name, r["metrics"].get(name)) for _, r in found]) for name in metric_names(report)]
    rows.append(("Size", [size(r["bytes"]) for _, r in found]))
    rows.append(("Compression ratio", [times(r["compression_ratio"]) for _, r in found]))
    rows.append(("Latency, median", [milliseconds(r["latency_ms"]) for _, r in found]))
    rows.append(("Latency, p90", [milliseconds(r["latency_ms"], "p90") for _, r in found]))
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


def headline(report: Mapping[str, Any]) -> str:
    """What was gained and lost, in one sentence.

    Says no more than the report holds.
    """
    dense, deployed = report["results"]["dense"], report["results"]["deployed"]
    if deployed is None:
        return "No file was written."
    parts = []
    if deployed["compression_ratio"] is not None:
        parts.append(f"{times(deployed['compression_ratio'])} smaller than dense float32: {size(deployed['bytes'])}")
    name = main_metric(report)
    if name is not None and name in deployed["metrics"]:
        text = f"{name} {metric(name, deployed['metrics'][name])}"
        lost = None if dense is None else change(name, dense["metrics"].get(name), deployed["metrics"][name])
        parts.append(text if lost is None else f"{text} ({lost} against dense)")
    if deployed["latency_ms"] is not None:
        parts.append(f"{milliseconds(deployed['latency_ms'])} median latency on {deployed['runtime']}")
    return "; ".join(parts) + "."


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What the numbers do not say by themselves: where zeros give size and not speed."""
    patterns: Sequence[str] = sorted({row["pattern"] for row in report["layers"] if row["sparsity"] > 0} - {"none"})
    dense, deployed = report["results"]["dense"], report["results"]["deployed"]
    before, after = (result and result["latency_ms"] for result in (dense, deployed))
    faster = bool(before and after) and after["median"] <= before["median"]
    found = []
    scattered = [pattern for pattern in patterns if pattern != "channel"]
    if "unstructured" in scattered:
        quantized = any(row["weight_bits"] <= 8 for row in report["layers"])
        found.append(
            "Unstructured zeros give size, not speed. ONNX Runtime multiplies by a zero as by any other number, and "
            "the ONNX file stores it as any other; only the packed file leaves zeros out."
            + (" What speed was gained comes from integers." if quantized and faster else "")
        )
    for pattern in scattered:
        if pattern != "unstructured":
            found.append(
                f"Zeros in the pattern {pattern} give speed only on hardware and runtimes that know it; ONNX Runtime "
                f"on a CPU does not."
            )
    dead = {row["name"]: row.get("dead_channels", 0) for row in report["layers"] if row["pattern"] != "channel"}
    if any(dead.values()):
        most = max(dead, key=lambda name: dead[name])
        found.append(
            f"{sum(dead.values())} output channels have no weight left, {dead[most]} of them in {most}. "
            "pattern='channel' takes channels out of the network."
        )
    if before and after and not faster:
        found.append(
            f"On this machine the deployed file is slower than the dense model: {milliseconds(after)} against "
            f"{milliseconds(before)}."
        )
    return found


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
