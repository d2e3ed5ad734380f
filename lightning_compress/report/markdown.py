"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_compress.foundation import number_text as text
from lightning_compress.report import speed_of_patterns as zeros


def markdown(report: Mapping[str, Any]) -> str:
    """Render a report as GitHub-flavoured Markdown."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {report['name']}"
    yield ""
    yield text.headline(report)
    yield ""
    heads = [text.VERSIONS[key] for key, _ in text.versions(report)]
    yield from _table(["", *heads], [[label, *cells] for label, cells in text.comparison(report)])
    if report["agreement"] is not None:
        yield ""
        yield (
            f"The deployed file gives the fake-quantized model's prediction on "
            f"{text.percent(report['agreement'], 2)} of the samples."
        )
    if report.get("integer_share") is not None:
        yield ""
        yield f"ONNX Runtime computes {text.percent(report['integer_share'], 1)} of the multiply-adds in integers."
    for remark in [*text.remarks(report), *report["notes"]]:
        yield ""
        yield f"> {remark}"
    yield from _zeros(report)
    yield from _plan(report)
    yield from _files(report)
    yield from _layers(report)
    if report["stays_float"]:
        yield from ("", "## What stays float", "")
        yield from (f"- {_escaped(line)}" for line in report["stays_float"])
    yield from ("", "## How it was made", "")
    facts = text.facts(report)
    yield from _table(["", ""], [[name, value] for name, value in facts], numbers=False)


def _zeros(report: Mapping[str, Any]) -> Iterator[str]:
    rows = zeros.speed_from_zeros(report)
    if rows:
        yield from ("", "## Speed from zeros", "")
        table = [[f"`{pattern}`", *speeds] for pattern, speeds in rows]
        yield from _table(["Pattern", *zeros.RUNTIMES], table, numbers=False)


def _plan(report: Mapping[str, Any]) -> Iterator[str]:
    phases = report["plan"]["phases"]
    if phases:
        yield from ("", "## Phases", "")
        yield from _table(["Phase", "From step", "To step"], [[p["name"], p["start"], p["end"]] for p in phases])


def _files(report: Mapping[str, Any]) -> Iterator[str]:
    if not report["artifacts"]:
        return
    yield from ("", "## Files", "")
    rows = []
    for artifact in report["artifacts"]:
        rows.append([f"`{artifact['file']}`", text.size(artifact["bytes"])])
        rows += [[f"&emsp;{_escaped(part)}", text.size(count)] for part, count in artifact["breakdown"].items()]
    yield from _table(["File", "Size"], rows)
    if counted := text.accounting(report):
        yield from ("", "## Bytes", "")
        yield from _table(["", "Bytes (times smaller than dense)"], counted)


def _layers(report: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Layers", "")
    heads = ["Layer", "Type", "Shape", "Sparsity asked", "reached", "Bits W/A", "Dense", "Packed"]
    rows = [
        [
            f"`{row['name']}`",
            row["type"],
            "×".join(map(str, row["shape"])),
            text.percent(row["sparsity_target"]),
            text.percent(row["sparsity"]),
            f"{row['weight_bits']}/{row['activation_bits']}",
            text.size(row["bytes_dense"]),
            text.size(row["bytes_packed"]),
        ]
        for row in report["layers"]
    ]
    yield from _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: bool = True) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' if numbers else ' --- |'}" + (" ---: |" if numbers else " --- |") * (len(heads) - 2)
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |"


def _escaped(line: str) -> str:
    return line.replace("<", "&lt;").replace("*", "\\*")
