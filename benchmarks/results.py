"""One form for what the benchmarks measure: ``benchmarks/results/<name>.json``.

    import results
    results.write("quantization_step", rows, columns={"network": "network", "ratio": ("QAT step ÷ float", ".2f")})

The tables of the README and of the documentation are made from these files by ``tables.py``.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning_compress import report
from lightning_compress.foundation.atomic_write import replacing

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "results"
INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")
"""Those on which the speed of 8-bit inference depends."""

Row = Mapping[str, str | int | float | bool | None]
Columns = Mapping[str, str | tuple[str, str]]


def write(
    name: str,
    rows: Sequence[Row],
    *,
    columns: Columns | None = None,
    seeds: Sequence[int] | None = None,
    threads: int | None = None,
    versions: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    origins: Sequence[str] = (),
    runs: Sequence[Row] = (),
) -> Path:
    """Write what a benchmark found, with all that is needed to find it again.

    Args:
        name: Name of the result, and of the file.
        rows: Flat rows. A number ``accuracy`` with ``accuracy_std`` beside it is shown as mean ± deviation.
        columns: What a table shows of a row, in this order: key → heading, or key → (heading, format specification
            such as ``".2f"``). All keys by default.
        seeds: Those that were run.
        threads: CPU threads; PyTorch's at this moment by default.
        versions: Of more packages, such as the peers that were measured.
        notes: Sentences below the table.
        origins: Where rows come from that this process did not measure, a sentence each; pages fold them away.
        runs: What rows were made from, such as one seed of each; no table shows them.

    Returns:
        The file.

    Raises:
        ValueError: There is no row, or one is not flat.
    """
    for row in (*rows, *runs):
        if nested := [key for key, value in row.items() if not isinstance(value, str | int | float | None)]:
            raise ValueError(f"{name}: a row has to be flat, and {nested[0]} is {type(row[nested[0]]).__name__}.")
    if not rows:
        raise ValueError(f"{name}: there is no row to write.")
    shown = columns or {key: key for key in rows[0]}
    found = report.environment()
    content = {
        "benchmark": name,
        "command": command(),
        "date": today(),
        "machine": machine(),
        "versions": {
            **{key: found[key] for key in ("python", "torch", "lightning", "onnxruntime")},
            "lightning_compress": _version("lightning-compress"),
            **(versions or {}),
        },
        "threads": threads or found["threads"],
        "seeds": list(seeds) if seeds is not None else None,
        "columns": {key: [value, ""] if isinstance(value, str) else list(value) for key, value in shown.items()},
        "rows": [dict(row) for row in rows],
        "notes": list(notes),
        **({"origins": list(origins)} if origins else {}),
        **({"runs": [dict(run) for run in runs]} if runs else {}),
    }
    path = FOLDER / f"{name}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def averages(runs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, float]:
    """Means over runs that differ by their seed and, of several, standard deviations of accuracy and drop."""
    found = {}
    for key in keys:
        values = [run[key] for run in runs]
        found[key] = round(statistics.mean(values), 3)
        if len(values) > 1 and key in ("accuracy", "drop"):
            found[f"{key}_std"] = round(statistics.stdev(values), 3)
    return found


def today() -> str:
    """The date in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def command() -> str:
    """The command line of this process, without the paths of this machine."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    arguments = [re.sub(r"(^|=)(/|~/).*", r"\1DIRECTORY", argument) for argument in sys.argv[1:]]
    return shlex.join(["python", name, *arguments])


def machine() -> dict[str, Any]:
    """What the speed of a program depends on here."""
    import torch

    return {
        "processor": report.environment()["cpu"],
        "cores": os.cpu_count(),
        "instruction_sets": instruction_sets(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def instruction_sets() -> list[str]:
    """Instruction sets of the processor, of those that matter; empty where Linux does not tell."""
    information = Path("/proc/cpuinfo")
    found = re.search(r"flags\s*:\s*(.+)", information.read_text()) if information.is_file() else None
    flags = found[1].split() if found else []
    return [name for name in INSTRUCTIONS if name in flags]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
