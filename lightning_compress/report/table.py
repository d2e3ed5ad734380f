"""The three-way table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_compress.report import text
from lightning_compress.report.number_text import size
from lightning_compress.report.schema import check

if TYPE_CHECKING:
    from rich.table import Table


def table(report: Mapping[str, Any]) -> Table:
    """Metrics, bytes, compression ratio and latency for dense, fake-quantized and deployed.

    Args:
        report: A report.

    Raises:
        CompressionError: The report is not whole.
    """
    from rich.markup import escape
    from rich.table import Table

    check(report)
    versions = text.versions(report)
    shown = Table(title=escape(report["name"]), title_justify="left", header_style="bold", border_style="dim")
    shown.add_column("")
    for key, _ in versions:
        deployed = key == "deployed"
        shown.add_column(text.VERSIONS[key], justify="right", style="bold" if deployed else "")
    for label, cells in text.comparison(report):
        shown.add_row(escape(label), *map(escape, cells))
    return shown


def show(report: Mapping[str, Any], folder: Path) -> None:
    """Print the table, the packed file's size, what failed and where the report is.

    Args:
        report: A report.
        folder: Where it was written.
    """
    from rich.console import Console

    console = Console()
    console.print(table(report))
    packed = next((item["bytes"] for item in report["artifacts"] if item["format"] == "packed"), None)
    if packed:
        ratio, word = text.size_change(report["bytes"]["dense"] / packed)
        of = "of dense float32" if word == "the size" else "than dense float32"
        console.print(f"Packed: {size(packed)}, {ratio} {word} {of}", markup=False)
    for failure in report["failures"]:
        console.print(failure, style="bold red", markup=False)
    console.print(f"Report: {folder / 'report.html'}", markup=False, soft_wrap=True)
