"""Cost of quantization-aware training: step time and memory over those of float training, side by side in one run.

    python benchmarks/quantization_step.py --write             # both networks; ranges observed, frozen, learned
    python benchmarks/quantization_step.py --networks resnet20 --rounds 60 --json

Float and quantized steps alternate in short blocks, and the ratio is the median over the blocks' ratios, so that a
machine that slows down slows both. Memory is what training adds to a fresh process at its peak; the C library gives
back at once what is freed there, so that it is that of what is alive and not of gaps, which come and go by chance.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import results
import torch
from torch import nn
from torch.nn import functional as F

from lightning_compress import quantization
from lightning_compress.models.resnet import ResNet
from lightning_compress.models.transformer import TransformerEncoder
from lightning_compress.quantization.fake_quantize import cpu as native
from lightning_compress.quantization.ranges.optimizer import RangeOptimizer

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: ResNet(3, 10, depth=20), 128),
    "encoder": (
        lambda: TransformerEncoder(3, 32, 10, patch=4, dim=256, depth=4, heads=4, expansion=4),
        32,
    ),
}
VARIANTS = ("float", "observed", "frozen", "learned", "percentile", "mse")


class Training:
    """A network in one variant with its optimizer and a fixed batch."""

    def __init__(self, network: str, variant: str, *, bits: int = 8) -> None:
        torch.manual_seed(0)
        build, batch = NETWORKS[network]
        self.x, self.y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
        self.model = build().train()
        if variant != "float":
            quantization.prepare(
                self.model,
                weight_bits=bits,
                activation_bits=bits,
                range=variant if variant in ("learned", "percentile", "mse") else "minmax",
                example_inputs=self.x[:2],
            )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.ranges = RangeOptimizer(lr=1e-3)
        found = quantization.find(self.model)
        if found is not None:
            self.ranges.track(found.parameters())
        self.step()
        if found is not None:
            found.frozen = variant == "frozen"

    def step(self) -> None:
        """One optimizer step, of learned ranges too."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        self.ranges.step()


def time_of(training: Training, steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        training.step()
    return (time.perf_counter() - begin) / steps * 1e3


def ratios(network: str, variants: list[str], rounds: int, steps: int) -> dict[str, dict[str, float]]:
    trainings = {variant: Training(network, variant) for variant in ["float", *variants]}
    for training in trainings.values():
        time_of(training, 2)
    times: dict[str, list[float]] = {variant: [] for variant in trainings}
    for _ in range(rounds):
        for variant, training in trainings.items():
            times[variant].append(time_of(training, steps))
    return {
        variant: {
            "ms": statistics.median(measured),
            "fastest_ms": min(measured),
            "ratio": statistics.median(t / f for t, f in zip(measured, times["float"], strict=True)),
            "ratio_of_fastest": min(measured) / min(times["float"]),
        }
        for variant, measured in times.items()
    }


def memory_status(field: str) -> float:
    """A field of Linux's /proc/self/status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def added_memory(network: str, variant: str) -> float:
    """MB that a few training steps add to this process at their peak; call it in a fresh process."""
    # Libraries, compiled kernels and thread pools are there before; a small batch brings them in.
    NETWORKS[network] = (NETWORKS[network][0], 2)
    Training(network, variant).step()
    before = memory_status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    NETWORKS[network] = (NETWORKS[network][0], {"resnet20": 128, "encoder": 32}[network])
    training = Training(network, variant)
    for _ in range(3):
        training.step()
    return memory_status("VmHWM") - before


def memory_of(network: str, variant: str, threads: int) -> float:
    """``added_memory`` of a fresh process."""
    command = [sys.executable, __file__, "--memory-of", network, variant, "--threads", str(threads)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def write(found: dict[str, dict[str, dict[str, float]]], options: argparse.Namespace) -> None:
    memory = {} if options.no_memory else {"memory_ratio": ("memory that training adds ÷ float", ".2f")}
    results.write(
        "quantization_step",
        [
            {"network": network, "batch": NETWORKS[network][1], "ranges": variant, **row}
            for network, rows in found.items()
            for variant, row in rows.items()
        ],
        columns={
            "network": "network",
            "batch": "batch",
            "ranges": "8-bit ranges",
            "ms": ("step, ms", ".1f"),
            "ratio": ("step ÷ float step", ".2f"),
            **memory,
        },
        seeds=[0],
        threads=options.threads,
        notes=[
            f"Medians of {options.rounds} blocks of {options.steps} steps that alternate, compiled kernels "
            f"{'off' if options.eager else 'on'}."
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS[1:], default=["observed", "frozen", "learned"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=2, help="steps in a block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="without compiled kernels")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/quantization_step.json")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    native.use_compiled(not options.eager)
    if options.memory_of:
        print(added_memory(*options.memory_of))
        return
    found = {}
    for network in options.networks:
        rows = ratios(network, options.variants, options.rounds, options.steps)
        if not options.no_memory:
            for variant, row in rows.items():
                row["memory_mb"] = memory_of(network, variant, options.threads)
                row["memory_ratio"] = row["memory_mb"] / rows["float"]["memory_mb"]
        found[network] = rows
    if options.write:
        write(found, options)
    if options.json:
        print(json.dumps({"torch": torch.__version__, "threads": options.threads, "results": found}, indent=1))
        return
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {options.threads} threads")
    for network, rows in found.items():
        print(f"\n{network}, batch {NETWORKS[network][1]}")
        columns = list(rows["float"])
        print(f"{'':10}" + "".join(f"{column:>18}" for column in columns))
        for variant, row in rows.items():
            print(f"{variant:10}" + "".join(f"{row[column]:18.3f}" for column in columns))


if __name__ == "__main__":
    main()
