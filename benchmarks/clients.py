"""Libraries that train with Lightning, each in its own environment, with our callbacks in its own trainer.

    python benchmarks/clients.py --write                      # all; or: make test-clients
    python benchmarks/clients.py --write --only chemprop darts
    python benchmarks/clients.py --page                       # the documentation's page from the result file

Each library trains as its documentation writes it (``benchmarks/libraries/``), on tiny data of its own making, five
times: alone, with pruning, with quantization-aware training, with both, and with both and an ONNX writer that fails on
purpose. Further short trainings, alone and with both by turns, time the step. An environment is made under the cache on
the first run: PyTorch for the CPU first, then the library, then this package. A row is merged into
``benchmarks/results/clients.json`` when its library is done.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
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
from client_job import MODES

from lightning_compress.foundation.atomic_write import replacing

SECONDS = 900
ROUNDS = 5
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


def measured(name: str, cache: Path, seconds: float, modes: Sequence[str], rounds: int) -> Row:
    """The row of one library."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.json"
        job = Path(__file__).with_name("client_job.py")
        try:
            command = [str(environment(name, cache)), str(job), name, str(target)]
            command += ["--modes", *modes, "--rounds", str(rounds)]
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
    """What the trainings showed, as a flat row; the run with everything decides, and names what others lack."""
    both, alone, failing = found["both"], found["alone"], found.get("failing")
    modes = {mode: found[mode] for mode in MODES if mode in found and mode != "failing"}
    errors = [f"{mode}: {run['error']}" for mode, run in {"alone": alone, **modes}.items() if "error" in run]
    whole = {mode: run for mode, run in modes.items() if "refused" not in run}
    failures = [f"{mode}: {failure}" for mode, run in whole.items() for failure in run.get("failures") or ()]
    return {
        "library": name,
        "version": found["version"],
        "runs": ", ".join(modes),
        "lines": found["lines"],
        "written": ", ".join(both.get("files") or ()) or "nothing",
        "written_in_all": all(
            len(run.get("files") or ()) == 2 if mode in whole else run.get("files") == ["model.packed"]
            for mode, run in modes.items()
        ),
        "predicts": all(run.get("predicts") for run in modes.values()),
        "same_keys": all(run["same_keys"] for run in modes.values()),
        "checkpoint": all(run.get("checkpoint") for run in modes.values()),
        "refused": next((run["refused"] for run in modes.values() if "refused" in run), None),
        "survives": None if failing is None or "refused" in failing else survives(failing),
        "agreement": both.get("agreement"),
        "max_abs_difference": both.get("max_abs_difference"),
        "sparsity": both.get("sparsity"),
        "stays_float": len(both.get("stays_float") or ()),
        "floats": "; ".join(both.get("stays_float") or ()),
        **_ratio(found.get("step_seconds") or {"alone": [], "both": []}),
        "error": " / ".join([*errors, *failures]) or None,
        "date": results.today(),
    }


def survives(failing: Mapping[str, Any]) -> bool:
    """Whether a training whose ONNX writer fails at its end is there all the same.

    The fit returned, the library predicts, the checkpoint has its keys, the packed file is written, and the report
    says what is missing.
    """
    told = any(failure.startswith("onnx was not written") for failure in failing.get("failures") or ())
    whole = all(failing.get(key) for key in ("predicts", "same_keys", "checkpoint"))
    return whole and told and failing["files"] == ["model.packed"]


