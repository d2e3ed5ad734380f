"""Stops a training process at random moments, resumes it each time, and compares the end to the bit.

Each training is a process of its own, forked from one that has loaded the libraries. It prunes and quantizes a small
network, validates, and writes a checkpoint after every optimizer step, in the middle of epochs and at their ends. It is
stopped, started again from the newest checkpoint that can be read, stopped again, until it ends. It is stopped in four
ways: by SIGKILL, SIGTERM, SIGINT (Ctrl-C), or an exception in one of the hooks of a step; every second signal is sent
while a checkpoint is being written. Then weights, masks, ranges, optimizer state, the monitor's history and the rows of
the CSV logger are compared with those of a run that nobody stopped.

Lightning writes the row of a step, or of an epoch, after the checkpoint. Where a process is killed between the two, the
row is in no file; such rows are counted, and all others have to be equal.

    python benchmarks/resume_soak.py --stops 100 --write

With PyTorch 2.13 and Lightning 2.6.6, 100 stops (25 of each way) in 45 runs: 45 of 45 bit-identical, 270 of 29,880
logged values not yet written at a stop. ``--way SIGKILL`` stops in one way alone.

Prints one line a stop and, at the end, how many of the runs ended bit-identical; exit code 1 if not all did.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

STEPS, EPOCH = 60, 15
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
HOOKS = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")


@dataclass(frozen=True)
class Blow:
    """How and when a process is stopped.

    Attributes:
        how: Name of a signal, or of the hook in which an exception is raised.
        step: Optimizer steps that are done before.
        writing: Whether a signal waits for the next checkpoint that is being written.
        seconds: That a signal comes later.
    """

    how: str
    step: int
    writing: bool
    seconds: float


def train(folder: Path, blow: Blow | None) -> None:
    """Train from the newest checkpoint in a folder, and write the digest of everything at the end."""
    import logging
    import warnings

    import lightning as L
    import torch
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.plugins.io import TorchCheckpointIO
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_compress import (
        CompressedCheckpoint,
        CompressionMonitor,
        GradualMagnitudePruning,
        QuantizationAwareTraining,
    )

    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(32, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 8))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-3)

    class Batches(DataLoader[Any]):
        """A loader that a checkpoint can put back to where it was in an epoch."""

        place = 0

        def __iter__(self) -> Iterator[Any]:
            first, self.place = self.place, 0
            for index, batch in enumerate(super().__iter__()):
                if index >= first:
                    self.place = (index + 1) % len(self)
                    yield batch

        def state_dict(self) -> dict[str, Any]:
            return {"place": self.place}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.place = state["place"]

    class Progress(Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
            print("step", trainer.global_step, flush=True)

    class Announced(TorchCheckpointIO):
        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            print("writing", flush=True)
            super().save_checkpoint(*args, **kwargs)

    def raise_in_hook(trainer: L.Trainer, *args: Any) -> None:
        if blow is not None and trainer.global_step >= blow.step:
            raise RuntimeError(f"stopped in {blow.how}")

    L.seed_everything(0, verbose=False)
    x = torch.randn(EPOCH * 8, 32)
    data = TensorDataset(x, x[:, :8].argmax(1))
    failing = Callback()
    if blow is not None and blow.how in HOOKS:
        setattr(failing, blow.how, raise_in_hook)
    callbacks = [
        GradualMagnitudePruning(0.9, start=5, end=40, every=1, criterion="movement", regrow="random"),
        QuantizationAwareTraining(start=20, freeze_range=50),
        CompressionMonitor(print_phases=False),
        failing,
        CompressedCheckpoint(
            folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, enable_version_counter=False
        ),
        Progress(),
    ]
    start = newest(folder)
    name = f"{0 if start is None else step_of(start)}-{len(list(folder.glob('logs/*')))}"
    trainer = L.Trainer(
        max_epochs=STEPS // EPOCH,
        accelerator="cpu",
        callbacks=callbacks,
        plugins=[Announced()],
        logger=CSVLogger(folder, "logs", name, flush_logs_every_n_steps=1),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    module = Module()
    trainer.fit(module, Batches(data, batch_size=8), DataLoader(data, 40), ckpt_path=start, weights_only=bool(start))
    trainer.save_checkpoint(folder / "end.pt")
    end = torch.load(folder / "end.pt", weights_only=True)
    kept = {name: state for name, state in end["callbacks"].items() if "Checkpoint" not in name}
    print("digest", digest([end["state_dict"], end["optimizer_states"], kept, end["global_step"]]), flush=True)


def digest(tree: Any) -> str:
    """A digest of nested tensors and primitives, to the bit."""
    import torch

    found = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            found.update(str((item.dtype, tuple(item.shape))).encode())
            found.update(item.contiguous().numpy().tobytes())
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                found.update(str(key).encode())
                add(item[key])
        elif isinstance(item, list | tuple):
            for part in item:
                add(part)
        else:
            found.update(repr(item).encode())

    add(tree)
    return found.hexdigest()


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that can be read; what was left half written is put aside."""
    import torch

    for path in sorted(folder.glob("step=*.ckpt"), key=step_of, reverse=True):
        try:
            torch.load(path, weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            print(f"unreadable {path.name}: {error}", flush=True)
            path.unlink()
        else:
            return path
    return None


def logged(folder: Path) -> dict[tuple[int, str], str]:
    """Step and name → value as written, of all processes of a run: each goes on from the step in its name."""
    rows: dict[tuple[int, str], str] = {}
    for place in sorted((folder / "logs").iterdir(), key=lambda path: int(path.name.split("-")[1])):
        first = int(place.name.split("-")[0])
        rows = {key: value for key, value in rows.items() if key[0] < first}
        if (place / "metrics.csv").exists():
            # The last row of a killed process may be cut off, also inside a number.
            whole, end, _ = (place / "metrics.csv").read_text().rpartition("\n")
            for row in csv.DictReader((whole + end).splitlines()):
                step = int(row.pop("step"))
                rows |= {(step, name): value for name, value in row.items() if value}
    return rows


class Training:
    """A process that trains in a folder."""

    def __init__(self, folder: Path, blow: Blow | None = None) -> None:
        self.blow = blow
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(writer, 1)
            # A shell that starts this in the background has it ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = 1
            try:
                train(folder, blow)
                code = 0
            except BaseException:
                # Whatever happened, this process ends here and must not go on as its parent.
                if blow is None:
                    traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writer)
        self.lines = os.fdopen(reader)

    def finish(self) -> str:
        """Wait for the end; gives the digest."""
        output = self.lines.read()
        self.lines.close()
        _, status = os.waitpid(self.pid, 0)
        if status:
            raise SystemExit(f"training failed with status {status}:\n{output}")
        return output.rpartition("digest ")[2].strip()

    def stop(self) -> bool:
        """Stop it as its blow says; ``False`` if it had ended by then."""
        blow = self.blow
        if blow is None:
            raise ValueError("nothing stops this process")
        if blow.how in SIGNALS:
            begun = False
            for line in self.lines:
                begun = begun or (line.startswith("step") and int(line.split()[1]) >= blow.step)
                if begun and (line.startswith("writing") or not blow.writing):
                    break
            time.sleep(blow.seconds)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if not ended:
                os.kill(self.pid, SIGNALS[blow.how])
                _, status = os.waitpid(self.pid, 0)
        else:
            self.lines.read()
            _, status = os.waitpid(self.pid, 0)
        self.lines.close()
        return status != 0


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.stem.split("=")[1])


