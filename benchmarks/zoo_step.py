"""Cost of quantization-aware training where functions are quantized: step over float step on networks of the zoo.

    python benchmarks/zoo_step.py --write
    python benchmarks/zoo_step.py --networks "timm: test_vit" --rounds 10

Float and quantized steps alternate; the ratio is the median over the rounds' ratios, and its quartiles say how far the
machine moved it. Networks run at the batch of a real training, since a batch of 4 measures Python and not kernels.
"""

from __future__ import annotations

import argparse
import statistics
import time

import architectures
import results
import torch
import zoo_job
from lightning.fabric.utilities.seed import seed_everything

from lightning_compress import quantization
from lightning_compress.foundation.example_inputs import call_arguments

NETWORKS = (
    "torchvision: shufflenet_v2_x0_5",
    "timm: mobilenetv3_small_050",
    "timm: convnext_atto",
    "timm: test_vit",
    "transformers: BertForSequenceClassification",
)
COLUMNS = {
    "network": "network",
    "batch": "batch",
    "functions": "quantizers at functions",
    "ms": ("step, ms", ".1f"),
    "ratio": ("step ÷ float step", ".2f"),
    "low": ("first quartile", ".2f"),
    "high": ("third quartile", ".2f"),
}


class Training:
    """A network of the zoo with its optimizer and a fixed batch, quantized or not."""

    def __init__(self, name: str, batch: int, *, quantized: bool) -> None:
        architecture = architectures.all_architectures()[name]
        self.network = zoo_job.build(architecture).train()
        self.inputs = zoo_job.batch(architecture, batch, seed=1)
        self.functions = 0
        if quantized:
            quantization.prepare(self.network, example_inputs=zoo_job.batch(architecture, 2, seed=1))
            sites = quantization.find(self.network).placement.sites
            self.functions = sum(any(boundary.function for boundary in site.boundaries) for site in sites)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-4, momentum=0.9)

    def seconds(self) -> float:
        """The time of one optimizer step."""
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        args, kwargs = call_arguments(self.inputs)
        made = [leaf for leaf in zoo_job.floats(self.network(*args, **kwargs)) if leaf.requires_grad]
        sum(leaf.square().mean() for leaf in made).backward()
        self.optimizer.step()
        return time.perf_counter() - begin


def measure(name: str, batch: int, rounds: int) -> dict[str, float | str | int]:
    """Step and ratio of one network."""
    seed_everything(0, verbose=False)
    dense, quantized = (Training(name, batch, quantized=quantized) for quantized in (False, True))
    for training in (dense, quantized) * 2:
        training.seconds()
    times = [(dense.seconds(), quantized.seconds()) for _ in range(rounds)]
    low, middle, high = statistics.quantiles((after / before for before, after in times), n=4)
    return {
        "network": name,
        "batch": batch,
        "functions": quantized.functions,
        "ms": statistics.median(after for _, after in times) * 1e3,
        "ratio": middle,
        "low": low,
        "high": high,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/zoo_step.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.networks:
        rows.append(measure(name, options.batch, options.rounds))
        shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()}
        print(shown, flush=True)
    if options.write:
        notes = [f"Medians of {options.rounds} rounds in which float and quantized steps alternate."]
        results.write("zoo_step", rows, columns=COLUMNS, seeds=[0], threads=options.threads, notes=notes)


if __name__ == "__main__":
    main()
