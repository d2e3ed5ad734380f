"""``lightning-compress doctor``: what a training would do, without training."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_compress.apps.configuration.compose import composed, working_directory_importable

if TYPE_CHECKING:
    from lightning_compress.apps.doctor.diagnose import Diagnosis


def add_doctor(commands: Any) -> None:
    """``doctor``: a dry run of ``train``."""
    from lightning_compress.cli.parser import add_parser

    parser = add_parser(
        commands,
        "doctor",
        "Dry run of train: what would be pruned, quantized and left alone, and why.",
        run,
        epilog="Exit codes: 0 all of it can be done; 1 something asked for cannot happen; 2 wrong use.",
    )
    parser.add_argument("overrides", nargs="*", help="as train takes them: key=value, group=choice")


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Diagnose the configuration and print what was found, as tables or JSON."""
    # With JSON, standard output carries nothing else.
    aside = contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext()
    with (
        aside,
        working_directory_importable(),
        tempfile.TemporaryDirectory() as folder,
        composed(arguments.overrides, folder) as cfg,
    ):
        # Imported here, so that --help and a misspelt setting are answered without loading torch.
        from lightning_compress.apps.doctor.rehearsal import examine

        found = examine(cfg, folder, arguments.overrides)
    if arguments.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        show(found)
    return 1 if found.errors else 0


def show(found: Diagnosis) -> None:
    """Print a diagnosis for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lightning_compress.monitoring import phases
    from lightning_compress.report.number_text import NOTHING, percent, size, times

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    if found.parameters:
        table = Table(title="Parameters", title_justify="left", header_style="bold", border_style="dim")
        table.add_column("parameter", overflow="fold", min_width=20)
        for head in ("shape", "zeros", "pruning", "quantization", "input"):
            table.add_column(head, justify="right" if head in ("shape", "zeros", "input") else "left")
        for item in found.parameters:
            bits = NOTHING if item.input_bits is None else f"{item.input_bits} bits"
            shape = "×".join(map(str, item.shape)) or "scalar"
            touched = item.pruned or item.quantized
            table.add_row(
                escape(item.name),
                shape,
                percent(item.sparsity) if item.pruned else NOTHING,
                escape(("" if item.pruned else "no: ") + item.pruning),
                escape(item.quantization),
                bits,
                style="" if touched else "dim",
            )
        console.print(table)
    if found.phases:
        console.print(phases.table(found.phases, found.run.total_steps))
    if found.updates:
        console.print(f"Mask updates: {len(found.updates)}, after optimizer steps {_listed(found.updates)}.")
    if found.sites:
        _print(console, f"Activations are quantized at {len(found.sites)} places", [", ".join(found.sites)])
    for title, lines in (("Stays float", found.stays_float), ("Notes", found.notes)):
        _print(console, title, lines)
    if found.sizes:
        dense = found.sizes["dense"]
        console.print("Expected sizes", style="bold")
        for name, count in found.sizes.items():
            console.print(f"  {name}: about {size(count)}" + (f" ({times(dense / count)})" if name != "dense" else ""))
    if found.memory:
        console.print("Memory that training takes more", style="bold")
        for name, count in found.memory.items():
            console.print(f"  {name}: {size(count)}")
    for title, lines, style in (("Warnings", found.warnings, "yellow"), ("Cannot happen", found.errors, "bold red")):
        _print(console, title, lines, style)
    console.print("Nothing stands in the way." if not found.errors else "Not everything asked for can happen.")


def _print(console: Any, title: str, lines: Any, style: str = "") -> None:
    if lines:
        console.print(title, style="bold")
    for line in lines:
        console.print(f"  {line}", style=style, markup=False, highlight=False)


def _listed(steps: Sequence[int], most: int = 4) -> str:
    if len(steps) <= most:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[: most - 1]))}, … {steps[-1]}"
