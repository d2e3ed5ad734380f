"""What compression costs on a GPU, in eight minutes at most; every number is printed as it is found.

    python benchmarks/gpu.py --write

Steps of quantization-aware training ÷ float step and peak memory for ResNet-50, a ViT-S and a GPT of 124M weights in
bfloat16, eager and compiled, with PyTorch's fused observers beside it; mask updates of 100M and 1B weights; masks that
are kept; equality with the CPU. Results are merged into ``benchmarks/results/gpu.json`` part by part. Written without a
GPU at hand: no number of it is published yet.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import results
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

from lightning_compress import pruning, quantization
from lightning_compress.quantization.ranges.optimizer import RangeOptimizer

SECONDS = 480.0
Row = dict[str, str | int | float]


class Attention(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.act, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(self.act(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Blocks over patches of an image, or over tokens."""

    def __init__(self, entry: nn.Module, width: int, depth: int, heads: int, outputs: int, causal: bool) -> None:
        super().__init__()
        self.entry = entry
        self.blocks = nn.Sequential(*(Attention(width, heads, causal) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.entry(x)
        x = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x
        return self.head(self.norm(self.blocks(x)))


def networks(small: bool) -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Name, network and a batch."""
    try:
        from torchvision.models import resnet50

        batch, size = (2, 64) if small else (128, 224)
        images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        yield "ResNet-50", resnet50().to(memory_format=torch.channels_last), images
    except ImportError:
        print("ResNet-50: torchvision is not installed", flush=True)
    depth, width, batch = (1, 64, 2) if small else (12, 384, 128)
    patches = nn.Conv2d(3, width, 16, 16)
    yield "ViT-S", Transformer(patches, width, depth, width // 64, 1000, False), torch.randn(batch, 3, 224, 224)
    width, length, words = (64, 32, 100) if small else (768, 1024, 50304)
    tokens = torch.randint(words, (2 if small else 8, length))
    yield "GPT-124M", Transformer(nn.Embedding(words, width), width, depth, width // 64, words, True), tokens


VARIANTS: dict[str, dict[str, Any]] = {
    "moving": {"range": "minmax"},
    "learned": {"range": "learned"},
    "4-bit groups": {"weight_bits": 4, "activation_bits": None, "weight_granularity": "group:32"},
}


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


def steps(device: str, small: bool) -> Iterator[Row]:
    """Step ÷ float step and peak memory of each network and variant."""
    for name, plain, batch in networks(small):
        x = batch.to(device)
        for compiled in (False, True):
            base = 0.0
            for variant in ("float", *VARIANTS, *(() if compiled else ("torch fused observers",))):
                network = copy.deepcopy(plain).to(device)
                if variant in VARIANTS:
                    quantization.prepare(network, example_inputs=x[:2], **VARIANTS[variant])
                elif variant != "float":
                    fused_observers(network)
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                taken = seconds_of(Step(network, x, compiled), device)
                base = base or taken
                peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0
                what = f"{name}, {'compiled' if compiled else 'eager'}, {variant}"
                yield {"what": what, "ms": taken * 1e3, "ratio": taken / base, "peak_mb": peak}
                del network


def masks(device: str, small: bool) -> Iterator[Row]:
    """A global mask update beside ``torch.nn.utils.prune``, and a step that keeps masks."""
    for millions in (1,) if small else (100, 1000):
        layers = nn.Sequential(*(nn.Linear(1000, 1000, bias=False, device=device) for _ in range(millions)))

        def update(layers: nn.Module = layers) -> None:
            pruner = pruning.Pruner(layers, final_sparsity=0.8, start=0, end=1, every=1, schedule="linear")
            pruner.step(1)

        own = seconds_of(update, device, rounds=3, steps=1)
        yield {"what": f"mask update, {millions}M weights", "ms": own * 1e3, "ratio": 1.0, "peak_mb": 0.0}
        pruner = pruning.Pruner(layers, final_sparsity=0.8, start=0, end=1, every=1, schedule="linear")
        pruner.step(1)
        kept = seconds_of(pruner.apply, device)
        yield {"what": f"masks applied, {millions}M weights", "ms": kept * 1e3, "ratio": kept / own, "peak_mb": 0.0}
        if millions <= 100:
            chosen = [(layer, "weight") for layer in layers]
            begin = time.perf_counter()
            prune.global_unstructured(chosen, pruning_method=prune.L1Unstructured, amount=0.8)
            wait(device)
            taken = time.perf_counter() - begin
            yield {
                "what": f"torch.nn.utils.prune, {millions}M",
                "ms": taken * 1e3,
                "ratio": taken / own,
                "peak_mb": 0.0,
            }
        del layers


def equality(device: str, small: bool) -> Iterator[Row]:
    """Scales and masks of the same weights on the CPU and here: share that is equal to the bit."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 100))
    other = copy.deepcopy(layers).to(device)
    for network in (layers, other):
        pruning.Pruner(network, final_sparsity=0.7, start=0, end=1, every=1, schedule="linear").step(1)
        quantization.prepare(network, activation_bits=None, weight_bits=4)
    pairs = list(zip(layers, other, strict=True))
    same = [torch.equal(a.weight, b.weight.cpu()) for a, b in pairs]
    found = [quantization.find(network) for network in (layers, other)]
    values = [[q.fake_quantize().detach().cpu() for q in f.layers.values()] for f in found if f is not None]
    same += [torch.equal(a, b) for a, b in zip(*values, strict=True)]
    yield {
        "what": "masks and 4-bit weights equal to the CPU's",
        "ms": 0.0,
        "ratio": sum(same) / len(same),
        "peak_mb": 0.0,
    }


def semi_structured(device: str, small: bool) -> Iterator[Row]:
    """A linear layer with 2:4 masks in PyTorch's semi-structured form ÷ dense."""
    if device != "cuda":
        return
    layer = nn.Linear(4096, 4096, bias=False, device=device, dtype=torch.float16)
    pruning.Pruner(layer, final_sparsity=0.5, pattern="2:4", start=0, end=1, every=1).step(1)
    x = torch.randn(4096, 4096, device=device, dtype=torch.float16)
    with torch.no_grad():
        dense = seconds_of(lambda: layer(x), device, steps=20)
        layer.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(layer.weight))
        sparse = seconds_of(lambda: layer(x), device, steps=20)
    yield {"what": "2:4 semi-structured ÷ dense", "ms": sparse * 1e3, "ratio": sparse / dense, "peak_mb": 0.0}


PARTS = {"equality": equality, "masks": masks, "semi-structured": semi_structured, "steps": steps}


def merged(rows: list[Row]) -> list[Row]:
    """New rows in place of the file's of the same name."""
    path = results.FOLDER / "gpu.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {row["what"] for row in rows}
    return [row for row in before if row["what"] not in new] + rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all parts")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--write", action="store_true", help="merge into benchmarks/results/gpu.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --small tries the script")
    rows: list[Row] = []
    until = time.perf_counter() + options.seconds
    for name in options.parts:
        try:
            for row in PARTS[name](options.device, options.small):
                rows.append(row)
                print(
                    f"{row['what']:44} {row['ms']:10.2f} ms  {row['ratio']:6.3f}  {row['peak_mb']:8.0f} MB", flush=True
                )
                if options.write:
                    columns = {"what": "what", "ms": ("ms", ".2f"), "ratio": ("ratio", ".3f"), "peak_mb": ("MB", ".0f")}
                    results.write("gpu", merged(rows), columns=columns)
                if time.perf_counter() > until:
                    print("out of time", flush=True)
                    return
        except (RuntimeError, ImportError) as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
