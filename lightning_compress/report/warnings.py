"""Warnings of a report: what went wrong, and what the numbers alone do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_compress.report.number_text import is_share, metric, milliseconds
from lightning_compress.report.text import main_metric

RUIN = 0.5
"""Share of the control's accuracy below which a model has collapsed rather than lost some."""
_FEW = 5


def ruin(report: Mapping[str, Any]) -> list[str]:
    """What makes a model useless: accuracy below half of the control's, or a layer without any weight left.

    Args:
        report: As ``report.json`` holds it.

    Returns:
        A sentence for each; empty where there is nothing.
    """
    return [*_collapse(report), *_empty_layers(report)]


def _collapse(report: Mapping[str, Any]) -> list[str]:
    name, dense = main_metric(report), report["results"]["dense"]
    before = None if name is None or dense is None else dense["metrics"].get(name)
    if name is None or before is None or not (is_share(name) and 0 <= before <= 1):
        return []
    for form, label in (("fake_quantized", "trained"), ("deployed", "deployed")):
        result = report["results"][form]
        after = None if result is None else result["metrics"].get(name)
        if after is not None and after < RUIN * before:
            cure = "Compress less, later or more slowly, and train longer." if form == "fake_quantized" else ""
            return [
                f"The {label} model has collapsed: {name} {metric(name, after)}, "
                f"{metric(name, before)} before. {cure}".rstrip()
            ]
    return []


def _empty_layers(report: Mapping[str, Any]) -> list[str]:
    empty = [row["name"] for row in report["layers"] if row["sparsity"] == 1.0 and len(row["shape"]) > 1]
    if not empty:
        return []
    more = f" and {len(empty) - _FEW} more" if len(empty) > _FEW else ""
    return [
        f"Pruned whole, so that nothing passes: {', '.join(empty[:_FEW])}{more}. Set layer_floor, a lower sparsity for "
        "these layers in overrides, or distribution='uniform'."
    ]


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What the numbers do not say by themselves: where zeros give size and not speed."""
    patterns: Sequence[str] = sorted({row["pattern"] for row in report["layers"] if row["sparsity"] > 0} - {"none"})
    dense, deployed = report["results"]["dense"], report["results"]["deployed"]
    before, after = (result and result["latency_ms"] for result in (dense, deployed))
    ratio = report["latency"]["ratio"]
    faster = bool(before and after) and after["median"] <= before["median"]
    slower = bool(before and after) and not faster and (ratio is None or ratio["low"] > 1)
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
    if any(dead.values()) and not _empty_layers(report):
        most = max(dead, key=lambda name: dead[name])
        found.append(
            f"{sum(dead.values())} output channels have no weight left, {dead[most]} of them in {most}. "
            "pattern='channel' takes channels out of the network."
        )
    if slower:
        found.append(
            f"On this machine the deployed file is slower than the dense model: {milliseconds(after['median'])} "
            f"against {milliseconds(before['median'])}."
        )
    return found
