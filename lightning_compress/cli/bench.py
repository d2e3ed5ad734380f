"""``lightning-compress bench``: latency, side by side."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_compress.errors import CompressionError

_WEIGHTS_ALONE = (".packed", ".safetensors")
_PLOTS = (".svg", ".png", ".pdf")


def add_bench(commands: Any) -> None:
    """``bench``: latency, throughput and memory of files by batch size and threads."""
    from lightning_compress.cli.parser import add_parser
    from lightning_compress.cli.verify import TRUST

    parser = add_parser(
        commands,
        "bench",
        "Latency, throughput and memory of a file by batch size and threads, compared with another one.",
        run,
        epilog="The two files run in turn, block by block; the ratio is the median over blocks, with its quartiles.",
    )
    parser.set_defaults(runs_file=True)
    parser.add_argument(
        "path",
        type=Path,
        help="an .onnx or .tflite file, or the directory of an export; or another file in the directory of its run",
    )
    parser.add_argument("--against", type=Path, help="another one; from an export's directory its dense model is taken")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], metavar="N", help="samples in a call")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], metavar="N", help="threads of the runtime")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to time a file at each setting")
    parser.add_argument("--memory", action="store_true", help="peak memory as well, in a process of its own")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw latency and throughput: .svg, .png or .pdf")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=N", help="size of a free dimension")


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Time the files and print a table, or JSON."""
    from lightning_compress.apps.bench.bench import bench
    from lightning_compress.export.onnx.session import runtime_name
    from lightning_compress.foundation.processor import has_vnni

    if arguments.plot is not None and arguments.plot.suffix not in _PLOTS:
        raise CompressionError.field("bench --plot", expected=f"a name that ends in {_PLOTS}", got=str(arguments.plot))
    path = _file(arguments.path, "model.onnx")
    against = None if arguments.against is None else _file(arguments.against, "dense.onnx")
    rows = bench(
        path,
        against,
        batch_sizes=arguments.batch_size,
        threads=arguments.threads,
        seconds=arguments.seconds,
        dims=dict(_dim(text) for text in arguments.dim),
        memory=arguments.memory,
        trust=arguments.trust,
    )
    if arguments.plot is not None:
        plot(path, against, rows, arguments.plot)
    memory = _on_microcontroller(path)
    if arguments.json:
        found = {
            "path": str(path),
            "against": None if against is None else str(against),
            "runtime": runtime_name(arguments.threads[0]) if path.suffix == ".onnx" else path.suffix,
            "vnni": has_vnni(),
            "rows": [row.as_dict() for row in rows],
            "microcontroller": memory,
        }
        print(json.dumps(found, indent=2))
        return 0
    _show(path, against, rows)
    if memory is not None:
        from lightning_compress.report.number_text import size

        ram = "does not run it" if memory["arena"] is None else f"needs {size(memory['arena'])} of RAM (arena)"
        print(f"On a microcontroller: {size(memory['flash'])} of flash for the file; the interpreter {ram}.")
    return 0


def _on_microcontroller(path: Path) -> dict[str, Any] | None:
    """Memory that a LiteRT file needs there, where that interpreter is installed."""
    from lightning_compress.export.litert.micro import has_micro, micro_memory

    return asdict(micro_memory(path)) if path.suffix == ".tflite" and has_micro() else None


def _file(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


def _dim(text: str) -> tuple[str, int]:
    name, _, size = text.partition("=")
    if not name or not size.isdigit():
        raise CompressionError.field("bench --dim", expected="NAME=<size>", got=text)
    return name, int(size)


def _show(path: Path, against: Path | None, rows: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lightning_compress.report.number_text import size

    table = Table(title=f"{path}" if against is None else f"{path} against {against}")
    heads = ["batch", "threads", "median ms", "p90", "p99", "per s"]
    if rows[0].memory is not None:
        heads.append("peak memory")
    if against is not None:
        heads += ["other ms", "ratio", "quartiles"]
    if rows[0].against_memory is not None:
        heads.append("other memory")
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        timing = row.timing
        cells = [str(row.batch_size), str(row.threads)]
        cells += [f"{value:.3f}" for value in (timing.median_ms, timing.p90_ms, timing.p99_ms)]
        cells.append(f"{row.samples_per_second:,.0f}")
        if row.memory is not None:
            cells.append(size(row.memory))
        if row.against is not None:
            ratio = row.ratio
            cells += [f"{row.against.median_ms:.3f}", f"{ratio.median:.2f}", f"{ratio.low:.2f}–{ratio.high:.2f}"]
        if row.against_memory is not None:
            cells.append(size(row.against_memory))
        table.add_row(*cells)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)
    for file in (path, against):
        if file is not None and file.suffix in _WEIGHTS_ALONE:
            note = f"{file.name} holds weights alone: what is timed is the module with them, in eager PyTorch."
            console.print(note, markup=False)


def plot(path: Path, against: Path | None, rows: list[Any], target: Path) -> None:
    """Draw latency (median and 90th percentile) and throughput over the batch size, for each number of threads."""
    from matplotlib.figure import Figure

    from lightning_compress.foundation.atomic_write import replacing

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    latency, throughput = figure.subplots(1, 2)
    for count in dict.fromkeys(row.threads for row in rows):
        own = [row for row in rows if row.threads == count]
        threads = f"{count} thread{'s' if count > 1 else ''}"
        lines = [(path.name, "-", [row.timing for row in own])]
        if against is not None:
            lines.append((f"against: {against.name}", "--", [row.against for row in own]))
        sizes = [row.batch_size for row in own]
        for name, style, timings in lines:
            medians = [timing.median_ms for timing in timings]
            above = [timing.p90_ms - timing.median_ms for timing in timings]
            label = f"{name}, {threads}".replace("$", r"\$")
            latency.errorbar(sizes, medians, [[0.0] * len(above), above], fmt=f"o{style}", capsize=3, label=label)
            rates = [1e3 * n / median for n, median in zip(sizes, medians, strict=True)]
            throughput.plot(sizes, rates, f"o{style}", label=label)
    for axes, title in ((latency, "Latency in ms: median, up to p90"), (throughput, "Samples per second")):
        axes.set_title(title, loc="left")
        axes.set_xlabel("batch size")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({row.batch_size for row in rows}))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.grid(alpha=0.3)
    # One slow call does not flatten what was typical.
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter("{x:g}")
    throughput.set_ylim(bottom=0)
    figure.legend(*latency.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize="small")
    with replacing(target) as temporary:
        figure.savefig(temporary, format=target.suffix[1:])
