"""Cost of knowledge distillation: step time over that of plain training, side by side in one run.

    python benchmarks/distillation_step.py                      # both networks, every loss
    python benchmarks/distillation_step.py --networks resnet20 --rounds 40 --json

The teacher has the student's size. `teacher alone` is a plain step beside one forward of the teacher without
gradients: what no implementation can save. `trainer` is a step of a Lightning Trainer with the callback, over one
without. Variants alternate in short blocks, and a ratio is the median over the blocks' ratios, so that a machine that
slows down slows all. `--clock cpu` counts the time of this process alone, for a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import results
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_compress import KnowledgeDistillation
from lightning_compress.distillation import Attention, Distiller, Features, Logits, Loss, Relations
from lightning_compress.models.resnet import ResNet
from lightning_compress.models.transformer import TransformerEncoder

# Network, batch size, and pattern and channel dimension of the modules whose outputs are compared.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, str, int]] = {
    "resnet20": (lambda: ResNet(3, 10, depth=20), 128, "Block", 1),
    "encoder": (
        lambda: TransformerEncoder(3, 32, 10, patch=4, dim=256, depth=4, heads=4, expansion=4),
        32,
        "EncoderBlock",
        -1,
    ),
}
VARIANTS = ("teacher alone", "logits", "features", "attention", "relations", "all")


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def losses(network: str, variant: str) -> list[Loss]:
    _, _, modules, dim = NETWORKS[network]
    known: dict[str, Loss] = {
        "logits": Logits(),
        "features": Features([modules]),
        "attention": Attention([modules], dim=dim),
        "relations": Relations(),
    }
    return list(known.values()) if variant == "all" else [known[variant]]


class Training:
    """A network in one variant with its optimizer and a fixed batch."""

    def __init__(self, network: str, variant: str, clock: str) -> None:
        self.clock = CLOCKS[clock]
        torch.manual_seed(0)
        build, batch, _, _ = NETWORKS[network]
        self.x, self.y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
        self.model = build().train()
        self.teacher = build().eval()
        self.bare = variant == "teacher alone"
        self.distiller = (
            None if self.bare or variant == "plain" else Distiller(self.model, self.teacher, losses(network, variant))
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def step(self) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad()
        if self.distiller is None:
            if self.bare:
                with torch.no_grad():
                    self.teacher(self.x)
            loss = F.cross_entropy(self.model(self.x), self.y)
        else:
            with self.distiller:
                task = F.cross_entropy(self.model(self.x), self.y)
            loss = self.distiller.total(task, self.distiller.terms())
        loss.backward()
        self.optimizer.step()

    def milliseconds(self, steps: int) -> float:
        """Time of one step, as the mean over some."""
        begin = self.clock()
        for _ in range(steps):
            self.step()
        return (self.clock() - begin) / steps * 1e3


class Module(L.LightningModule):
    """A module that knows nothing of distillation."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.net = NETWORKS[network][0]()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Cross-entropy of one batch."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain momentum."""
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


class TrainerSteps:
    """A Trainer that goes on by some steps whenever it is asked to."""

    def __init__(self, network: str, taught: bool, clock: str) -> None:
        self.clock = CLOCKS[clock]
        torch.manual_seed(0)
        self.module, batch = Module(network), NETWORKS[network][1]
        self.batch = (torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,)))
        teacher = NETWORKS[network][0]()
        self.callbacks = [KnowledgeDistillation(teacher, [Logits()])] if taught else []

    def milliseconds(self, steps: int) -> float:
        """Time of one step, as the mean over some."""
        begun: list[float] = []
        clock = self.clock

        class Clock(L.Callback):
            def on_train_batch_start(self, *args: Any) -> None:
                begun.append(clock())

        L.Trainer(
            max_steps=steps + 1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*self.callbacks, Clock()],
        ).fit(self.module, DataLoader([self.batch] * (steps + 1), batch_size=None))
        # The first batch finds the network that the step calls.
        return (begun[-1] - begun[0]) / (len(begun) - 1) * 1e3


def ratios(trainings: dict[str, Any], rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Median times, and ratios to the first variant, of blocks that alternate."""
    for training in trainings.values():
        training.milliseconds(1)
    times: dict[str, list[float]] = {variant: [] for variant in trainings}
    for _ in range(rounds):
        for variant, training in trainings.items():
            times[variant].append(training.milliseconds(steps))
    first = next(iter(times.values()))
    return {
        variant: {
            "ms": statistics.median(measured),
            "ratio": statistics.median(t / f for t, f in zip(measured, first, strict=True)),
            "ratio_of_fastest": min(measured) / min(first),
        }
        for variant, measured in times.items()
    }


def measured(
    networks: list[str], rounds: int, steps: int, clock: str
) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    for network in networks:
        plain = {variant: Training(network, variant, clock) for variant in ("plain", *VARIANTS)}
        yield network, ratios(plain, rounds, steps)
        trainers = {
            "trainer, plain": TrainerSteps(network, False, clock),
            "trainer, logits": TrainerSteps(network, True, clock),
        }
        yield network, ratios(trainers, rounds, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=15, help="blocks of each variant")
    parser.add_argument("--steps", type=int, default=2, help="steps in a block")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/distillation_step.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for network, rows in measured(arguments.networks, arguments.rounds, arguments.steps, arguments.clock):
        found.setdefault(network, {}).update(rows)
        if not arguments.json:
            for variant, row in rows.items():
                print(
                    f"{network:9s} {variant:16s} {row['ms']:8.1f} ms  {row['ratio']:.2f} × plain"
                    f"  ({row['ratio_of_fastest']:.2f} of the fastest)",
                    flush=True,
                )
    if arguments.write:
        results.write(
            "distillation_step",
            [
                {"network": network, "variant": variant, "clock": arguments.clock, **row}
                for network, variants in found.items()
                for variant, row in variants.items()
                if row["ratio"] != 1
            ],
            columns={"network": "network", "variant": "beside the step", "ratio": ("step ÷ plain step", ".2f")},
            seeds=[0],
            notes=["The teacher has the student's size. Medians over blocks that alternate."],
        )
    if arguments.json:
        machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        print(json.dumps({**machine, "threads": arguments.threads, "clock": arguments.clock, "seed": 0, "step": found}))


if __name__ == "__main__":
    main()
