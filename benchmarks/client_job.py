"""One library's training several times in a process of its own: alone, then with our callbacks.

    python benchmarks/client_job.py chemprop result.json --modes prune qat both --rounds 5

``clients.py`` starts this in the library's environment. In the mode ``failing``, the ONNX writer raises once the
training is over. A training that is refused before its first step is run again with the ``on_error="warn"`` that the
refusal names. Rounds of two short trainings, alone and with pruning and quantization, time the step.
"""

from __future__ import annotations

import argparse
import json
import logging
import pickletools
import statistics
import tempfile
import time
import traceback
import warnings
import zipfile
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import architectures  # noqa: F401 - declares what a torchvision for CUDA lacks beside a torch for the CPU
import libraries
import torch
from lightning.pytorch.callbacks import Callback

from lightning_compress import CompressedExport, GradualMagnitudePruning, QuantizationAwareTraining
from lightning_compress.delivery import files

MODES = ("prune", "qat", "both", "failing")
SETTLED = 8  # steps, by which pruning and quantization are complete
Row = dict[str, Any]


class StepClock(Callback):
    """Seconds from the start to the end of each training batch, and the trainer that ran them.

    Both are kept on the class, since some libraries train with copies of the callbacks that they are given.
    """

    seconds: ClassVar[list[float]] = []
    trainer: ClassVar[Any] = None
    started: ClassVar[float] = 0.0

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        StepClock.trainer, StepClock.started = trainer, time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        StepClock.seconds.append(time.perf_counter() - StepClock.started)


def callbacks_of(mode: str, folder: Path, **settings: Any) -> list[Any]:
    """What a user of this package adds."""
    if mode == "alone":
        return []
    return [*compression_of(mode), CompressedExport(folder / "compressed", latency=False, **settings)]


def compression_of(mode: str) -> list[Any]:
    """Pruning, quantization-aware training, or both, complete after ``SETTLED`` steps."""
    pruning = GradualMagnitudePruning(final_sparsity=0.5, start=1, end=6, every=1)
    quantization = QuantizationAwareTraining(start=2)
    chosen: dict[str, list[Any]] = {"alone": [], "prune": [pruning], "qat": [quantization]}
    return chosen.get(mode, [pruning, quantization])


def outcome(library: Any, mode: str) -> Row:
    """What came of one training; of a refused one, what its remedy gives and, under ``refused``, the refusal."""
    with tempfile.TemporaryDirectory() as folder:
        row = run(library, mode, Path(folder))
    if not row.get("refused_before_training") or "on_error='warn'" not in row["error"]:
        return row
    with tempfile.TemporaryDirectory() as folder:
        return {**run(library, mode, Path(folder), on_error="warn"), "refused": row["error"]}


def run(library: Any, mode: str, folder: Path, **settings: Any) -> Row:
    """What came of one training."""
    row: Row = {}
    StepClock.seconds, StepClock.trainer = [], None
    torch.manual_seed(0)
    try:
        with mock.patch.object(files, "to_onnx", broken) if mode == "failing" else nullcontext():
            trained = library.train([StepClock(), *callbacks_of(mode, folder, **settings)], folder)
        row["predicts"] = trained.predict() is not None
        row["sparsity"] = sparsity(trained.module)
        row["keys"] = list(trained.module.state_dict())
        StepClock.trainer.save_checkpoint(folder / "own.ckpt")
        row["checkpoint"] = not names_us(folder / "own.ckpt")
    except Exception as error:  # whatever a library's training does, its row says it
        row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        row["refused_before_training"] = not StepClock.seconds
        row["trace"] = "".join(traceback.format_tb(error.__traceback__)[-4:])
    row["steps"] = len(StepClock.seconds)
    row["files"] = [n for n in ("model.onnx", "model.packed") if (folder / "compressed" / n).is_file()]
    if (report := folder / "compressed" / "report.json").is_file():
        found = json.loads(report.read_text(encoding="utf-8"))
        row |= {key: found.get(key) for key in ("agreement", "max_abs_difference", "stays_float", "failures")}
    return row


def broken(*_: Any, **__: Any) -> None:
    """Stands for a writer of a format that fails."""
    raise RuntimeError("this writer fails on purpose")


def step_seconds(library: Any, mode: str) -> float:
    """Median of the steps of a training after ``SETTLED`` of them."""
    StepClock.seconds = []
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        library.train([StepClock(), *compression_of(mode)], Path(folder))
    return statistics.median(StepClock.seconds[SETTLED:])


def sparsity(module: Any) -> float:
    """Share of zeros in all parameters of two dimensions or more."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    return sum(int((matrix == 0).sum()) for matrix in matrices) / max(1, sum(matrix.numel() for matrix in matrices))


def names_us(checkpoint: Path) -> bool:
    """Whether a checkpoint can be unpickled only where this package is installed."""
    with zipfile.ZipFile(checkpoint) as archive:
        name = next(item for item in archive.namelist() if item.endswith("data.pkl"))
        classes = [text for code, text, _ in pickletools.genops(archive.read(name)) if code.name == "GLOBAL"]
    return any(str(text).startswith("lightning_compress") for text in classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=libraries.NAMES)
    parser.add_argument("target", type=Path, help="the file of what was found")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=MODES)
    parser.add_argument("--rounds", type=int, default=0, help="of timing")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    library = libraries.load(options.name)
    distribution = library.REQUIREMENTS[0].partition("[")[0].partition("=")[0]
    result: Row = {"version": f"{distribution} {version(distribution)}", "lines": library.LINES}
    for mode in ("alone", *options.modes):
        result[mode] = outcome(library, mode)
    keys = result["alone"].pop("keys", None)
    for mode in options.modes:
        result[mode]["same_keys"] = keys is not None and result[mode].pop("keys", None) == keys
    if not any("error" in result[mode] for mode in ("alone", *options.modes)):
        modes = ("alone", "both") * options.rounds
        seconds = [step_seconds(library, mode) for mode in modes]
        result["step_seconds"] = {"alone": seconds[::2], "both": seconds[1::2]}
    options.target.write_text(json.dumps(result, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
