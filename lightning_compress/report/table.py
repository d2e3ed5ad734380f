"""The three-way table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_compress.report import text
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
