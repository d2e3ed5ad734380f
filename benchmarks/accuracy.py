"""Accuracy and size of one network under many compressions, beside a dense control of the same seed and epochs.

Every row of a task (``tasks.py``) is the product's own command, ``lightning-compress train``, with other settings; the
dense control of a seed is trained once and shared, and so is the network that a task starts from, where it starts from
a trained one. Accuracy is that of the last epoch on the published test set, of the written ONNX file run in ONNX
Runtime. A run that is finished is not run again, one that was stopped goes on from its newest epoch, and ``--write``
keeps every finished run at once in ``benchmarks/results``, beside what was kept before.

    python benchmarks/accuracy.py fashion_mnist_mlp --root ~/data --seeds 3 --jobs 2 --write
    python benchmarks/accuracy.py cifar10_jpeg_resnet20 --root ~/data --minutes 50 --write    # again, until it is done
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import results
import torch
from parts import LEFT
from tasks import TASKS, TAUGHT

Row = dict[str, Any]
Run = dict[str, Any]
"""One row of one seed."""

CONTROL = "control"
"""Row of the network that a task starts from, and the folder of its training."""


class OutOfTime(Exception):
    """The minutes that were given are over; what is finished is kept."""


@dataclass(frozen=True)
class Runner:
    """Runs a task's trainings, each once.

    Attributes:
        task: Name of the task.
        root: Where the data is.
        work: Where runs are kept, a folder for each task.
        until: When to stop, on the clock of ``time.monotonic``.
    """

    task: str
    root: str
    work: Path
    until: float = float("inf")

    def folder(self, row: str, seed: int) -> Path:
        """Directory of one run, named after its row."""
        return self.work / self.task / re.sub(r"\W+", "_", row).strip("_") / f"seed{seed}"

    def train(self, folder: Path, overrides: list[str]) -> dict[str, Any]:
        """Run the product's command, unless its result is there; a run that was stopped goes on.

        Raises:
            OutOfTime: It was stopped, and loses the epoch that it was in.
        """
        result, newest = folder / "result.json", folder / "checkpoints" / "last.ckpt"
        if not result.exists():
            command = [sys.executable, "-m", "lightning_compress.cli.main", "train", *overrides]
            command += [f"hydra.run.dir={folder}", *([f"ckpt_path={newest}"] if newest.exists() else [])]
            left = self.until - time.monotonic()
            if left <= 0:
                raise OutOfTime
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=None if left == float("inf") else left
                )
            except subprocess.TimeoutExpired:
                raise OutOfTime from None
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
        content: dict[str, Any] = json.loads(result.read_text())
        return content

    def controls(self, seed: int) -> tuple[list[str], list[Run], dict[str, Any]]:
        """The settings of all rows of a seed, its control and dense control as rows, and the latter's result."""
        plan = TASKS[self.task]
        common = [
            *plan.settings,
            f"data.root={self.root}",
            f"seed={seed}",
            "threads=1",
            "logger=none",
            "trainer.accelerator=cpu",
            "trainer.enable_progress_bar=false",
        ]
        rows = []
        if plan.pretraining:
            trained = self.train(self.folder(CONTROL, seed), [*common, f"trainer.max_epochs={plan.pretraining}"])
            rows.append(as_run(CONTROL, seed, 100 * trained["values"]["test/acc"]))
            rows[-1]["sha256"] = digest(Path(trained["checkpoint"]))
            common += [*plan.fine_tuning, f"init_checkpoint={trained['checkpoint']}"]
        common.append(f"trainer.max_epochs={plan.epochs}")
        dense = self.train(self.folder("dense", seed), common)
        return common, [*rows, as_run("dense", seed, 100 * dense["values"]["test/acc"])], dense

    def compress(self, row: str, seed: int) -> Run:
        """One row of one seed: accuracy in percent, drop in points, times smaller as a packed file."""
        common, _, control = self.controls(seed)
        own = TASKS[self.task].rows[row]
        if row in TAUGHT:
            _, _, teacher = Runner("fashion_mnist_lenet5", self.root, self.work, self.until).controls(seed)
            own = [override.replace("CHECKPOINT", teacher["checkpoint"]) for override in own]
        folder = self.folder(row, seed)
        given = [f"dense_checkpoint={control['checkpoint']}", "export=default", "export.latency=false"]
        values = self.train(folder, [*common, *own, *given, "export.overwrite=true"])["values"]
        report = json.loads((folder / "compressed" / "report.json").read_text())
        packed = next(artifact["bytes"] for artifact in report["artifacts"] if artifact["format"] == "packed")
        accuracy, dense = 100 * values["deployed/test/acc"], 100 * control["values"]["test/acc"]
        return as_run(row, seed, accuracy, dense - accuracy, values["dense/bytes"] / packed)


def as_run(row: str, seed: int, accuracy: float, drop: float = 0.0, times_smaller: float = 1.0) -> Run:
    """What is kept of a run."""
    numbers = {"accuracy": accuracy, "drop": drop, "times_smaller": times_smaller}
    return {"compression": row, "seed": seed, **{key: round(value, 3) for key, value in numbers.items()}}


def digest(checkpoint: Path) -> str:
    """SHA-256 over names, shapes and bytes of a checkpoint's weights."""
    found = hashlib.sha256()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def run(runner: Runner, seeds: Sequence[int], wanted: str, jobs: int) -> Iterator[Run]:
    """The controls, then the wanted rows, of every seed, as they come; so many runs at a time.

    Raises:
        OutOfTime: The time is over, and there are runs left.
    """
    rows = [row for row in TASKS[runner.task].rows if re.search(wanted, row)]
    with ThreadPoolExecutor(jobs) as pool:
        for _, controls, _ in pool.map(runner.controls, seeds):
            yield from controls
        pairs = [(row, seed) for row in rows for seed in seeds]
        yield from pool.map(lambda pair: runner.compress(*pair), pairs)


