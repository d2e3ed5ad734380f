"""``lightning-compress compare``: the jobs of a sweep, their Pareto front, and a choice."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_compress.apps.compare.choose import Choice
    from lightning_compress.apps.compare.limits import Limits
    from lightning_compress.apps.compare.sweep import Job, Sweep
    from lightning_compress.apps.configuration.device import Device


def add_compare(commands: Any) -> None:
    """``compare``: a table of all jobs, the Pareto front, and a choice under limits."""
    from lightning_compress.cli.parser import add_parser

    parser = add_parser(
        commands,
        "compare",
        "Compare the jobs of a sweep and choose one under limits.",
        run,
        epilog="Exit codes: 0 a job was chosen; 1 none keeps the limits; 2 wrong use.",
    )
    parser.add_argument("sweep_dir", type=Path, metavar="SWEEP_DIR", help="directory with the sweep's jobs")
    parser.add_argument(
        "--max-drop",
        metavar="LOSS",
        help="largest loss against the job's own dense control: 1%% or 0.01 is one percentage point of a share such as "
        "accuracy; for other metrics 1%% is a share of the dense value. Default, if there is no other limit: 1%%",
    )
    parser.add_argument("--max-size", metavar="SIZE", help="largest file: 100KB (1000 bytes each), 96KiB, 1.5MB")
    parser.add_argument("--max-latency", metavar="TIME", help="largest median latency: 2ms, 150us")
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="a device: cortex_m4, pixel, browser, … in conf/device; its format and the limits that are not given are "
        "taken from there",
    )
    parser.add_argument("--max-flash", metavar="SIZE", help="largest file of a job for microcontrollers: 64KB")
    parser.add_argument("--max-ram", metavar="SIZE", help="most RAM that it needs there, the interpreter's arena: 32KB")
    parser.add_argument("--metric", metavar="NAME", help="metric of the reports; default: the first accuracy")
    parser.add_argument("--mode", choices=("max", "min"), help="whether more or less of the metric is better")
    parser.add_argument(
        "--objective",
        choices=("bytes", "metric", "latency"),
        help="what to optimize; default: bytes, or the metric where only size or latency is limited",
    )
    parser.add_argument("--format", help="whose bytes count: deployed (default), onnx, packed, as the reports have")
    parser.add_argument("--html", type=Path, metavar="PATH", help="write an interactive page")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="write the table as Markdown")
    parser.add_argument(
        "--wandb",
        metavar="PROJECT",
        help="log the table, the front as a picture and the chosen files, under the alias 'chosen', as a W&B run; "
        "offline unless WANDB_MODE=online",
    )


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Choose, print, and write what is asked for."""
    from lightning_compress.apps.compare.choose import choose
    from lightning_compress.apps.compare.html_page import html
    from lightning_compress.apps.compare.limits import Limits, parse_drop, parse_latency, parse_size
    from lightning_compress.apps.compare.sweep import DEPLOYED, read_sweep
    from lightning_compress.apps.compare.table import as_dict, markdown
    from lightning_compress.apps.configuration.device import read_device
    from lightning_compress.foundation.atomic_write import replacing

    if arguments.device is not None:
        _take(read_device(arguments.device), arguments)
    drop = None if arguments.max_drop is None else parse_drop(arguments.max_drop)
    size = None if arguments.max_size is None else parse_size(arguments.max_size)
    latency = None if arguments.max_latency is None else parse_latency(arguments.max_latency)
    flash = None if arguments.max_flash is None else parse_size(arguments.max_flash, "--max-flash")
    ram = None if arguments.max_ram is None else parse_size(arguments.max_ram, "--max-ram")
    sweep = read_sweep(arguments.sweep_dir, arguments.format or DEPLOYED)
    metric = sweep.metric(arguments.metric) if sweep.finished else arguments.metric or "test/acc"
    limits = Limits.of(
        metric,
        mode=arguments.mode,
        max_drop=drop,
        max_size=size,
        max_latency=latency,
        max_flash=flash,
        max_ram=ram,
        objective=arguments.objective,
    )
    choice = choose(sweep, limits)
    for path, content in (
        (arguments.html, lambda: html(sweep, limits, choice, beside=arguments.html.parent)),
        (arguments.markdown, lambda: markdown(sweep, limits, choice)),
    ):
        if path is not None:
            with replacing(path) as temporary:
                temporary.write_text(content(), encoding="utf-8", newline="\n")
    found = as_dict(sweep, limits, choice)
    if arguments.wandb is not None and sweep.finished:
        _log(arguments.wandb, found, choice.job, sweep.path)
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(sweep, limits, choice)
    return 0 if choice.job is not None else 1


