"""Libraries that train with Lightning, each in its own environment, with our callbacks in its own trainer.

    python benchmarks/clients.py --write                      # all; or: make test-clients
    python benchmarks/clients.py --write --only chemprop darts
    python benchmarks/clients.py --page                       # the documentation's page from the result file

Each library trains as its documentation writes it (``benchmarks/libraries/``), on tiny data of its own making, four
times: alone, with pruning, with quantization-aware training, and with both. An environment is made under the cache on
the first run: PyTorch for the CPU first, then the library, then this package. A row is merged into
``benchmarks/results/clients.json`` when its library is done.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import architectures  # noqa: F401 - declares what a torchvision for CUDA lacks beside a torch for the CPU
import libraries
import results

from lightning_compress.foundation.atomic_write import replacing

SECONDS = 900
MODES = ("prune", "qat", "both")
RESULT = results.FOLDER / "clients.json"
PAGE = results.ROOT / "docs" / "works_with.md"
COLUMNS = {
    "library": "library",
    "version": "version",
    "written": "written",
    "agreement": ("agreement", ".3f"),
    "stays_float": "stays float",
    "ratio": ("step with ÷ without", ".2f"),
}
Row = dict[str, Any]


def environment(name: str, cache: Path) -> Path:
    """The Python of a library's environment, made if it is not there."""
    home = cache / name
    python = home / "bin" / "python"
    if not (home / ".installed").is_file():
        venv.create(home, with_pip=True)
        torch, lightning = (version(package).partition("+")[0] for package in ("torch", "lightning"))
        pins = home / "constraints.txt"
        pins.write_text(f"torch=={torch}\nlightning=={lightning}\npytorch-lightning=={lightning}\n", encoding="utf-8")
        install = [python, "-m", "pip", "install", "-q"]
        subprocess.run([*install, f"torch=={torch}"], check=True)
        subprocess.run([*install, "-c", pins, *libraries.load(name).REQUIREMENTS, "-e", results.ROOT], check=True)
        (home / ".installed").touch()
    return python