def summary(runs: Sequence[Run]) -> list[Row]:
    """Mean and, of several seeds, standard deviation, a row for each compression."""
    rows = []
    for name in dict.fromkeys(run["compression"] for run in runs):
        of_row = [run for run in runs if run["compression"] == name]
        row: Row = {"compression": name, "seeds": len(of_row)}
        row["dense"] = round(statistics.mean(run["accuracy"] + run["drop"] for run in of_row), 3)
        rows.append(row | results.averages(of_row, ("accuracy", "drop", "times_smaller")))
    return rows


def with_earlier(task: str, runs: Sequence[Run]) -> tuple[list[Row], list[Run], list[str]]:
    """These runs together with other rows and seeds that were kept before.

    Returns:
        The rows in the order of the task, all runs, and where the earlier ones come from.

    Raises:
        SystemExit: Runs of a seed were measured beside different dense controls.
    """
    path = results.FOLDER / f"accuracy_{task}.json"
    earlier = json.loads(path.read_text()) if path.exists() else {"rows": [], "runs": []}
    now = {"date": results.today(), "command": results.command()}
    found = {(run["compression"], run["seed"]): {**run, **now} for run in runs}
    everything = list(({(run["compression"], run["seed"]): run for run in earlier["runs"]} | found).values())
    refuse_other_controls(path, everything)
    # Of some rows the mean alone was kept.
    means = [
        row for row in earlier["rows"] if "command" in row and row["compression"] not in {name for name, _ in found}
    ]
    rows = {row["compression"]: row for row in [*means, *summary(everything)]}
    order = [name for name in [CONTROL, "dense", *TASKS[task].rows] if name in rows]
    others = [one for one in [*means, *everything] if one["command"] != now["command"]]
    return [rows[name] for name in order], everything, origins_of(others, order)


def refuse_other_controls(path: Path, runs: Sequence[Run]) -> None:
    """Stop where runs of one seed do not stand beside the same dense control."""
    dense: dict[int, float] = {}
    for one in runs:
        if one["compression"] != CONTROL:
            beside = one["accuracy"] + one["drop"]
            if abs(dense.setdefault(one["seed"], beside) - beside) > 0.002:
                raise SystemExit(f"{path} holds rows beside another dense control: run all rows, or remove it.")


def origins_of(measured: Sequence[Run | Row], order: Sequence[str]) -> list[str]:
    """Which rows and seeds came from which command, a note for each."""
    seeds: dict[str, dict[str, list[str]]] = {}
    for one in measured:
        by_row = seeds.setdefault(f"{one['date']}, `{one['command']}`", {})
        by_row.setdefault(one["compression"], []).append(str(one.get("seed", f"0 to {one.get('seeds', 1) - 1}")))
    return [
        "; ".join(f"{name} (seed {', '.join(by_row[name])})" for name in order if name in by_row) + f": {source}."
        for source, by_row in seeds.items()
    ]


def keep(name: str, runs: Sequence[Run]) -> None:
    """Write what was found, beside what was found before, to ``benchmarks/results``."""
    task = TASKS[name]
    rows, everything, origins = with_earlier(name, runs)
    several = {"seeds": "seeds"} if len({row["seeds"] for row in rows}) > 1 else {}
    columns = {
        "compression": "compression",
        **several,
        "accuracy": ("test accuracy, %", ".2f"),
        "drop": ("dense − this, points", ".2f"),
        "times_smaller": ("packed file, × smaller", ".1f"),
    }
    last = f"Last of {task.epochs} epochs" if task.epochs > 1 else "After one epoch"
    start = f" from a control of {task.pretraining} epochs that all rows share" if task.pretraining else ""
    results.write(
        f"accuracy_{name}",
        rows,
        columns=columns,
        seeds=sorted({run["seed"] for run in everything}),
        threads=1,
        notes=[f"{last}{start}, of the written ONNX file in ONNX Runtime; the dense control trained as long."],
        origins=origins,
        runs=everything,
    )


def main() -> int:
    """Run, print, and keep where asked; the exit code is 75 where runs are left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--root", default="data", help="data.root of lightning-compress train")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from --first-seed on")
    parser.add_argument("--first-seed", type=int, default=0, help="to add seeds to those that were kept before")
    parser.add_argument("--rows", default="", help="regular expression: rows to run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of a thread each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after these; run again to go on")
    parser.add_argument("--work", type=Path, help="where runs are kept; outputs/accuracy by default")
    parser.add_argument("--write", action="store_true", help="keep every finished run in benchmarks/results at once")
    asked = parser.parse_args()
    work = (asked.work or results.ROOT / "outputs" / "accuracy").resolve()
    runner = Runner(asked.task, asked.root, work, time.monotonic() + 60 * asked.minutes)
    runs: list[Run] = []
    code = 0
    try:
        for one in run(runner, range(asked.first_seed, asked.first_seed + asked.seeds), asked.rows, asked.jobs):
            runs.append(one)
            print(f"{asked.task}, seed {one['seed']}: {one['compression']:32} {one['accuracy']:.2f} %", flush=True)
            if asked.write:
                keep(asked.task, runs)
    except OutOfTime:
        print(f"{asked.minutes:g} minutes are over, and runs are left: the same command goes on.")
        code = LEFT
    for row in summary(runs):
        spread = f" ± {row['accuracy_std']:.2f}" if "accuracy_std" in row else ""
        print(f"{row['compression']:32} {row['accuracy']:6.2f}{spread} %  drop {row['drop']:5.2f}  "
              f"{row['times_smaller']:.1f} × smaller")  # fmt: skip
    return code


if __name__ == "__main__":
    sys.exit(main())
