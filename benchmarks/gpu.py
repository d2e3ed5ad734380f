"""What compression costs on a GPU, in eight minutes at most; every number is printed as it is found.

    python benchmarks/gpu.py --write
    python benchmarks/gpu.py --device cpu --small        # tries the script

Masks and 4-bit weights beside those of the CPU; mask updates of 100M and 1B weights beside ``torch.nn.utils.prune``;
2:4 weights in PyTorch's semi-structured form; and of ResNet-50, a ViT-S and a GPT of 124M weights, in bfloat16, the
step of quantization-aware training ÷ float step and its peak memory, eager beside other libraries, and compiled. Each
part is a process that is ended when its share of the time is over. With ``--write`` rows are merged into
``benchmarks/results/gpu.json`` one by one.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import results
import torch
from gpu_networks import network
from quantization_peers import with_modelopt, with_torchao
from torch import nn
from torch.nn.utils import parametrize, prune

from lightning_compress import pruning, quantization
from lightning_compress.quantization.ranges.optimizer import RangeOptimizer

SECONDS = 480.0
Row = dict[str, str | float | None]
COLUMNS = {
    "what": "what",
    "ms": ("ms", ".2f"),
    "ratio": ("ratio", ".3f"),
    "of": "of what",
    "peak_mb": ("peak MB", ".0f"),
}


def row(what: str, seconds: float | None, ratio: float, of: str, peak_mb: float | None = None) -> Row:
    """A row of the result.

    Args:
        what: What was measured.
        seconds: Its time, if it is one.
        ratio: To what ``of`` names.
        of: Of what the ratio is.
        peak_mb: Peak memory in MiB, where it was measured.
    """
    return {"what": what, "ms": seconds and seconds * 1e3, "ratio": ratio, "of": of, "peak_mb": peak_mb}


def fused_observers(network: nn.Module) -> nn.Module:
    """PyTorch's fused observers on the input and the weight of every layer."""
    from torch.ao.quantization import get_default_qat_qconfig

    config = get_default_qat_qconfig("x86")
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            device = layer.weight.device
            weight, activation = config.weight().to(device), config.activation().to(device)
            layer.register_forward_pre_hook(lambda _, args, a=activation: (a(args[0].float()),))
            parametrize.register_parametrization(layer, "weight", weight)
    return network


def prepared(network: nn.Module, x: torch.Tensor, **settings: Any) -> nn.Module:
    """The network with quantizers of this package."""
    quantization.prepare(network, example_inputs=x[:2], **settings)
    return network


OURS: dict[str, Callable[[nn.Module, torch.Tensor], nn.Module]] = {
    "8 bits, moving ranges": functools.partial(prepared, range="minmax"),
    "8 bits, learned ranges": functools.partial(prepared, range="learned"),
    "4-bit groups": functools.partial(prepared, weight_bits=4, activation_bits=None, weight_granularity="group:32"),
}
PEERS = {
    "torch's fused observers": ("torch", lambda network, x: fused_observers(network)),
    "torchao PT2E": ("torchao", with_torchao),
    "ModelOpt": ("modelopt", with_modelopt),
}
"""Other libraries: the package that has to be installed, and what it makes of a network."""


class Step:
    """A training step under autocast."""

    def __init__(self, network: nn.Module, x: torch.Tensor, compiled: bool) -> None:
        self.network, self.x, self.device = network, x, x.device.type
        self.optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
        found, self.ranges = quantization.find(network), RangeOptimizer(lr=1e-3)
        if found is not None:
            self.ranges.track(found.parameters())
        self.call = torch.compile(network) if compiled else network

    def __call__(self) -> None:
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.call(self.x).float().square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ranges.step()


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(step: Callable[[], Any], device: str, rounds: int = 5, steps: int = 3) -> float:
    """Median over blocks of steps, after two that are not counted."""
    for _ in range(2):
        step()
    found = []
    for _ in range(rounds):
        wait(device)
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        wait(device)
        found.append((time.perf_counter() - begin) / steps)
    return statistics.median(found)


def peak_mb(device: str) -> float | None:
    """Peak memory since the last call, in MiB; only CUDA says it."""
    if device != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return peak


def steps(name: str, device: str, small: bool, *, compiled: bool) -> Iterator[Row]:
    """Steps of one network: float, by this package and, where eager, with masks and by other libraries."""
    plain, batch = network(name, small)
    x = batch.to(device)
    how, base = "compiled" if compiled else "eager", 0.0
    variants = {"float": lambda network, x: network, **OURS}
    if not compiled:
        variants |= {peer: make for peer, (package, make) in PEERS.items() if importlib.util.find_spec(package)}
    for variant, make in variants.items():
        try:
            step = Step(make(copy.deepcopy(plain).to(device), x), x, compiled)
            peak_mb(device)
            taken = seconds_of(step, device)
        except Exception as error:
            if variant not in PEERS:
                raise
            print(f"{name}, {variant}: {type(error).__name__}: {error}", flush=True)
            continue
        base = base or taken
        yield row(f"{name}, {how}, {variant}", taken, taken / base, "float", peak_mb(device))
        del step
    if not compiled:
        masked = copy.deepcopy(plain).to(device)
        pruner = pruning.Pruner(masked, final_sparsity=0.8, start=0, end=1, every=1)
        step = Step(masked, x, compiled)
        number = itertools.count(1)
        taken = seconds_of(lambda: (step(), pruner.step(next(number))), device)
        yield row(f"{name}, {how}, masks", taken, taken / base, "float", peak_mb(device))


