"""What a callback costs in a training step while it is in the list and has nothing to do.

Each callback is set up in a real fit, its phase lies beyond the steps that are timed (the monitor has nothing new to
measure), and processor time from the start of one batch to the start of the next is compared with that of the same fit
without it. The two fits run in two threads that take turns, a step each, so that a machine that slows down slows both;
a ratio is the median over all pairs of steps. Torch has one thread.

    python benchmarks/callback_cost.py --write

Exit code 1 if a ratio is above the limit (1.01 by default).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import results
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import (
    CompressedCheckpoint,
    CompressionMonitor,
    GradualMagnitudePruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
)
from lightning_compress.models.resnet import ResNet

WARM = 10
FAR = 100_000


class Module(L.LightningModule):
    """A classifier."""

    def __init__(self, net: nn.Module, example: torch.Tensor) -> None:
        super().__init__()
        self.net, self.example_input_array = net, example

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the network."""
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self.net(batch[0]).flatten(1), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


class Turns(Callback):
    """Times the steps of one of two fits that take turns, before every other callback."""

    def __init__(self, steps: int, mine: threading.Semaphore, other: threading.Semaphore) -> None:
        self.seconds: list[float] = []
        self._steps, self._mine, self._other = steps, mine, other
        self._began: float | None = None

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """End the step before, let the other fit make one, and begin the next."""
        if self._began is not None:
            self.seconds.append(time.thread_time() - self._began)
            self._other.release()
        # The limit is far: callbacks were promised many more steps.
        trainer.should_stop = len(self.seconds) > self._steps
        self._mine.acquire()
        self._began = time.thread_time()

    def on_fit_end(self, *args: Any) -> None:
        """Leave the other fit alone with the machine."""
        self._other.release(2)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-20": (lambda: ResNet(3, 10), (16, 3, 32, 32)),
    "encoder": (encoder, (8, 64, 256)),
}
WAYS: dict[str, Callable[[], list[Callback]]] = {
    "pruning": lambda: [GradualMagnitudePruning(0.8, start=FAR, end=FAR + 10, every=1)],
    "quantization": lambda: [QuantizationAwareTraining(start=FAR)],
    "distillation": lambda: [KnowledgeDistillation("self", start=FAR)],
    "monitor": lambda: [CompressionMonitor(print_phases=False)],
    "checkpoint": lambda: [CompressedCheckpoint(every_n_train_steps=FAR)],
    "all five": lambda: [callback for make in list(WAYS.values())[:-1] for callback in make()],
}


def fit(network: str, callbacks: list[Callback], turns: Turns) -> None:
    """Train until the steps are counted."""
    build, shape = NETWORKS[network]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    copies = 200
    images, classes = x.repeat(copies, *[1] * (x.dim() - 1)), torch.zeros(len(x) * copies).long()
    L.Trainer(
        max_steps=2 * FAR,
        accelerator="cpu",
        callbacks=[turns, *callbacks],
        logger=False,
        enable_checkpointing=any(isinstance(c, CompressedCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(build(), x[:1]), DataLoader(TensorDataset(images, classes), len(x)))


def ratio(network: str, callbacks: list[Callback], steps: int) -> tuple[float, float]:
    """A step with the callbacks over one without, and seconds of the latter."""
    first, second = threading.Semaphore(1), threading.Semaphore(0)
    watched, plain = Turns(steps, first, second), Turns(steps, second, first)
    threads = [
        threading.Thread(target=fit, args=(network, callbacks, watched)),
        threading.Thread(target=fit, args=(network, [], plain)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pairs = list(zip(watched.seconds, plain.seconds, strict=False))[WARM:]
    return statistics.median(a / b for a, b in pairs), statistics.median(b for _, b in pairs)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--limit", type=float, default=1.01, help="the highest ratio that is fine")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/callback_cost.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    worst, rows = 0.0, []
    for network in NETWORKS:
        for way in ("nothing", *WAYS):
            found, seconds = ratio(network, WAYS[way]() if way in WAYS else [], arguments.steps)
            more = (found - 1) * seconds * 1e6
            print(
                f"{network:<10} {way:<14} {found:.4f} × a step of {seconds * 1e3:.1f} ms ({more:+.0f} µs)", flush=True
            )
            worst = max(worst, found if way in WAYS else 0.0)
            rows.append({"network": network, "callback": way, "ms": seconds * 1e3, "ratio": found, "more_us": more})
    print(f"the highest is {worst:.4f}, the limit {arguments.limit}")
    if arguments.write:
        results.write(
            "callback_cost",
            rows,
            columns={
                "network": "network",
                "callback": "callback with nothing to do",
                "ms": ("step without it, ms", ".1f"),
                "ratio": ("step with ÷ without", ".3f"),
                "more_us": ("µs more", "+.0f"),
            },
            seeds=[0],
            notes=[f"Medians over {arguments.steps} pairs of steps that take turns."],
        )
    return 0 if worst <= arguments.limit else 1


if __name__ == "__main__":
    sys.exit(main())