def _take(device: Device, arguments: argparse.Namespace) -> None:
    """Take what is not given from a device's profile."""
    if arguments.format is None:
        arguments.format = device.format
    for name in ("max_size", "max_latency", "max_flash", "max_ram"):
        if getattr(arguments, name) is None:
            setattr(arguments, name, getattr(device, name))


def _log(project: str, found: Mapping[str, Any], chosen: Job | None, folder: Path) -> None:
    """Log a comparison to W&B."""
    from lightning_compress.loggers import log_comparison
    from lightning_compress.report import images

    jobs = [job for job in found["jobs"] if job["value"] is not None and job["bytes"]]
    more = found["mode"] == "max"
    png = images.pareto(jobs, metric=found["metric"], choice=found["choice"], front=found["front"], more=more)
    log_comparison(project, found, png, [] if chosen is None else _files(chosen), folder)


def _files(job: Job) -> list[Path]:
    """What a job exported, and its report."""
    if job.report is None:
        return []
    report = job.report.with_suffix(".json")
    names = [artifact["file"] for artifact in json.loads(report.read_text(encoding="utf-8"))["artifacts"]]
    files = [report.parent / name for name in [*names, report.name, job.report.name]]
    return [file for file in files if file.is_file()]


def _show(sweep: Sweep, limits: Limits, choice: Choice) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lightning_compress.apps.compare.table import count, heads_for, rows
    from lightning_compress.errors import printable

    console = Console()
    best, kept = {job.name for job in choice.front}, {job.name for job in choice.kept}
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold", border_style="dim")
    table.add_column("", min_width=1)
    heads = heads_for(sweep, limits)
    # A narrow terminal has no room for how long the training took.
    shown = [index for index, head in enumerate(heads) if head != "Training" or console.width >= 100]
    for index in shown:
        table.add_column(escape(printable(heads[index])), justify="left" if index < 2 else "right", no_wrap=True)
    for job, cells in rows(sweep, limits, choice):
        chosen = choice.job is not None and job.name == choice.job.name
        mark = "→" if chosen else "◆" if job.name in best else ""
        found = (escape(printable(cells[index])) for index in shown)
        table.add_row(mark, *found, style="bold" if chosen else None if job.name in kept else "dim")
    console.print(f"{sweep.path}: {count(sweep)}", markup=False, highlight=False, soft_wrap=True)
    console.print()
    console.print(table)
    console.print("\n→ chosen, ◆ on the Pareto front, dim: beyond a limit", style="dim")
    for job in sweep.jobs:
        if job.status != "finished":
            line = f"{job.status.capitalize()}: {job.name}: {job.error}"
            console.print(printable(line), markup=False, highlight=False, soft_wrap=True, style="red")
    limited = ", ".join(limits.described()) or "none"
    console.print(f"\nLimits: {limited}.", markup=False, highlight=False, soft_wrap=True)
    console.print(printable(choice.verdict), style="bold", markup=False, highlight=False, soft_wrap=True)
    for reason in choice.reasons:
        console.print(printable(f"  {reason}"), markup=False, highlight=False, soft_wrap=True)
    if choice.next:
        console.print("What to try next:", style="bold")
    for sentence, command in choice.next:
        console.print(printable(f"  {sentence}"), markup=False, highlight=False, soft_wrap=True)
        if command is not None:
            console.print(printable(f"    {command}"), markup=False, highlight=False, soft_wrap=True, style="dim")
