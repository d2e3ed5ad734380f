"""The report of a compression: checked, written as JSON, Markdown and one HTML page, or printed as a table."""

from lightning_compress.report.build import environment, layers, phases
from lightning_compress.report.schema import FORMAT, check
from lightning_compress.report.table import show, table
from lightning_compress.report.warnings import ruin
from lightning_compress.report.write import write

__all__ = ["FORMAT", "check", "environment", "layers", "phases", "ruin", "show", "table", "write"]
