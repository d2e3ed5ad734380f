"""``lightning-compress verify``: run a written file again, and compare it with the trained model."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_compress.apps.configuration.compose import working_directory_importable
from lightning_compress.errors import CompressionError

TRUST = (
    "build whatever classes the run's config names, and load any checkpoint of it: both run code of whoever made that "
    "directory. Without it, only models and data of this package and of PyTorch"
)

if TYPE_CHECKING:
    from lightning_compress.apps.verify.verify import FileVerdict


def add_verify(commands: Any) -> None:
    """``verify``: run a file in its runtime and compare."""
    from lightning_compress.cli.parser import add_parser

    parser = add_parser(
        commands,
        "verify",
        "Run a written file on the data of its run, and compare it with the dense and the trained model.",
        run,
        usage="lightning-compress verify PATH [options] [key=value ...]",
        epilog="key=value changes a setting of the run: data.root=~/data. Exit codes: 0 it holds; 1 a limit does not "
        "hold, the file differs from the trained model by more than rounding, or it does not run; 2 wrong use. Nothing "
        "is changed or deleted.",
    )
    parser.add_argument("path", type=Path, help="an .onnx, .packed, .pt2 or .xml file, or the directory of an export")
    # Overrides may stand on either side of options, which argparse alone would not allow.
    parser.set_defaults(passes_on=True, runs_file=True)
    parser.add_argument(
        "--max-drop",
        metavar="LOSS",
        help="largest loss from dense to deployed: 1%% or 0.01 is one percentage point of a share such as accuracy; "
        "for other metrics 1%% is a share of the dense value. Default: what the run was exported with",
    )
    parser.add_argument(
        "--min-agreement",
        type=float,
        metavar="SHARE",
        help="smallest share of predictions equal to the trained model's",
    )
    parser.add_argument("--metric", metavar="NAME", help="metric of --max-drop; default: the first accuracy")
    parser.add_argument("--mode", choices=("max", "min"), help="whether more or less of the metric is better")
    parser.add_argument("--split", choices=("val", "test"), help="which data; default: what the export was verified on")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime")
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="directory of the run; default: the file's own or the one above"
    )
    parser.add_argument("--trust", action="store_true", help=TRUST)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Verify, print a table or JSON."""
    if (unknown := next((text for text in rest if text.startswith("-")), None)) is not None:
        raise CompressionError.field("verify", expected="options that --help lists", got=unknown)
    # With JSON, standard output carries nothing else.
    aside = contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext()
    with aside, working_directory_importable():
        from lightning_compress.apps.compare.limits import parse_drop
        from lightning_compress.apps.verify.verify import Demands, verify_run

        demands = Demands(
            max_drop=None if arguments.max_drop is None else parse_drop(arguments.max_drop, "verify --max-drop"),
            min_agreement=arguments.min_agreement,
            metric=arguments.metric,
            mode=arguments.mode,
        )
        found = verify_run(
            arguments.path,
            rest,
            demands=demands,
            split=arguments.split,
            threads=arguments.threads,
            run_dir=arguments.run,
            trust=arguments.trust,
        )
    failed = any(item.failures for item in found)
    if arguments.json:
        print(json.dumps({"files": [item.as_dict() for item in found], "holds": not failed}, indent=2))
    else:
        for item in found:
            _show(item)
    return 1 if failed else 0


def _show(found: FileVerdict) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lightning_compress.report.number_text import metric, percent
    from lightning_compress.report.text import VERSIONS

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(f"{found.path} ({found.runtime})", style="bold", markup=False, highlight=False, soft_wrap=True)
    names = list(dict.fromkeys(name for metrics in found.metrics.values() for name in metrics))
    table = Table(header_style="bold", border_style="dim")
    table.add_column("metric")
    for form in found.metrics:
        table.add_column(VERSIONS[form], justify="right")
    for name in names:
        table.add_row(escape(name), *(metric(name, metrics.get(name)) for metrics in found.metrics.values()))
    console.print(table)
    if found.samples:
        agreement = "" if found.agreement is None else f"{percent(found.agreement, 2)} the same top class; "
        console.print(
            f"{found.samples} samples, compared with the trained model: {agreement}outputs differ by "
            f"{found.mean_abs_difference:.3g} on average, {found.max_abs_difference:.3g} at most",
            highlight=False,
        )
        if found.traced and found.divergence is None:
            console.print("Every layer's activations are the trained model's but for rounding.")
    for note in found.notes:
        console.print(f"Note: {note}", markup=False)
    for failure in found.failures:
        console.print(f"Does not hold: {failure}", style="bold red", markup=False)