def last_step(folder: Path) -> int:
    """The newest step with a checkpoint."""
    return max(map(step_of, folder.glob("step=*.ckpt")), default=0)


def draw(moments: random.Random, number: int, done: int, way: str | None) -> Blow:
    """The next blow: signals and exceptions in turn, or always one, at a random later moment."""
    kinds = (way,) if way is not None else (*SIGNALS, moments.choice(HOOKS))
    writing = number // len(kinds) % 2 == 0
    seconds = moments.uniform(0, 0.002 if writing else 0.02)
    return Blow(kinds[number % len(kinds)], done + moments.randint(1, 16), writing, seconds)


def soak(stops: int, seed: int = 0, way: str | None = None) -> dict[str, int]:
    """Stop and resume; how many stops there were, of which way, and how many runs ended bit-identical.

    Args:
        stops: How often.
        seed: Of the moments.
        way: The only way to stop.
    """
    moments = random.Random(seed)
    done = runs = same = lost = 0
    ways: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole")
        whole.mkdir()
        expected, rows = Training(whole).finish(), logged(whole)
        while done < stops:
            folder = Path(place, str(runs))
            folder.mkdir()
            # A few stops a run, each later than the one before; then it may end.
            for _ in range(min(stops - done, moments.randint(1, 4))):
                blow = draw(moments, done, last_step(folder), way)
                if blow.step >= STEPS or not Training(folder, blow).stop():
                    break
                done += 1
                ways[blow.how if blow.how in SIGNALS else "exception"] += 1
                while_writing = " while writing" if blow.writing and blow.how in SIGNALS else ""
                print(f"stop {done} by {blow.how} after step {last_step(folder)}{while_writing}", flush=True)
            runs += 1
            found = Training(folder).finish()
            series = logged(folder)
            missing = len(rows.keys() - series.keys())
            other = {key: (value, rows.get(key)) for key, value in series.items() if rows.get(key) != value}
            equal = found == expected and not other
            if not equal:
                print(f"run {runs}: {'same' if found == expected else 'another'} state; logged otherwise: {other}")
            same += equal
            lost += missing
            print(f"run {runs}: {same} of {runs} bit-identical", flush=True)
    print(f"{done} stops ({', '.join(f'{count} {way}' for way, count in sorted(ways.items()))})")
    print(f"{same} of {runs} runs bit-identical; {lost} of {runs * len(rows)} logged values not yet written at a stop")
    return {"stops": done, **ways, "runs": runs, "same": same, "lost": lost, "values": runs * len(rows)}


def write(found: dict[str, int], seed: int) -> None:
    import results

    results.write(
        "resume_soak",
        [found],
        columns={
            "stops": "stops",
            **{way: f"by {way}" for way in (*SIGNALS, "exception") if way in found},
            "runs": "runs",
            "same": "bit-identical",
            "lost": "logged values not yet written at a stop",
            "values": "logged values",
        },
        seeds=[seed],
    )


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stops", type=int, default=100, help="how often a process is stopped")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--way", choices=[*SIGNALS, *HOOKS], help="stop in this way alone; by default in all")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/resume_soak.json")
    arguments = parser.parse_args()
    # Loaded once, here, and not in every training.
    for module in ("lightning", "lightning_compress.callbacks"):
        import_module(module)
    found = soak(arguments.stops, arguments.seed, arguments.way)
    if arguments.write:
        write(found, arguments.seed)
    return 0 if found["same"] == found["runs"] else 1


if __name__ == "__main__":
    sys.exit(main())
