"""Kills a training process with SIGKILL at random moments, resumes it each time, and compares the end to the bit.

Each training is a process of its own, forked from one that has loaded the libraries. It prunes and quantizes a small
network and writes a checkpoint after every optimizer step, so that kills fall into checkpoint writing too. It is
killed, started again from the newest checkpoint that can be read, killed again, until it ends. Then its weights,
masks, ranges, optimizer state and monitor history are compared with those of a run that nobody stopped.

    python benchmarks/resume_soak.py --kills 100

Prints one line a kill and, at the end, how many of the runs ended bit-identical; exit code 1 if not all did.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import results

STEPS, EPOCH = 60, 15


def train(folder: Path) -> None:
    """Train from the newest checkpoint in a folder, and write the digest of everything at the end."""
    import logging
    import warnings

    import lightning as L
    import torch
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_compress import CompressionMonitor, GradualMagnitudePruning, QuantizationAwareTraining

    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(32, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 8))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

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

    L.seed_everything(0, verbose=False)
    x = torch.randn(EPOCH * 8, 32)
    loader = Batches(TensorDataset(x, x[:, :8].argmax(1)), batch_size=8)
    callbacks = [
        GradualMagnitudePruning(0.9, start=5, end=40, every=1, criterion="movement", regrow="random"),
        QuantizationAwareTraining(start=20, freeze_range=50),
        CompressionMonitor(print_phases=False),
        ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, enable_version_counter=False),
        Progress(),
    ]
    trainer = L.Trainer(
        max_epochs=STEPS // EPOCH,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    module = Module()
    start = newest(folder)
    trainer.fit(module, loader, ckpt_path=start, weights_only=start is not None)
    trainer.save_checkpoint(folder / "end.pt")
    end = torch.load(folder / "end.pt", weights_only=True)
    kept = {name: state for name, state in end["callbacks"].items() if "ModelCheckpoint" not in name}
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
    """The newest checkpoint that can be read; what a kill left half written is put aside.

    One that was written in the last batch of an epoch is passed over: a run that goes on from there and is stopped
    again within an epoch miscounts its batches in Lightning 2.6.6, without any callback of ours too.
    """
    import torch

    for path in sorted(folder.glob("step=*.ckpt"), key=step_of, reverse=True):
        if step_of(path) % EPOCH == 0:
            continue
        try:
            torch.load(path, weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            print(f"unreadable {path.name}: {error}", flush=True)
            path.unlink()
        else:
            return path
    return None


class Training:
    """A process that trains in a folder."""

    def __init__(self, folder: Path) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(writer, 1)
            code = 1
            try:
                train(folder)
                code = 0
            except BaseException:
                # Whatever happened, this process ends here and must not go on as its parent.
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

    def kill(self, step: int, seconds: float) -> bool:
        """Kill it some time after it began a step; ``False`` if it had ended by then."""
        for line in self.lines:
            if line.startswith("step") and int(line.split()[1]) >= step:
                break
        time.sleep(seconds)
        ended, _ = os.waitpid(self.pid, os.WNOHANG)
        if not ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.lines.close()
        return not ended


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.stem.split("=")[1])


def last_step(folder: Path) -> int:
    """The newest step with a checkpoint."""
    return max(map(step_of, folder.glob("step=*.ckpt")), default=0)


def soak(kills: int, seed: int = 0) -> tuple[int, int, int]:
    """Kill and resume.

    Args:
        kills: How often.
        seed: Of the moments.

    Returns:
        Kills, runs that ended, and runs that ended bit-identical with the uninterrupted one.
    """
    moments = random.Random(seed)
    done = runs = same = 0
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole")
        whole.mkdir()
        expected = Training(whole).finish()
        while done < kills:
            folder = Path(place, str(runs))
            folder.mkdir()
            # A few kills a run, each later than the one before; then it may end.
            for _ in range(min(kills - done, moments.randint(1, 4))):
                step = last_step(folder) + moments.randint(1, 16)
                if step >= STEPS or not Training(folder).kill(step, moments.uniform(0, 0.02)):
                    break
                done += 1
                left = [path.name for path in folder.iterdir() if path.suffix != ".ckpt"]
                print(f"kill {done} after step {last_step(folder)}; half written: {left}", flush=True)
            runs += 1
            same += Training(folder).finish() == expected
            print(f"run {runs}: {same} of {runs} bit-identical", flush=True)
    return done, runs, same


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how often a process is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/resume_soak.json")
    arguments = parser.parse_args()
    # Loaded once, here, and not in every training.
    for module in ("lightning", "lightning_compress.callbacks"):
        import_module(module)
    done, runs, same = soak(arguments.kills, arguments.seed)
    print(f"{done} kills, {runs} runs, {same} of {runs} bit-identical")
    if arguments.write:
        columns = {"kills": "killed at random moments", "runs": "runs", "same": "ended bit-identical"}
        results.write(
            "resume_soak", [{"kills": done, "runs": runs, "same": same}], columns=columns, seeds=[arguments.seed]
        )
    return 0 if same == runs else 1


if __name__ == "__main__":
    sys.exit(main())
