"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_compress.report import speed_of_patterns as zeros
from lightning_compress.report import text
from lightning_compress.report.markdown_text import code, escaped
from lightning_compress.report.number_text import percent, size
from lightning_compress.report.warnings import remarks


def markdown(report: Mapping[str, Any]) -> str:
    """Render a report as GitHub-flavoured Markdown."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {escaped(report['name'])}"
    yield ""
    for failure in report["failures"]:
        yield f"> **{escaped(failure)}**"
        yield ""
    yield escaped(text.headline(report))
    yield ""
    heads = [text.VERSIONS[key] for key, _ in text.versions(report)]
    yield from _table(
        ["", *heads], [[escaped(label), *map(escaped, cells)] for label, cells in text.comparison(report)]
    )
    if report["agreement"] is not None:
        yield ""
        yield (
            f"The deployed file gives the fake-quantized model's prediction on "
            f"{percent(report['agreement'], 2)} of the samples."
        )
    if report.get("integer_share") is not None:
        yield ""
        runtime = report["results"]["deployed"]["runtime"].partition(",")[0]
        yield f"{runtime} computes {percent(report['integer_share'], 1)} of the multiply-adds in integers."
    for remark in [*remarks(report), *report["notes"]]:
        yield ""
        yield f"> {escaped(remark)}"
    yield from _zeros(report)
    yield from _plan(report)
    yield from _files(report)
    yield from _layers(report)
    if report["stays_float"]:
        yield from ("", "## What stays float", "")
        yield from (f"- {escaped(line)}" for line in report["stays_float"])
    yield from ("", "## How it was made", "")
    facts = text.facts(report)
    yield from _table(["", ""], [[escaped(name), escaped(value)] for name, value in facts], numbers=False)


def _zeros(report: Mapping[str, Any]) -> Iterator[str]:
    rows = zeros.speed_from_zeros(report)
    if rows:
        yield from ("", "## Speed from zeros", "")
        table = [[code(pattern), *speeds] for pattern, speeds in rows]
        yield from _table(["Pattern", *zeros.RUNTIMES], table, numbers=False)


def _plan(report: Mapping[str, Any]) -> Iterator[str]:
    phases = report["plan"]["phases"]
    if phases:
        yield from ("", "## Phases", "")
        yield from _table(
            ["Phase", "From step", "To step"], [[escaped(p["name"]), p["start"], p["end"]] for p in phases]
        )


def _files(report: Mapping[str, Any]) -> Iterator[str]:
    if not report["artifacts"]:
        return
    yield from ("", "## Files", "")
    rows = []
    for artifact in report["artifacts"]:
        rows.append([code(artifact["file"]), size(artifact["bytes"])])
        rows += [[f"&emsp;{escaped(part)}", size(count)] for part, count in artifact["breakdown"].items()]
    yield from _table(["File", "Size"], rows)
    if counted := text.accounting(report):
        yield from ("", "## Bytes", "")
        yield from _table(["", "Bytes (times smaller than dense)"], counted)


def _layers(report: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Layers", "")
    heads = ["Layer", "Type", "Shape", "Sparsity asked", "reached", "Bits W/A", "Dense", "Packed"]
    rows = [
        [
            code(row["name"]),
            escaped(row["type"]),
            "×".join(map(str, row["shape"])),
            percent(row["sparsity_target"]),
            percent(row["sparsity"]),
            f"{row['weight_bits']}/{row['activation_bits']}",
            size(row["bytes_dense"]),
            size(row["bytes_packed"]),
        ]
        for row in report["layers"]
    ]
    yield from _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: bool = True) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' if numbers else ' --- |'}" + (" ---: |" if numbers else " --- |") * (len(heads) - 2)
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
