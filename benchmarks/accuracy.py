"""Accuracy and size of one network under many compressions, beside a dense control of the same seed and epochs.

Every row of a task is the product's own command, ``lightning-compress train``, with other settings; the dense control
of a seed is trained once and shared, and so is the network that a task starts from, where it starts from a trained one.
Accuracy is that of the last epoch on the published test images, of the written ONNX file run in ONNX Runtime. A run
that is finished is not run again, so that an interrupted benchmark goes on.

    python benchmarks/accuracy.py fashion_mnist_mlp --root ~/data --seeds 3 --jobs 2 --write
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import results

Rows = dict[str, list[str]]
Row = dict[str, Any]
Run = dict[str, Any]
"""One row of one seed."""


def pruned(percent: float, *more: str) -> list[str]:
    """Global magnitude pruning on the cubic schedule."""
    return ["pruning=global", f"pruning.final_sparsity={percent / 100:.4g}", *more]


def quantized(bits: int, *more: str) -> list[str]:
    """Quantization-aware training; below 8 bits with learned steps."""
    return [f"quantization=w{bits}a{bits}", *([] if bits == 8 else ["quantization.range=learned"]), *more]


JOINT: Rows = {
    "80 % sparse, 8 bits": pruned(80, *quantized(8)),
    "90 % sparse, 4 bits": pruned(90, *quantized(4)),
}
BITS: Rows = {f"{bits} bits": quantized(bits) for bits in (8, 4, 3, 2)}
DISTILLED: Rows = {
    "2 bits, distilled": quantized(2, "distillation=logits"),
    "95 % sparse, distilled": pruned(95, "distillation=logits"),
}
LENET5 = (
    "{_target_: lightning_compress.models.Classifier.load_from_checkpoint, checkpoint_path: CHECKPOINT, "
    "num_classes: 10, "
    "net: {_target_: lightning_compress.models.LeNet5, in_channels: 1, image_size: 28, num_classes: 10}}"
)
TAUGHT: Rows = {"95 % sparse, taught by LeNet-5": pruned(95, "distillation=logits", f"distillation.teacher={LENET5}")}
"""Rows with a better network as the teacher: the dense control of the LeNet-5 task, of the same seed."""


@dataclass(frozen=True)
class Task:
    """A network on a data set, and the ways it is compressed.

    Attributes:
        settings: Of all its runs.
        epochs: Of the dense control and of every row.
        rows: Name → what a row adds to the settings.
        pretraining: Epochs of the dense network that control and rows start from; 0 starts from random weights.
        fine_tuning: What control and rows add after a pretraining.
    """

    settings: list[str]
    epochs: int
    rows: Rows
    pretraining: int = 0
    fine_tuning: list[str] = field(default_factory=list)


TASKS = {
    "fashion_mnist_mlp": Task(
        ["data=fashion_mnist", "model=mlp", "data.batch_size=256", "model.lr=0.002", "model.label_smoothing=0.1"],
        15,
        {f"{p:g} % sparse": pruned(p) for p in (73.4, 81.5, 87.2, 91.1, 93.7, 95, 98)}
        | BITS
        | JOINT
        | DISTILLED
        | TAUGHT,
    ),
    "fashion_mnist_lenet5": Task(
        [
            "data=fashion_mnist",
            "model=lenet5",
            "model.lr=0.002",
            "model.label_smoothing=0.05",
            "model.channels_last=true",
        ],
        6,
        {f"{p:g} % sparse": pruned(p) for p in (70, 80, 90, 95)} | BITS | JOINT | DISTILLED,
    ),
    "cifar10_resnet20": Task(
        ["data=cifar10", "model=resnet20", "data.augment=crop_flip", "model.channels_last=true"],
        1,
        {f"{p} % sparse": pruned(p) for p in (70, 80, 90, 95)}
        # The network is trained already: it is quantized from the first step on.
        | {f"{bits} bits": quantized(bits, "quantization.start=0") for bits in (8, 4, 3, 2)}
        | {
            "half the multiply-adds": [
                "pruning=channel",
                "pruning.final_sparsity=0.3",
                "pruning.distribution=uniform",
                "pruning.channel_multiple=8",
            ],
            "90 % sparse, uniform": pruned(90, "pruning.distribution=uniform"),
            "90 % sparse, ERK": pruned(90, "pruning.distribution=erk"),
            "90 % sparse, one-shot": pruned(90, "pruning.schedule=constant"),
            "90 % sparse, ERK, RigL": pruned(90, "pruning.distribution=erk", "pruning.regrow=gradient"),
        }
        | JOINT
        | DISTILLED,
        pretraining=3,
        fine_tuning=["model.lr=0.03"],
    ),
}


def train(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Run the product's command, unless its result is there."""
    result = folder / "result.json"
    if not result.exists():
        command = [sys.executable, "-m", "lightning_compress.cli.main", "train", *overrides, f"hydra.run.dir={folder}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    content: dict[str, Any] = json.loads(result.read_text())
    return content


def folder_of(work: Path, row: str, seed: int) -> Path:
    """Directory of one run, named after its row."""
    return work / re.sub(r"\W+", "_", row).strip("_") / f"seed{seed}"


def controls(task: str, root: str, work: Path, seed: int) -> tuple[list[str], dict[str, Any]]:
    """The settings of all rows of a seed, and the result of its dense control."""
    plan = TASKS[task]
    common = [
        *plan.settings,
        f"data.root={root}",
        f"seed={seed}",
        "threads=1",
        "logger=none",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
    ]
    if plan.pretraining:
        trained = train(folder_of(work, "pretrained", seed), [*common, f"trainer.max_epochs={plan.pretraining}"])
        common += [*plan.fine_tuning, f"init_checkpoint={trained['checkpoint']}"]
    common.append(f"trainer.max_epochs={plan.epochs}")
    return common, train(folder_of(work, "dense", seed), common)


def compress(
    task: str, row: str, root: str, work: Path, seed: int, common: list[str], control: dict[str, Any]
) -> dict[str, float]:
    """One row of one seed: accuracy in percent, drop in points, times smaller as a packed file."""
    folder, own = folder_of(work, row, seed), TASKS[task].rows[row]
    if row in TAUGHT:
        _, teacher = controls("fashion_mnist_lenet5", root, work.parent / "fashion_mnist_lenet5", seed)
        own = [override.replace("CHECKPOINT", teacher["checkpoint"]) for override in own]
    given = [f"dense_checkpoint={control['checkpoint']}", "export=default"]
    values = train(folder, [*common, *own, *given])["values"]
    report = json.loads((folder / "compressed" / "report.json").read_text())
    packed = next(artifact["bytes"] for artifact in report["artifacts"] if artifact["format"] == "packed")
    accuracy, dense = 100 * values["deployed/test/acc"], 100 * control["values"]["test/acc"]
    print(f"{task}, seed {seed}: {row:24} {accuracy:.2f} % (dense {dense:.2f} %)", flush=True)
    found = {"accuracy": accuracy, "drop": dense - accuracy, "times_smaller": values["dense/bytes"] / packed}
    return {key: round(value, 3) for key, value in found.items()}


def run(task: str, root: str, seeds: Sequence[int], work: Path, wanted: str, jobs: int) -> list[Run]:
    """The dense controls, then the wanted rows, of every seed; so many runs at a time."""
    rows = [row for row in TASKS[task].rows if re.search(wanted, row)]
    with ThreadPoolExecutor(jobs) as pool:
        dense = list(pool.map(lambda seed: controls(task, root, work, seed), seeds))
        found = {
            (row, seed): pool.submit(compress, task, row, root, work, seed, *control)
            for row in rows
            for seed, control in zip(seeds, dense, strict=True)
        }
        accuracies = [100 * control["values"]["test/acc"] for _, control in dense]
        return [
            {"compression": "dense", "seed": seed, "accuracy": round(accuracy, 3), "drop": 0.0, "times_smaller": 1.0}
            for seed, accuracy in zip(seeds, accuracies, strict=True)
        ] + [{"compression": row, "seed": seed, **values.result()} for (row, seed), values in found.items()]


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
        The rows in the order of the task, all runs, and notes on where the earlier ones come from.

    Raises:
        SystemExit: Rows of as many seeds were measured beside other dense controls.
    """
    path = results.FOLDER / f"accuracy_{task}.json"
    earlier = json.loads(path.read_text()) if path.exists() else {"rows": [], "runs": []}
    now = {"date": results.today(), "command": results.command()}
    found = {(run["compression"], run["seed"]): {**run, **now} for run in runs}
    everything = list(({(run["compression"], run["seed"]): run for run in earlier["runs"]} | found).values())
    # Of some rows the mean alone was kept.
    means = [
        row for row in earlier["rows"] if "command" in row and row["compression"] not in {name for name, _ in found}
    ]
    rows = {row["compression"]: row for row in [*means, *summary(everything)]}
    for seeds in {row["seeds"] for row in rows.values()}:
        if len({row["dense"] for row in rows.values() if row["seeds"] == seeds}) > 1:
            raise SystemExit(f"{path} holds rows beside another dense control: run all rows, or remove it.")
    order = [name for name in ["dense", *TASKS[task].rows] if name in rows]
    others = [one for one in [*means, *everything] if one["command"] != now["command"]]
    return [rows[name] for name in order], everything, origins(others, order)


def origins(measured: Sequence[Run | Row], order: Sequence[str]) -> list[str]:
    """Which rows and seeds came from which command, a note for each."""
    seeds: dict[str, dict[str, list[str]]] = {}
    for one in measured:
        by_row = seeds.setdefault(f"{one['date']}, `{one['command']}`", {})
        by_row.setdefault(one["compression"], []).append(str(one.get("seed", f"0 to {one.get('seeds', 1) - 1}")))
    return [
        "; ".join(f"{name} (seed {', '.join(by_row[name])})" for name in order if name in by_row) + f": {source}."
        for source, by_row in seeds.items()
    ]


def main() -> None:
    """Run, print, and keep where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--root", default="data", help="data.root of lightning-compress train")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from --first-seed on")
    parser.add_argument("--first-seed", type=int, default=0, help="to add seeds to those that were kept before")
    parser.add_argument("--rows", default="", help="regular expression: rows to run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of a thread each")
    parser.add_argument("--work", type=Path, help="where runs are kept; outputs/accuracy by default")
    parser.add_argument("--write", action="store_true", help="keep the numbers in benchmarks/results")
    arguments = parser.parse_args()
    work = (arguments.work or results.ROOT / "outputs" / "accuracy").resolve() / arguments.task
    task = TASKS[arguments.task]
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    runs = run(arguments.task, arguments.root, seeds, work, arguments.rows, arguments.jobs)
    for row in summary(runs):
        spread = f" ± {row['accuracy_std']:.2f}" if "accuracy_std" in row else ""
        print(f"{row['compression']:26} {row['accuracy']:6.2f}{spread} %  drop {row['drop']:5.2f}  "
              f"{row['times_smaller']:.1f} × smaller")  # fmt: skip
    if arguments.write:
        rows, runs, notes = with_earlier(arguments.task, runs)
        several = {"seeds": "seeds"} if len({row["seeds"] for row in rows}) > 1 else {}
        columns = {
            "compression": "compression",
            **several,
            "accuracy": ("test accuracy, %", ".2f"),
            "drop": ("dense − this, points", ".2f"),
            "times_smaller": ("packed file, × smaller", ".1f"),
        }
        start = f", after {task.pretraining} of dense training that all rows share" if task.pretraining else ""
        last = f"Last of {task.epochs} epochs" if task.epochs > 1 else "After one epoch"
        results.write(
            f"accuracy_{arguments.task}",
            rows,
            columns=columns,
            seeds=range(max(row["seeds"] for row in rows)),
            threads=1,
            notes=[
                f"{last}{start}, of the written ONNX file in ONNX Runtime; the dense control trained as long.",
                *notes,
            ],
            runs=runs,
        )


if __name__ == "__main__":
    main()
