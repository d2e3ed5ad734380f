"""``lightning-compress bench``: latency, side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lightning_compress.errors import CompressionError


def add_bench(commands: Any) -> None:
    """``bench``: latency of ONNX files by batch size and threads."""
    from lightning_compress.cli import add_parser

    parser = add_parser(
        commands, "bench", "Latency of an ONNX file by batch size and threads, beside another one.", run
    )
    parser.add_argument("path", type=Path, help="an .onnx file, or the directory of an export")
    parser.add_argument("--against", type=Path, help="another one; from an export's directory its dense model is taken")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], metavar="N", help="samples in a call")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], metavar="N", help="threads of the runtime")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to time a file at each setting")
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=N", help="size of a free dimension")


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Time the files and print a table, or JSON."""
    from lightning_compress.export.bench import bench
    from lightning_compress.export.runtime import has_vnni, runtime_name

    path = _file(arguments.path, "model.onnx")
    against = None if arguments.against is None else _file(arguments.against, "dense.onnx")
    rows = bench(
        path,
        against,
        batch_sizes=arguments.batch_size,
        threads=arguments.threads,
        seconds=arguments.seconds,
        dims=dict(_dim(text) for text in arguments.dim),
    )
    if arguments.json:
        found = {
            "path": str(path),
            "against": None if against is None else str(against),
            "runtime": runtime_name(arguments.threads[0]),
            "vnni": has_vnni(),
            "rows": [row.as_dict() for row in rows],
        }
        print(json.dumps(found, indent=2))
        return 0
    _show(path, against, rows)
    return 0


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

    table = Table(title=f"{path}" if against is None else f"{path} against {against}")
    heads = ["batch", "threads", "median ms", "p90", "p99", "per s"]
    if against is not None:
        heads += ["other ms", "ratio", "quartiles"]
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        timing = row.timing
        cells = [str(row.batch_size), str(row.threads)]
        cells += [f"{value:.3f}" for value in (timing.median_ms, timing.p90_ms, timing.p99_ms)]
        cells.append(f"{row.samples_per_second:,.0f}")
        if row.against is not None:
            ratio = row.ratio
            cells += [f"{row.against.median_ms:.3f}", f"{ratio.median:.2f}", f"{ratio.low:.2f}–{ratio.high:.2f}"]
        table.add_row(*cells)
    Console().print(table)
