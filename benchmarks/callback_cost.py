"""What a callback costs in a training step while it is in the list and has nothing to do.

Each callback is set up in a real fit, its phase lies beyond the steps that are timed (the monitor has nothing new to
measure), and the time from the start of one batch to the start of the next is compared with that of the same fit
without it. Fits are interleaved; a ratio is the median over the rounds of a round's ratio of medians.

    python benchmarks/callback_cost.py

Run it on a quiet machine. Exit code 1 if a ratio is above the limit (1.01 by default).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
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

WARM, STEPS = 3, 10
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


class Clock(Callback):
    """Seconds from batch to batch, before every other callback."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        """Note the time."""
        self.stamps.append(time.perf_counter())

    def median(self) -> float:
        """Of a step, in seconds, without the first ones."""
        return statistics.median(b - a for a, b in zip(self.stamps[WARM:], self.stamps[WARM + 1 :], strict=False))


class Enough(Callback):
    """Ends a fit whose callbacks were promised many more steps."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Ask for the end."""
        trainer.should_stop = trainer.global_step > WARM + STEPS


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-20": (lambda: ResNet(3, 10), (16, 3, 32, 32)),
    "encoder": (encoder, (4, 64, 128)),
}
WAYS: dict[str, Callable[[], list[Callback]]] = {
    "pruning": lambda: [GradualMagnitudePruning(0.8, start=FAR, end=FAR + 10, every=1)],
    "quantization": lambda: [QuantizationAwareTraining(start=FAR)],
    "distillation": lambda: [KnowledgeDistillation("self", start=FAR)],
    "monitor": lambda: [CompressionMonitor(print_phases=False)],
    "checkpoint": lambda: [CompressedCheckpoint(every_n_train_steps=FAR)],
    "all five": lambda: [callback for make in list(WAYS.values())[:-1] for callback in make()],
}


def step_time(network: str, callbacks: list[Callback]) -> float:
    """Median seconds of a step."""
    build, shape = NETWORKS[network]
    torch.manual_seed(0)
    x = torch.randn(shape)
    data = DataLoader(TensorDataset(x.repeat(STEPS, *[1] * (x.dim() - 1)), torch.zeros(len(x) * STEPS).long()), len(x))
    clock = Clock()
    L.Trainer(
        max_steps=2 * FAR,
        accelerator="cpu",
        callbacks=[clock, *callbacks, Enough()],
        logger=False,
        enable_checkpointing=any(isinstance(c, CompressedCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(build(), x[:1]), data)
    return clock.median()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=float, default=1.01, help="the highest ratio that is fine")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    worst = 0.0
    for network in NETWORKS:
        found: dict[str, list[float]] = {way: [] for way in ("nothing again", *WAYS)}
        plain = step_time(network, [])
        for _ in range(arguments.rounds):
            for way, ratios in found.items():
                # Each between two plain fits, so that a machine that slows down does not count.
                seconds = step_time(network, [] if way not in WAYS else WAYS[way]())
                before, plain = plain, step_time(network, [])
                ratios.append(seconds / ((before + plain) / 2))
        print(f"{network}, {torch.get_num_threads()} threads: a step of {plain * 1e3:.1f} ms; ratios to it", flush=True)
        for way, ratios in found.items():
            spread = statistics.quantiles(ratios, n=4)
            print(f"  {way:<14} {statistics.median(ratios):.4f}  (quartiles {spread[0]:.4f} to {spread[2]:.4f})")
            worst = max(worst, statistics.median(ratios) if way in WAYS else 0.0)
    print(f"the highest is {worst:.4f}, the limit {arguments.limit}")
    return 0 if worst <= arguments.limit else 1


if __name__ == "__main__":
    sys.exit(main())
