"""One library's training several times in a process of its own: alone, then with our callbacks.

    python benchmarks/client_job.py chemprop result.json prune qat both

``clients.py`` starts this in the library's environment.
"""

from __future__ import annotations

import json
import logging
import pickletools
import statistics
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import architectures  # noqa: F401 - declares what a torchvision for CUDA lacks beside a torch for the CPU
import libraries
import torch
from lightning.pytorch.callbacks import Callback

from lightning_compress import CompressedExport, GradualMagnitudePruning, QuantizationAwareTraining

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


def callbacks_of(mode: str, folder: Path) -> list[Any]:
    """What a user of this package adds."""
    pruning = GradualMagnitudePruning(final_sparsity=0.5, start=1, end=6, every=1)
    quantization = QuantizationAwareTraining(start=2)
    chosen = {"alone": [], "prune": [pruning], "qat": [quantization], "both": [pruning, quantization]}[mode]
    return [*chosen, CompressedExport(folder / "compressed", latency=False)] if chosen else []


def run(library: Any, mode: str, folder: Path) -> Row:
    """What came of one training."""
    row: Row = {}
    StepClock.seconds, StepClock.trainer = [], None
    torch.manual_seed(0)
    try:
        trained = library.train([StepClock(), *callbacks_of(mode, folder)], folder)
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
    row["step_seconds"] = statistics.median(StepClock.seconds) if StepClock.seconds else None
    row["files"] = [n for n in ("model.onnx", "model.packed") if (folder / "compressed" / n).is_file()]
    if (report := folder / "compressed" / "report.json").is_file():
        found = json.loads(report.read_text(encoding="utf-8"))
        row |= {key: found.get(key) for key in ("agreement", "max_abs_difference", "stays_float", "failures")}
    return row


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


def main(name: str, target: Path, modes: list[str]) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    library = libraries.load(name)
    distribution = library.REQUIREMENTS[0].partition("[")[0].partition("=")[0]
    result: Row = {"version": f"{distribution} {version(distribution)}", "lines": library.LINES}
    for mode in ("alone", *modes):
        with tempfile.TemporaryDirectory() as folder:
            result[mode] = run(library, mode, Path(folder))
    for mode in modes:
        keys = result[mode].pop("keys", None)
        result[mode]["same_keys"] = keys is not None and keys == result["alone"].get("keys")
    result["alone"].pop("keys", None)
    target.write_text(json.dumps(result, default=str), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
