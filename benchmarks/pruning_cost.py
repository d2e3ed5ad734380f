"""What pruning costs: mask updates, training steps between them, and memory; ratios measured side by side.

    python benchmarks/pruning_cost.py --write                  # on a quiet machine
    python benchmarks/pruning_cost.py --weights 10_000_000     # a quick look

All ways are interleaved in one run. A ratio is the median over the rounds of each round's ratio to its neighbour in
time. ``torch.nn.utils.prune`` and Lightning's callback, which stands on it, make a masked weight before a module's
forward runs; ``nn.MultiheadAttention`` reads its output projection without running it, so that there they cannot train
and are measured without that weight.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import results
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune as torch_prune

from lightning_compress.pruning import Pruner
from lightning_compress.pruning.masks import apply_masks
from lightning_compress.pruning.masks import cpu as kernel
from lightning_compress.pruning.optimizer_state import mask_gradients

SPARSITY = 0.8
PARTS = ["update", "resnet18", "encoder", "mlp"]
CHUNK = 1 << 20


# --- Models ----------------------------------------------------------------------------------------------------------
class Residual(nn.Module):
    """A ResNet-18 block."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        plain = stride == 1 and width_in == width
        self.shortcut = nn.Identity() if plain else nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


def resnet18() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    width_in = 64
    for width in (64, 128, 256, 512):
        layers += [Residual(width_in, width, 1 if width == 64 else 2), Residual(width, width, 1)]
        width_in = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 4)


def mlp(weights: int) -> nn.Module:
    side = int((weights / 4) ** 0.5)
    return nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(side, side, bias=False), nn.ReLU())])


# --- Measuring -------------------------------------------------------------------------------------------------------
def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def peak_extra(call: Callable[[], object]) -> int:
    """Bytes of resident memory that a call adds at its peak, sampled."""
    gc.collect()
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.0005):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return max(peak, resident()) - before


# --- Updates ---------------------------------------------------------------------------------------------------------
def bare_update(weights: list[torch.Tensor], masks: list[torch.Tensor], count: int) -> None:
    """Two passes of radix selection and one that writes the masks, with nothing around them."""
    histogram = torch.zeros(32768, dtype=torch.int64)
    for weight in weights:
        for chunk in weight.view(-1).split(CHUNK):
            histogram += torch.bincount(chunk.view(torch.int16)[1::2] & 0x7FFF, minlength=32768)
    cumulative = histogram.cumsum(0)
    bucket = int(torch.searchsorted(cumulative, count))
    rank = count - int(cumulative[bucket] - histogram[bucket])
    inside = []
    for weight in weights:
        for chunk in weight.view(-1).split(CHUNK):
            inside.append(chunk[(chunk.view(torch.int16)[1::2] & 0x7FFF) == bucket].abs())
    threshold = torch.cat(inside).kthvalue(rank).values
    for weight, mask in zip(weights, masks, strict=True):
        for chunk, kept in zip(weight.view(-1).split(CHUNK), mask.view(-1).split(CHUNK), strict=True):
            torch.gt(chunk.abs(), threshold, out=kept)