def _ratio(seconds: Mapping[str, Sequence[float]]) -> Row:
    """Step with our callbacks ÷ without: the median over rounds of both, and the extremes."""
    ratios = [both / alone for alone, both in zip(seconds["alone"], seconds["both"], strict=True)]
    if not ratios:
        return {"ratio": None, "ratio_low": None, "ratio_high": None, "step_ms": None}
    return {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_low": round(min(ratios), 2),
        "ratio_high": round(max(ratios), 2),
        "step_ms": round(1000 * statistics.median(seconds["alone"]), 2),
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
    """Both files from every run, its own prediction afterwards, its keys, and a checkpoint that opens without us.

    Of a run that was refused before its first step, the one with the remedy that the refusal names counts.
    """
    return all(row.get(key) for key in ("written_in_all", "predicts", "same_keys", "checkpoint")) and not row["error"]


def page(found: Sequence[Mapping[str, Any]]) -> str:
    """The documentation's page."""
    content = json.loads(RESULT.read_text(encoding="utf-8"))
    table = [
        "| library | lines to add | written | predicts, keys, checkpoint | zeros | largest difference | agreement "
        "| stays float | a format fails |",
        "|---|---|---|---|---:|---:|---:|---:|---|",
        *(f"| {' | '.join(_cells(row))} |" for row in found),
    ]
    tried = [row for row in found if row.get("survives") is not None]
    refused = [f"- **{row['library']}**: {_escaped(row['refused'])}" for row in found if row.get("refused")]
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
            f"{sum(works(row) and not row['refused'] for row in found)} of {len(found)} libraries end with both files "
            "from every run (pruning, quantization-aware training, both), predict by their own means afterwards, and "
            "keep their keys and checkpoints that open without this package. "
            f"{sum(works(row) and bool(row['refused']) for row in found)} are refused before the first step, and end "
            "the same way with the packed file alone, by the setting that the refusal names. Where the ONNX writer was "
            f"made to fail once the training is over, {sum(bool(row['survives']) for row in tried)} of {len(tried)} "
            "kept the fit: it returned, the library predicted, the packed file was there, and the report said what "
            "was missing.",
            "",
            *table,
            "",
            "Zeros are the share of all parameters of two dimensions or more. The largest difference is that of the "
            "written file's outputs from the trained model's. Agreement is the share of predictions with the same top "
            "class, where the outputs are classes.",
            "",
            *_steps(found),
            *(["## What is refused before the first step", "", *refused, ""] if refused else []),
            *(["## What fails", "", *lacking, ""] if lacking else []),
            *(["## What stays float", "", *named, ""] if named else []),
            f"{content['machine']['processor']}, PyTorch {content['versions']['torch']}, Lightning "
            f"{content['versions']['lightning']}; `make test-clients` measures it anew.",
            "",
        ]
    )


def _steps(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a step costs, of the libraries where it was timed."""
    timed = [row for row in found if row.get("ratio") is not None]
    if not timed:
        return []
    return [
        "## What a step costs",
        "",
        "The time of a training step with pruning and quantization-aware training ÷ that of the library alone, by "
        "turns in one process, after both are complete: the median of the rounds and their extremes. The networks are "
        "tiny and most of such a step is Python; the [measurements](measurements.md) have larger ones. The processor "
        "was shared with other work, which the extremes show. `python benchmarks/clients.py --rounds 5 --only chemprop "
        "darts` repeats it.",
        "",
        "| library | step alone, ms | with ÷ without | lowest to highest round |",
        "|---|---:|---:|---:|",
        *(
            f"| {row['version']} | {row['step_ms']:.1f} | {row['ratio']:.2f} "
            f"| {row['ratio_low']:.2f} to {row['ratio_high']:.2f} |"
            for row in timed
        ),
        "",
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    def number(key: str, form: str) -> str:
        return "–" if row.get(key) is None else format(row[key], form)

    marks = ", ".join("yes" if row.get(key) else "no" for key in ("predicts", "same_keys", "checkpoint"))
    lines = f"`{row['lines']}`" if row.get("lines") else "–"
    return [
        row.get("version") or row["library"], lines, row.get("written", "nothing"), marks, number("sparsity", ".0%"),
        number("max_abs_difference", ".1g"), number("agreement", ".3f"),
        number("stays_float", "d"), {None: "–", True: "fit kept", False: "fit lost"}[row.get("survives")],
    ]  # fmt: skip


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=libraries.NAMES, default=libraries.NAMES)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="beside the training alone")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of timing the step, alone and with both")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "lightning_compress" / "clients")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit of one library")
    parser.add_argument("--write", action="store_true", help="merge each row into benchmarks/results/clients.json")
    parser.add_argument("--page", action="store_true", help="write docs/works_with.md from the result file")
    options = parser.parse_args()
    for name in [] if options.page and not options.write else options.only:
        found = measured(name, options.cache.expanduser().resolve(), options.seconds, options.modes, options.rounds)
        print(f"{'works' if works(found) else 'FAILS'}  {name}: {found['error'] or found['written']}", flush=True)
        if options.write:
            merge(found)
    if options.page:
        with replacing(PAGE) as temporary:
            temporary.write_text(page(list(rows().values())), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