def measured(name: str, cache: Path, seconds: float, modes: Sequence[str]) -> Row:
    """The row of one library."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.json"
        job = Path(__file__).with_name("client_job.py")
        try:
            command = [str(environment(name, cache)), str(job), name, str(target), *modes]
            done = subprocess.run(
                command, timeout=seconds, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
            )
            reason = f"the process ended with {done.returncode}: {' '.join(done.stderr.split())[-300:]}"
        except subprocess.TimeoutExpired:
            reason = f"not done after {seconds:.0f} s"
        except subprocess.CalledProcessError as error:
            reason = f"its environment cannot be made: {error}"
        found = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
    return row(name, found) if found else {"library": name, "error": reason, "date": results.today()}


def _environment() -> dict[str, str]:
    return {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def row(name: str, found: Mapping[str, Any]) -> Row:
    """What four trainings showed, as a flat row; the run with everything decides, and names what others lack."""
    both, alone = found["both"], found["alone"]
    modes = {mode: found[mode] for mode in MODES if mode in found}
    errors = [f"{mode}: {run['error']}" for mode, run in {"alone": alone, **modes}.items() if "error" in run]
    failures = [f"{mode}: {failure}" for mode, run in modes.items() for failure in run.get("failures") or ()]
    times = (both.get("step_seconds"), alone.get("step_seconds"))
    return {
        "library": name,
        "version": found["version"],
        "runs": ", ".join(modes),
        "lines": found["lines"],
        "written": ", ".join(both.get("files") or ()) or "nothing",
        "written_in_all": all(len(run.get("files") or ()) == 2 for run in modes.values()),
        "predicts": all(run.get("predicts") for run in modes.values()),
        "same_keys": all(run["same_keys"] for run in modes.values()),
        "checkpoint": all(run.get("checkpoint") for run in modes.values()),
        "refused_before_training": any(run.get("refused_before_training", False) for run in modes.values()),
        "agreement": both.get("agreement"),
        "max_abs_difference": both.get("max_abs_difference"),
        "sparsity": both.get("sparsity"),
        "stays_float": len(both.get("stays_float") or ()),
        "floats": "; ".join(both.get("stays_float") or ()),
        "ratio": round(times[0] / times[1], 2) if all(times) else None,
        "error": " / ".join([*errors, *failures]) or None,
        "date": results.today(),
    }


def rows() -> dict[str, Row]:
    """What the result file holds."""
    if not RESULT.is_file():
        return {}
    return {row["library"]: row for row in json.loads(RESULT.read_text(encoding="utf-8"))["rows"]}


def merge(new: Row) -> None:
    """Put a row into the result file."""
    found = {**rows(), new["library"]: new}
    results.write("clients", [found[name] for name in libraries.NAMES if name in found], columns=COLUMNS, threads=1)


def works(row: Mapping[str, Any]) -> bool:
    """Both files from every run, its own prediction afterwards, its keys, and a checkpoint that opens without us."""
    return all(row.get(key) for key in ("written_in_all", "predicts", "same_keys", "checkpoint")) and not row["error"]


def page(found: Sequence[Mapping[str, Any]]) -> str:
    """The documentation's page."""
    content = json.loads(RESULT.read_text(encoding="utf-8"))
    table = [
        "| library | lines to add | written | predicts, keys, checkpoint | zeros | largest difference | agreement "
        "| stays float | step with ÷ without |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
        *(f"| {' | '.join(_cells(row))} |" for row in found),
    ]
    lacking = [f"- **{row['library']}**: {_escaped(row['error'])}" for row in found if row.get("error")]
    named = [f"- **{row['library']}**: {_escaped(row['floats'])}" for row in found if row.get("floats")]
    return "\n".join(
        [
            "# Works with",
            "",
            "The trainers of other libraries, each used as its documentation writes it, with",
            "",
            "```python",
            "callbacks = [",
            "    GradualMagnitudePruning(final_sparsity=0.5, start=1, end=6),",
            "    QuantizationAwareTraining(start=2),",
            '    CompressedExport("compressed"),',
            "]",
            "```",
            "",
            f"{sum(works(row) for row in found)} of {len(found)} libraries end with both files from every run "
            "(pruning, quantization-aware training, both), predict by their own means afterwards, and keep their keys "
            "and checkpoints that open without this package.",
            "",
            *table,
            "",
            "Zeros are the share of all parameters of two dimensions or more. The largest difference is that of the "
            "written file's outputs from the trained model's. Agreement is the share of predictions with the same top "
            "class, where the outputs are classes. The ratio of steps is that of tiny networks, whose steps take "
            "milliseconds: larger ones pay less.",
            "",
            *(["## What fails", "", *lacking, ""] if lacking else []),
            *(["## What stays float", "", *named, ""] if named else []),
            f"{content['machine']['processor']}, PyTorch {content['versions']['torch']}, Lightning "
            f"{content['versions']['lightning']}; `make test-clients` measures it anew.",
            "",
        ]
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    def number(key: str, form: str) -> str:
        return "–" if row.get(key) is None else format(row[key], form)

    marks = ", ".join("yes" if row.get(key) else "no" for key in ("predicts", "same_keys", "checkpoint"))
    lines = f"`{row['lines']}`" if row.get("lines") else "–"
    return [
        row.get("version") or row["library"], lines, row.get("written", "nothing"), marks, number("sparsity", ".0%"),
        number("max_abs_difference", ".1g"), number("agreement", ".3f"),
        number("stays_float", "d"), number("ratio", ".2f"),
    ]  # fmt: skip


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=libraries.NAMES, default=libraries.NAMES)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="beside the training alone")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "lightning_compress" / "clients")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit of one library")
    parser.add_argument("--write", action="store_true", help="merge each row into benchmarks/results/clients.json")
    parser.add_argument("--page", action="store_true", help="write docs/works_with.md from the result file")
    options = parser.parse_args()
    for name in [] if options.page and not options.write else options.only:
        found = measured(name, options.cache.expanduser().resolve(), options.seconds, options.modes)
        print(f"{'works' if works(found) else 'FAILS'}  {name}: {found['error'] or found['written']}", flush=True)
        if options.write:
            merge(found)
    if options.page:
        with replacing(PAGE) as temporary:
            temporary.write_text(page(list(rows().values())), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