def masks(device: str, small: bool) -> Iterator[Row]:
    """Global mask updates beside ``torch.nn.utils.prune``."""
    for millions in (1,) if small else (100, 1000):
        layers = nn.Sequential(*(nn.Linear(1000, 1000, bias=False, device=device) for _ in range(millions)))
        pruner = pruning.Pruner(layers, final_sparsity=0.8, start=0, end=100, every=1)
        number = itertools.count(1)
        peak_mb(device)
        own = seconds_of(lambda p=pruner, n=number: p.step(next(n)), device, rounds=3, steps=1)
        yield row(f"mask update, {millions}M weights", own, 1.0, "itself", peak_mb(device))
        if millions <= 100:
            chosen = [(layer, "weight") for layer in layers]
            wait(device)
            begin = time.perf_counter()
            prune.global_unstructured(chosen, pruning_method=prune.L1Unstructured, amount=0.8)
            wait(device)
            taken = time.perf_counter() - begin
            yield row(f"torch.nn.utils.prune, {millions}M weights", taken, taken / own, "mask update", peak_mb(device))


def equality(device: str, small: bool) -> Iterator[Row]:
    """Share of masks, scales, values and losses of three steps that equal the CPU's to the bit."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 100))
    x, found = torch.randn(64, 300), []
    for place in ("cpu", device):
        here = copy.deepcopy(layers).to(place)
        pruner = pruning.Pruner(here, final_sparsity=0.7, start=0, end=1, every=1)
        pruner.step(1)
        quantization.prepare(here, weight_bits=4, example_inputs=x[:2].to(place))
        quantizers = quantization.find(here)
        assert quantizers is not None
        weights = [value for q in quantizers.layers.values() for value in (q.scale(), q.fake_quantize())]
        losses = [here(x.to(place)).square().mean() for _ in range(3)]
        found.append([value.detach().cpu() for value in (*pruner.masks.values(), *weights, *losses)])
    for what, part in (("masks", slice(2)), ("scales and 4-bit weights", slice(2, 6)), ("losses", slice(6, 9))):
        equal = [torch.equal(a, b) for a, b in zip(*(values[part] for values in found), strict=True)]
        yield row(f"{what} equal to the CPU's", None, sum(equal) / len(equal), "all")


def semi_structured(device: str, small: bool) -> Iterator[Row]:
    """A linear layer with 2:4 masks in PyTorch's semi-structured form ÷ dense."""
    if device != "cuda":
        print("semi-structured: only on CUDA", flush=True)
        return
    layer = nn.Linear(4096, 4096, bias=False, device=device, dtype=torch.float16)
    pruning.Pruner(layer, final_sparsity=0.5, pattern="2:4", start=0, end=1, every=1).step(1)
    x = torch.randn(4096, 4096, device=device, dtype=torch.float16)
    with torch.no_grad():
        dense = seconds_of(lambda: layer(x), device, steps=20)
        layer.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(layer.weight))
        sparse = seconds_of(lambda: layer(x), device, steps=20)
    yield row("2:4 semi-structured", sparse, sparse / dense, "dense")


PARTS: dict[str, Callable[[str, bool], Iterator[Row]]] = {
    "equality": equality,
    "masks": masks,
    "semi-structured": semi_structured,
    **{
        f"{name}, {'compiled' if compiled else 'eager'}": functools.partial(steps, name, compiled=compiled)
        for compiled in (False, True)
        for name in ("ResNet-50", "ViT-S", "GPT-124M")
    },
}


def merged(new: Row) -> list[Row]:
    """The rows of the file, with a new one instead of that of the same name."""
    path = results.FOLDER / "gpu.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    return [old for old in before if old["what"] != new["what"]] + [new]


def run(name: str, device: str, small: bool, write: bool) -> None:
    """Measure one part, in a process group of its own."""
    os.setsid()
    try:
        for found in PARTS[name](device, small):
            ms, peak = found["ms"], found["peak_mb"]
            time_, memory = "" if ms is None else f"{ms:.2f} ms", "" if peak is None else f"{peak:.0f} MB"
            print(f"{found['what']:44} {time_:>14} {found['ratio']:8.3f} of {found['of']:12} {memory:>10}", flush=True)
            if write:
                results.write("gpu", merged(found), columns=COLUMNS)
    except ImportError as error:
        print(f"{name}: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all parts")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--write", action="store_true", help="merge into benchmarks/results/gpu.json")
    options = parser.parse_args()
    # Counted without starting CUDA, which a forked process could not start again.
    if options.device == "cuda" and not torch.cuda.device_count():
        parser.error("there is no GPU here; --device cpu --small tries the script")
    until, failed = time.monotonic() + options.seconds, []
    for i, name in enumerate(options.parts):
        # What earlier parts left over is shared by those that follow.
        share = (until - time.monotonic()) / (len(options.parts) - i)
        part = multiprocessing.get_context("fork").Process(
            target=run, args=(name, options.device, options.small, options.write)
        )
        part.start()
        part.join(share)
        if part.is_alive():
            print(f"{name}: ended after its {share:.0f} s", flush=True)
            os.killpg(part.pid, signal.SIGKILL)
            part.join()
        elif part.exitcode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
