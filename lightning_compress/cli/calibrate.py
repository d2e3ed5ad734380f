"""``lightning-compress calibrate``: quantize a trained network without training, and say whether that is enough."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_compress.cli.parser import composed_aside, with_choices

if TYPE_CHECKING:
    from lightning_compress.apps.calibrate.calibrate import Calibrated


def add_calibrate(commands: Any) -> None:
    """``calibrate``: post-training quantization of a checkpoint."""
    from lightning_compress.cli.parser import add_parser

    parser = add_parser(
        commands,
        "calibrate",
        "Quantize a trained network without training, export it, run it, and say whether training is needed.",
        run,
        allow_abbrev=False,
        epilog="Ranges, bits and backend are settings of the group quantization (quantization.range=percentile, mse), "
        "formats of export (export.formats=[onnx]). Exit codes: 0 training is not needed; 1 it is, or a limit of the "
        "export does not hold; 2 wrong use.",
    )
    parser.set_defaults(passes_on=True)
    parser.add_argument("overrides", nargs="*", help="model and data, as train takes them: key=value, group=choice")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help="the trained network")
    parser.add_argument("--batches", type=int, default=16, metavar="N", help="training batches (default: %(default)s)")
    parser.add_argument(
        "--no-bias-correction",
        action="store_true",
        help="leave biases as they are; by default they correct the mean error of rounded weights",
    )
    parser.add_argument(
        "--equalize", action="store_true", help="first give consecutive layers equal ranges of each channel"
    )
    parser.add_argument("--batchnorm", action="store_true", help="measure batch-norm statistics again on the batches")
    parser.add_argument(
        "--max-drop",
        default="1%",
        metavar="LOSS",
        help="most that may be lost without training: 1%% (default) or 0.01 is one percentage point of a share such as "
        "accuracy; for other metrics 1%% is a share of the trained network's value",
    )
    parser.add_argument("--metric", metavar="NAME", help="metric to judge by; default: the first accuracy")
    parser.add_argument("--mode", choices=("max", "min"), help="whether more or less of the metric is better")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("calibrated"),
        metavar="DIR",
        help="files go to compressed/ in it (default: %(default)s)",
    )


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Calibrate, export, judge, and print."""
    given = [*arguments.overrides, *rest]
    overrides = with_choices("calibrate", given, {"quantization": "w8a8", "export": "default"})
    with composed_aside(overrides, as_json=arguments.json) as (cfg, _):
        # Imported here, so that --help and a misspelt setting are answered without loading torch.
        from lightning_compress.apps.calibrate.calibrate import Request, calibrate_run
        from lightning_compress.apps.compare.limits import parse_drop

        request = Request(
            checkpoint=arguments.checkpoint,
            output=arguments.output,
            batches=arguments.batches,
            bias_correction=not arguments.no_bias_correction,
            batchnorm=arguments.batchnorm,
            equalize=arguments.equalize,
            max_drop=parse_drop(arguments.max_drop),
            metric=arguments.metric,
            mode=arguments.mode,
        )
        found = calibrate_run(cfg, overrides, request)
    train = _training(overrides, arguments.checkpoint) if found.verdict.needs_training else None
    if arguments.json:
        print(json.dumps({**found.as_dict(), "train": train}, indent=2))
    else:
        _show(found, train)
    return 1 if train is not None or found.failures else 0


def _training(overrides: Sequence[str], checkpoint: Path) -> str:
    """The command that trains from the checkpoint with the same quantization."""
    from lightning_compress.apps.configuration.overrides import quoted

    starts = (f"{name}_checkpoint={quoted(checkpoint)}" for name in ("init", "dense"))
    return shlex.join(["lightning-compress", "train", *overrides, *starts])


def _show(found: Calibrated, train: str | None) -> None:
    from rich.console import Console

    from lightning_compress.report import table

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)

    def say(line: str, **style: Any) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True, **style)

    console.print(table(found.report))
    say(f"Calibrated on {found.batches} training batches in {found.seconds:.1f} s, written to {found.folder}.")
    if found.left_out:
        say(f"Left out, since it needs training: {', '.join(found.left_out)}.")
    for failure in found.failures:
        say(f"Does not hold: {failure}", style="bold red")
    say(found.verdict.sentence, style="bold")
    if train is not None:
        say(f"Train from here with:\n  {train}")
