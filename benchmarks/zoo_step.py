"""Cost of quantization-aware training on networks that others wrote: step over float step.

    python benchmarks/zoo_step.py --write
    python benchmarks/zoo_step.py --networks "timm: test_vit" --rounds 20

Float and quantized steps alternate, in processor time of one thread; the ratio is the median over the rounds' ratios,
and its quartiles say how far the machine moved it. The same is done with a batch of 2: there kernels have next to
nothing to do, and what quantization adds is what it costs by the call (Python, autograd, weights), at any batch. The
networks are those of the zoo, at its small sizes, and some at the sizes that people train.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import architectures
import results
import torch
import zoo_job
from architectures.architecture import Architecture, images, tokens
from lightning.fabric.utilities.seed import seed_everything
from torch import nn

from lightning_compress import quantization
from lightning_compress.foundation.example_inputs import call_arguments

SMALL = {
    "torchvision: shufflenet_v2_x0_5": 64,
    "timm: mobilenetv3_small_050": 64,
    "timm: convnext_atto": 64,
    "timm: test_vit": 64,
    "transformers: BertForSequenceClassification": 64,
}
"""Network of the zoo → batch."""


def _timm(name: str, size: int) -> Architecture:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=100)

    return Architecture(f"timm: {name}, {size}×{size}", "timm", build, images(size))


def _torchvision(name: str, size: int) -> Architecture:
    def build() -> nn.Module:
        from torchvision import models

        return models.get_model(name, num_classes=100)

    return Architecture(f"torchvision: {name}, {size}×{size}", "torchvision", build, images(size))


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    )


USUAL = {
    _torchvision("resnet18", 64): 32,
    _timm("mobilenetv3_small_100", 224): 32,
    _timm("vit_tiny_patch16_224", 224): 8,
    _timm("convnext_atto", 224): 8,
    Architecture("transformers: BERT of 4 layers, 128 tokens", "transformers", _bert, tokens(128, 30522)): 8,
}
"""Network at a size that people train → batch."""

COLUMNS = {
    "network": "network",
    "batch": "batch",
    "quantizers": "quantizers",
    "functions": "of them at functions",
    "ms": ("float step, ms", ".1f"),
    "ratio": ("step ÷ float step", ".2f"),
    "low": ("first quartile", ".2f"),
    "high": ("third quartile", ".2f"),
    "by_call": ("added by the call, ms", ".1f"),
    "rest": ("step without that ÷ float step", ".2f"),
}


class Training:
    """A network with its optimizer and a fixed batch, quantized or not."""

    def __init__(self, architecture: Architecture, batch: int, *, quantized: bool) -> None:
        self.network = zoo_job.build(architecture).train()
        self.inputs = zoo_job.batch(architecture, batch, seed=1)
        self.quantizers = self.functions = 0
        if quantized:
            quantization.prepare(self.network, example_inputs=zoo_job.batch(architecture, 2, seed=1))
            found = quantization.find(self.network)
            sites = found.placement.sites
            self.quantizers = len(found.layers) + len(found.weights.computed) + len(sites)
            self.functions = sum(any(boundary.function for boundary in site.boundaries) for site in sites)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-4, momentum=0.9)

    def seconds(self) -> float:
        """The processor's time for one optimizer step."""
        begin = time.process_time()
        self.optimizer.zero_grad()
        args, kwargs = call_arguments(self.inputs)
        made = [leaf for leaf in zoo_job.floats(self.network(*args, **kwargs)) if leaf.requires_grad]
        sum(leaf.square().mean() for leaf in made).backward()
        self.optimizer.step()
        return time.process_time() - begin


def measure(architecture: Architecture, batch: int, rounds: int) -> dict[str, Any]:
    """Step and ratio of one network."""
    seed_everything(0, verbose=False)
    float_, quantized, float_of_2, quantized_of_2 = every = [
        Training(architecture, samples, quantized=which) for samples in (batch, 2) for which in (False, True)
    ]
    for training in every * 2:
        training.seconds()
    times = {training: [] for training in every}
    for _ in range(rounds):
        for training in every:
            times[training].append(training.seconds())
    low, middle, high = statistics.quantiles(_each(times[quantized], times[float_], lambda a, b: a / b), n=4)
    by_call = statistics.median(_each(times[quantized_of_2], times[float_of_2], lambda a, b: a - b))
    step = statistics.median(times[float_])
    return {
        "network": architecture.name,
        "batch": batch,
        "quantizers": quantized.quantizers,
        "functions": quantized.functions,
        "ms": step * 1e3,
        "ratio": middle,
        "low": low,
        "high": high,
        "by_call": by_call * 1e3,
        "rest": middle - by_call / step,
    }


def _each(one: list[float], other: list[float], function: Callable[[float, float], float]) -> list[float]:
    return [function(a, b) for a, b in zip(one, other, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/zoo_step.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = architectures.all_architectures()
    rows = []
    for architecture, batch in {**{known[name]: batch for name, batch in SMALL.items()}, **USUAL}.items():
        if options.networks and architecture.name not in options.networks:
            continue
        rows.append(measure(architecture, batch, options.rounds))
        shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()}
        print(shown, flush=True)
        if options.write:
            notes = [
                f"Processor time; medians of {options.rounds} rounds in which float and quantized steps alternate."
            ]
            results.write("zoo_step", rows, columns=COLUMNS, seeds=[0], threads=1, notes=notes)


if __name__ == "__main__":
    main()