def updates(size: int, rounds: int, peers: bool) -> list[dict[str, Any]]:
    model = mlp(size)
    weights = [parameter.detach() for parameter in model.parameters()]
    n = sum(weight.numel() for weight in weights)
    count = round(SPARSITY * n)
    saved = [weight.clone() for weight in weights]

    def make() -> Pruner:
        return Pruner(model, final_sparsity=SPARSITY, start=0, end=0)

    # What is loaded once, libraries and the compiled loop, is not an update's memory.
    Pruner(mlp(1000), final_sparsity=SPARSITY, start=0, end=0).step(0)
    pruners: list[Pruner] = []
    print(f"\nGlobal mask update over {n / 1e6:.1f}M weights, {SPARSITY:.0%}")
    held = peak_extra(lambda: pruners.append(make())) / n
    print(f"  masks                                {held:6.2f} bytes a weight")
    extra = peak_extra(lambda: pruners[0].step(0)) / n
    print(f"  extra at the peak of an update       {extra:6.2f} bytes a weight (target 1.25)")
    for step in range(1, 5):
        pruners[0].last_update = None
        pruners[0].step(step)
    state = pruners[0].state_dict()["masks"]
    print(f"  masks in a checkpoint                {sum(m['bits'].numel() for m in state.values()) * 8 / n:6.2f} bits")
    reference = pruners[0].masks
    del pruners[0]

    masks = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    times: dict[str, list[float]] = {"bare": [], "Pruner.step": []}
    for _ in range(rounds):
        for weight, value in zip(weights, saved, strict=True):
            weight.copy_(value)
        times["bare"].append(seconds(lambda: bare_update(weights, masks, count)))
        pruner = make()
        times["Pruner.step"].append(seconds(lambda p=pruner: p.step(0)))
    # The bare way prunes every weight equal to the threshold; Pruner keeps as many as the exact count wants.
    values = [w[a ^ b].abs() for w, a, b in zip(saved, masks, reference.values(), strict=True)]
    if torch.cat(values).unique().numel() > 1:
        raise RuntimeError("the masks differ beyond ties at the threshold")
    ratio = statistics.median(a / b for a, b in zip(times["Pruner.step"], times["bare"], strict=True))
    bare, whole = (statistics.median(measured) for measured in times.values())
    print(f"  bare selection and masks             {bare:6.2f} s")
    print(f"  Pruner.step with an update           {whole:6.2f} s")
    print(f"  ratio                                {ratio:6.2f}   (target at most 1.5)")
    name = f"mask update, {n / 1e6:.0f}M weights"
    rows = [
        {"measured": name, "way": "selection and masks alone", "ms": bare * 1e3, "ratio": 1.0},
        {"measured": name, "way": "lightning-compress", "ms": whole * 1e3, "ratio": ratio, "bytes": held + extra},
    ]
    if peers:
        for weight, value in zip(weights, saved, strict=True):
            weight.copy_(value)
        targets = [(module, "weight") for module in model if isinstance(module, nn.Linear)]
        torch_time = seconds(
            lambda: torch_prune.global_unstructured(targets, torch_prune.L1Unstructured, amount=SPARSITY)
        )
        print(f"  torch.nn.utils.prune                 {torch_time:6.2f} s")
        print(f"  torch / Pruner.step                  {torch_time / whole:6.1f}")
        rows.append(
            {"measured": name, "way": "torch.nn.utils.prune", "ms": torch_time * 1e3, "ratio": torch_time / bare}
        )
    return rows


# --- Steps -----------------------------------------------------------------------------------------------------------
Step = Callable[[], object]


def dense_step(model: nn.Module, inputs: torch.Tensor, between: Callable[[], object] = lambda: None) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        between()
        optimizer.step()

    step.optimizer = optimizer  # type: ignore[attr-defined]
    return step


def ours(model: nn.Module, inputs: torch.Tensor) -> Step:
    pruner = Pruner(model, final_sparsity=SPARSITY, start=0, end=0)
    pruner.step(0)
    step = dense_step(model, inputs, lambda: mask_gradients(step.optimizer, pruner.masks_by_parameter()))  # type: ignore[attr-defined]
    return step


def float_masks(model: nn.Module, inputs: torch.Tensor) -> Step:
    pruner = Pruner(model, final_sparsity=SPARSITY, start=0, end=0)
    pruner.step(0)
    masks = [mask.float() for mask in pruner.masks.values()]
    weights = [parameter.detach() for parameter in pruner.parameters.values()]
    inner = dense_step(model, inputs)

    def step() -> None:
        inner()
        torch._foreach_mul_(weights, masks)

    return step


def plain_bytes(model: nn.Module, inputs: torch.Tensor) -> Step:
    """One-byte masks as they are applied where there is no compiler."""
    pruner = Pruner(model, final_sparsity=SPARSITY, start=0, end=0)
    pruner.step(0)
    weights = [parameter.detach() for parameter in pruner.parameters.values()]
    inner = dense_step(model, inputs)

    def step() -> None:
        inner()
        library, kernel._library = kernel._library, lambda: None
        apply_masks(weights, list(pruner.masks.values()))
        kernel._library = library

    return step


