"""The report as one HTML page that needs nothing else: no network, no scripts, pictures inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_compress.report import number_text as numbers
from lightning_compress.report import plots, text
from lightning_compress.report import speed_of_patterns as zeros
from lightning_compress.report.warnings import remarks

_WIDE, _NARROW = 820, 360


def html(report: Mapping[str, Any]) -> str:
    """Render a report as HTML, light or dark as the reader's system is."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    surroundings = Environment(
        loader=PackageLoader("lightning_compress.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    surroundings.globals.update(text=text, numbers=numbers, zeros=zeros, ranked=plots.ranked)
    return surroundings.get_template("report.html.j2").render(
        report=report,
        remarks=remarks(report),
        pictures={name: (draw(report, _WIDE), draw(report, _NARROW)) for name, draw in _pictures(report).items()},
        figures=_figures(report),
        shown=len(plots.shown_layers(report)),
        dense_bytes=plots.dense_bytes(report),
    )


def _pictures(report: Mapping[str, Any]) -> dict[str, Any]:
    """The pictures for which the report has numbers."""
    found: dict[str, Any] = {}
    if report["history"]:
        found["schedule"] = plots.schedule
    if plots.curves(report):
        found["training"] = plots.training
    if plots.shown_layers(report):
        found["layers"] = plots.layers
    if report["artifacts"]:
        found["sizes"] = plots.sizes
    return found


def _figures(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The few numbers at the top: value, what it is, and what to hold it against."""
    dense, deployed = report["results"]["dense"], report["results"]["deployed"]
    found: list[tuple[str, str, str]] = []
    if deployed is None:
        return found
    if deployed["compression_ratio"] is not None:
        against = f"{numbers.size(plots.dense_bytes(report))} → {numbers.size(deployed['bytes'])}"
        smallest = min(report["artifacts"], key=lambda artifact: artifact["bytes"], default=None)
        if smallest is not None and deployed["bytes"] is not None and smallest["bytes"] < deployed["bytes"]:
            against += f"; {smallest['format']} {numbers.size(smallest['bytes'])}"
        found.append((*text.size_change(deployed["compression_ratio"]), against))
    name = text.main_metric(report)
    if name is not None and name in deployed["metrics"]:
        against = text.metric_change(report, name) or "no dense control"
        found.append((numbers.metric(name, deployed["metrics"][name]), name, against))
    if deployed["latency_ms"] is not None:
        against = deployed["runtime"] or ""
        if dense is not None and dense["latency_ms"] is not None:
            against = f"dense {numbers.milliseconds(text.latency(dense))} on {dense['runtime']}"
        found.append((numbers.milliseconds(text.latency(deployed)), "median latency", against))
    if report["agreement"] is not None:
        found.append((numbers.percent(report["agreement"], 2), "agreement", "deployed with fake-quantized"))
    if report.get("integer_share") is not None:
        found.append((numbers.percent(report["integer_share"], 1), "in integers", "of the multiply-adds"))
    return found
