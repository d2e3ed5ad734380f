"""``lightning-compress inspect``: what is in a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_compress.errors import DoesNotHold

if TYPE_CHECKING:
    from rich.console import Console

    from lightning_compress.apps.inspect.inspect import Inspection


def add_inspect(commands: Any) -> None:
    """``inspect``: layers, sparsity, bits and bytes of any artifact or checkpoint."""
    from lightning_compress.cli.parser import add_parser

    parser = add_parser(
        commands,
        "inspect",
        "Layers, sparsity, bits and bytes of an artifact or checkpoint.",
        run,
        epilog="Exit codes: 0 done; 1 the file is damaged, or is not the one that its report speaks of; 2 wrong use.",
    )
    parser.add_argument("--all", action="store_true", help="show vectors and scalars one by one, too")
    parser.add_argument(
        "path", type=Path, help="a .ckpt, .pt, .safetensors, .packed or .onnx file, or the directory of an export"
    )


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Print what is in the file, as tables or JSON."""
    from lightning_compress.apps.inspect.inspect import inspect

    try:
        found = inspect(arguments.path)
    except DoesNotHold as failure:
        if arguments.json:
            print(json.dumps({"path": str(arguments.path), "failure": str(failure)}, indent=2))
        else:
            print(f"Does not hold: {failure}")
        return 1
    if arguments.json:
        print(json.dumps(found.as_dict(), indent=2))
        return 0
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    for part in [found, *found.files.values()]:
        _show(console, part, every=arguments.all)
    return 0


def _show(console: Console, found: Inspection, *, every: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from lightning_compress.errors import printable
    from lightning_compress.report.number_text import NOTHING, percent, size, times

    console.print(f"{found.path} ({found.kind})", style="bold", markup=False, highlight=False, soft_wrap=True)
    table = Table(header_style="bold", border_style="dim")
    table.add_column("tensor", overflow="fold", min_width=20)
    for head in ("shape", "sparsity", "pattern", "bits", "dense", "stored", "entropy"):
        table.add_column(head, justify="left" if head == "pattern" else "right", no_wrap=True)
    shown = [row for row in found.tensors if every or len(row.shape) > 1]
    for row in shown:
        empty = f" ({row.empty_channels} empty)" if row.empty_channels else ""
        table.add_row(
            escape(printable(row.name)),
            "×".join(map(str, row.shape)) or "scalar",
            percent(row.sparsity),
            (NOTHING if row.pattern == "none" else row.pattern) + empty,
            str(row.bits),
            *map(size, (row.dense_bytes, row.stored_bytes, row.entropy_bytes)),
        )
    if len(shown) < len(found.tensors):
        others = [row for row in found.tensors if row not in shown]
        sums = (sum(row.dense_bytes for row in others), sum(row.stored_bytes for row in others), None)
        numel = f"{sum(row.numel for row in others):,}"
        table.add_row(f"{len(others)} vectors and scalars", numel, "", "", "", *map(size, sums), style="dim")
    totals = found.totals()
    table.add_section()
    table.add_row(
        f"{totals['tensors']} tensors",
        f"{totals['elements']:,}",
        percent(totals["sparsity"]),
        "",
        NOTHING if totals["bits"] is None else f"{totals['bits']:.3g}",
        *(size(totals[f"{name}_bytes"]) for name in ("dense", "stored", "entropy")),
        style="bold",
    )
    console.print(table)
    if found.kind == "export":
        console.print(f"On disk: {size(totals['bytes'])} in {len(found.files)} files; 'stored' is the packed file's.")
    else:
        zipped = "" if totals["zipped_bytes"] is None else f", zipped {size(totals['zipped_bytes'])}"
        ratio = times(totals["compression_ratio"])
        console.print(f"On disk: {size(totals['bytes'])}{zipped}; dense float32 ÷ on disk: {ratio}")
    for name, value in found.facts.items():
        console.print(printable(f"{name}: {value}"), markup=False, highlight=False)