def hookable(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Modules and attributes that a hook before the module's forward can prune."""
    never_run = {module.out_proj for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    found = [name.rpartition(".") for name in Pruner(model, final_sparsity=SPARSITY, start=0, end=0).masks]
    targets = [(model.get_submodule(name), attribute) for name, _, attribute in found]
    return [(module, attribute) for module, attribute in targets if module not in never_run]


def torch_pruned(model: nn.Module, inputs: torch.Tensor) -> Step:
    for module, attribute in hookable(model):
        torch_prune.l1_unstructured(module, attribute, amount=SPARSITY)
    return dense_step(model, inputs)


def lightning_pruned(model: nn.Module, inputs: torch.Tensor) -> Step:
    from lightning.pytorch.callbacks import ModelPruning

    callback = ModelPruning("l1_unstructured", parameters_to_prune=hookable(model), amount=SPARSITY)
    callback.apply_pruning(SPARSITY)
    return dense_step(model, inputs)


def steps(
    name: str, model: nn.Module, inputs: torch.Tensor, target: float, rounds: int, peers: bool
) -> list[dict[str, Any]]:
    ways = {"dense": dense_step, "lightning-compress": ours, "float mask": float_masks, "byte mask, plain": plain_bytes}
    if peers:
        ways |= {"torch.nn.utils.prune": torch_pruned, "Lightning ModelPruning": lightning_pruned}
    print(f"\nTraining step, {name}")
    dense = dense_step(copy.deepcopy(model), inputs)
    dense()
    rows = []
    for way, make in ways.items():
        if way == "dense":
            continue
        # Two at a time, so that the models fit in memory and neighbours in time are compared.
        step = make(copy.deepcopy(model), inputs)
        step()
        pairs = []
        for k in range(rounds):
            # Each goes first as often as the other: what runs second finds warmer or fuller caches.
            if k % 2:
                pairs.append((seconds(dense), seconds(step)))
            else:
                after = seconds(step)
                pairs.append((seconds(dense), after))
        ratio = statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs)
        each = statistics.median(b / a for a, b in pairs)
        note = f"  (target at most {target})" if way == "lightning-compress" else ""
        print(
            f"  {way:24s} {statistics.median(b for _, b in pairs) * 1e3:8.2f} ms, ÷ dense {each:5.3f} "
            f"({ratio:5.3f} of medians){note}"
        )
        milliseconds = statistics.median(b for _, b in pairs) * 1e3
        rows.append({"measured": f"step, {name}", "way": way, "ms": milliseconds, "ratio": each})
        del step
        gc.collect()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=100_000_000, help="weights of the large MLP")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be repeated; all by default")
    parser.add_argument("--no-peers", action="store_true", help="leave out the slow peers")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/pruning_cost.json")
    asked = parser.parse_args()
    torch.manual_seed(0)
    peers = not asked.no_peers
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, compiled masks: {kernel.available()}")
    parts = asked.part or PARTS
    rows: list[dict[str, Any]] = []
    if "update" in parts:
        rows += updates(asked.weights, asked.rounds, peers)
    if "resnet18" in parts:
        inputs = torch.randn(4, 3, 64, 64)
        rows += steps("ResNet-18, batch 4 at 64×64", resnet18(), inputs, 1.02, asked.rounds * 6, peers)
    if "encoder" in parts:
        inputs = torch.randn(8, 64, 256)
        rows += steps("transformer encoder, batch 8×64", encoder(), inputs, 1.02, asked.rounds * 6, peers)
    if "mlp" in parts:
        large = mlp(asked.weights)
        inputs = torch.randn(32, large[0].in_features)
        rows += steps(f"{asked.weights / 1e6:.0f}M MLP, batch 32", large, inputs, 1.06, asked.rounds * 2, peers)
    if asked.write:
        results.write(
            "pruning_cost",
            rows,
            columns={
                "measured": "measured",
                "way": "way",
                "ms": ("ms", ".1f"),
                "ratio": ("÷ dense step, or ÷ selection alone", ".3f"),
                "bytes": ("bytes a weight at the peak", ".2f"),
            },
            seeds=[0],
            notes=[f"{SPARSITY:.0%} unstructured; compiled masks {'on' if kernel.available() else 'off'}."],
        )


if __name__ == "__main__":
    main()
