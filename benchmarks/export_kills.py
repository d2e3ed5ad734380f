"""Kill a training 50 times while it exports into a directory that holds an earlier export.

    python benchmarks/export_kills.py [--kills 50]

Each training is a process of its own, forked from one that has loaded the libraries, and killed by SIGKILL at a random
moment after the first file of its export. Afterwards the directory must hold the files of the old export, or those of
the new one: every file that its report lists has the checksum that the report gives. Where the kill came between the
moves of the last milliseconds there may be no report; then the next export must find the rest and finish. Exits with 1
if anything else is found.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import results

from lightning_compress.delivery.directory import PARTIAL, READY
from lightning_compress.foundation.checksum import sha256


def train(folder: Path, seed: int) -> None:
    """A fit of two steps, and its export."""
    import logging

    import lightning as L
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_compress import CompressedExport, GradualMagnitudePruning

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-3)

    L.seed_everything(seed, verbose=False)
    x = torch.randn(64, 32)
    loader = DataLoader(TensorDataset(x, x[:, :8].argmax(1)), 32)
    export = CompressedExport(folder, formats=["packed", "torch_export"], latency=False, print_report=False)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[GradualMagnitudePruning(0.5, start=0, end=1, every=1), export],
    )  # fmt: skip
    trainer.fit(Module(), loader, loader)


def start(folder: Path, seed: int) -> int:
    """A process that trains and exports; gives its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            train(folder, seed)
            code = 0
        finally:
            os._exit(code)
    return pid


def killed(folder: Path, seed: int, seconds: float) -> bool:
    """Kill an export a while after its first file; ``False`` if it had ended by then."""
    pid = start(folder, seed)
    while not ((folder / PARTIAL).is_dir() and any((folder / PARTIAL).iterdir())):
        ended, _ = os.waitpid(pid, os.WNOHANG)
        if ended:
            return False
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def state(folder: Path, before: str) -> str:
    """Which set of files is there."""
    if (folder / READY).is_dir() or not (folder / "report.json").is_file():
        return "between"
    artifacts = json.loads((folder / "report.json").read_text())["artifacts"]
    whole = all(sha256(folder / item["file"]) == item["sha256"] for item in artifacts)
    return "MIXED" if not whole else "old" if sha256(folder / "report.json") == before else "new"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/export_kills.json")
    arguments = parser.parse_args()
    import lightning_compress.callbacks  # noqa: F401 (loaded once, here)

    moments, found = random.Random(0), collections.Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "compressed")
        if os.waitpid(start(folder, 0), 0)[1]:
            raise SystemExit("the first export failed")
        began = time.perf_counter()
        os.waitpid(start(folder, 1), 0)
        length = time.perf_counter() - began
        seed = 1
        while sum(found.values()) < arguments.kills:
            seed += 1
            before = sha256(folder / "report.json")
            if not killed(folder, seed, moments.uniform(0, 0.5 * length)):
                continue
            now = state(folder, before)
            if now == "between":
                os.waitpid(start(folder, seed), 0)
                now = f"between, then {state(folder, before)}"
            found[now] += 1
            print(f"kill {sum(found.values())}: {now}", flush=True)
    print(dict(found))
    fine = found.keys() <= {"old", "new", "between, then new"}
    if arguments.write:
        row = {"kills": arguments.kills, **found, "fine": fine}
        results.write("export_kills", [row], columns={key: key for key in row}, seeds=[0])
    print("fine" if fine else "NOT FINE")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
