"""Channel pruning of ResNet-20 to half its multiply-adds: accuracy, and latency in ONNX Runtime.

    python benchmarks/channel_pruning.py --root data                     # CIFAR-10, 3 seeds
    python benchmarks/channel_pruning.py --root data --data fashion_mnist --epochs 3 --seeds 0
    python benchmarks/channel_pruning.py --latency-only --data fashion_mnist

Each seed trains a dense network and a pruned one for the same number of epochs from the same start. The pruned one
loses the same share of channels in every group, rounded to what leaves multiples of 8, from a tenth to six tenths of
the run. Accuracy is that of the exported files on the test set after the last epoch. Latency is measured in one
process, interleaved, one thread; a ratio is the median over blocks with its quartiles.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import results
import torch
from torch import nn

from lightning_compress import GradualMagnitudePruning
from lightning_compress.data import CIFAR10, FashionMNIST, ImageData
from lightning_compress.export import to_onnx
from lightning_compress.export.latency import Ratio, Timing, measure
from lightning_compress.export.onnx.session import open_session
from lightning_compress.metrics.macs import count_macs
from lightning_compress.models import Classifier, ResNet
from lightning_compress.pruning import Pruner, shrink

DATA: dict[str, tuple[type[ImageData], tuple[int, int, int]]] = {
    "cifar10": (CIFAR10, (3, 32, 32)),
    "fashion_mnist": (FashionMNIST, (1, 28, 28)),
}


def macs(net: nn.Module, image: tuple[int, ...]) -> int:
    counted = count_macs(net, torch.zeros(1, *image))
    return sum(counted.layers.values()) + counted.products


def pruned(net: nn.Module, image: tuple[int, ...], sparsity: float) -> nn.Module:
    example = torch.zeros(2, *image)
    settings = {"pattern": "channel", "distribution": "uniform", "channel_multiple": 8, "example_inputs": example}
    Pruner(net, final_sparsity=sparsity, start=0, end=0, **settings).step(0)
    return shrink(net, torch.randn(2, *image)).model


def train(net: nn.Module, image: tuple[int, ...], data: ImageData, epochs: int, sparsity: float, seed: int) -> None:
    L.seed_everything(seed, verbose=False)
    module = Classifier(net, num_classes=10, optimizer="sgd", lr=0.1, weight_decay=5e-4, input_shape=image)
    callbacks = []
    if sparsity:
        callbacks.append(
            GradualMagnitudePruning(
                sparsity, pattern="channel", distribution="uniform", channel_multiple=8, start=0.1, end=0.6, every=0.01
            )
        )
    L.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    ).fit(module, datamodule=data)
    module.cpu().eval()


def accuracy(path: Path, data: ImageData) -> float:
    session = open_session(path)
    name, right, count = session.get_inputs()[0].name, 0, 0
    data.setup("test")
    for x, y in data.test_dataloader():
        answers = torch.from_numpy(session.run(None, {name: x.numpy()})[0]).argmax(1)
        right, count = right + int((answers == y).sum()), count + len(y)
    return right / count


def latency(files: dict[str, Path], image: tuple[int, ...], batch: int, seconds: float) -> dict[str, Timing]:
    calls = {}
    for name, path in files.items():
        session = open_session(path, threads=1)
        feed = {session.get_inputs()[0].name: torch.randn(batch, *image).numpy()}
        calls[name] = lambda s=session, f=feed: s.run(None, f)
    return measure(calls, seconds=seconds)


def latencies(files: dict[str, Path], image: tuple[int, ...], seconds: float) -> dict[str, dict[str, float]]:
    """Print what each network takes at two batch sizes; the columns of its row."""
    columns: dict[str, dict[str, float]] = {name: {} for name in files}
    print("\n| batch | dense, ms | pruned, ms | pruned ÷ dense |\n|---:|---:|---:|---:|")
    for batch in (1, 32):
        timings = latency(files, image, batch, seconds)
        ratio = Ratio.between(timings["pruned"], timings["dense"])
        print(f"| {batch} | {timings['dense'].median_ms:.3f} | {timings['pruned'].median_ms:.3f} | {ratio} |")
        for name, timing in timings.items():
            columns[name] |= {f"ms_{batch}": timing.median_ms}
        columns["pruned"] |= {f"ratio_{batch}": ratio.median}
    return columns


def spread(values: list[float]) -> dict[str, float | None]:
    """Accuracy and its deviation over the seeds, as far as there are any."""
    return {
        "accuracy": statistics.mean(values) if values else None,
        **({"accuracy_std": statistics.stdev(values)} if len(values) > 1 else {}),
    }


def write(rows: list[dict[str, Any]], asked: argparse.Namespace) -> None:
    results.write(
        f"channel_pruning_{asked.data}",
        rows,
        columns={
            "network": "ResNet-20",
            **({} if asked.latency_only else {"accuracy": ("test accuracy, %", ".2f")}),
            "macs": "multiply-adds",
            "parameters": "parameters",
            "bytes": "ONNX file, bytes",
            "ms_1": ("batch 1, ms", ".3f"),
            "ratio_1": ("÷ dense", ".2f"),
            "ms_32": ("batch 32, ms", ".3f"),
            "ratio_32": ("÷ dense", ".2f"),
        },
        seeds=asked.seeds[:1] if asked.latency_only else asked.seeds,
        notes=[
            f"{asked.sparsity:.0%} of the channels in every group removed.",
            "Untrained." if asked.latency_only else f"{asked.epochs} epochs each, the last one tested.",
            "Latency of ONNX Runtime on one thread.",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="cifar10")
    parser.add_argument("--root", default="data", help="where the data is")
    parser.add_argument("--epochs", type=int, default=160)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsity", type=float, default=0.3, help="share of channels; 0.3 halves the multiply-adds")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each latency")
    parser.add_argument("--latency-only", action="store_true", help="untrained networks, no data")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/channel_pruning_DATA.json")
    asked = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    kind, image = DATA[asked.data]
    sparsity = asked.sparsity
    example = torch.randn(2, *image)
    print(f"{asked.data}: {sparsity:.0%} of the channels in every group")
    found: dict[str, list[float]] = {"dense": [], "pruned": []}
    sizes: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in asked.seeds[:1] if asked.latency_only else asked.seeds:
            files = {}
            for name in found:
                torch.manual_seed(seed)
                net: nn.Module = ResNet(image[0], 10)
                if asked.latency_only:
                    net = pruned(net, image, sparsity) if name == "pruned" else net
                else:
                    data = kind(root=asked.root, seed=seed, augment="crop_flip" if asked.data == "cifar10" else "none")
                    data.prepare_data()
                    train(net, image, data, asked.epochs, sparsity if name == "pruned" else 0.0, seed)
                    net = shrink(net, example).model if name == "pruned" else net
                files[name] = to_onnx(net, example, Path(folder, f"{name}.onnx")).path
                weights = sum(p.numel() for p in net.parameters())
                size, count = files[name].stat().st_size, macs(net, image)
                line = f"{count / 1e6:.2f}M multiply-adds, {weights} parameters, {size} B"
                sizes[name] = {"macs": count, "parameters": weights, "bytes": size}
                if not asked.latency_only:
                    found[name].append(100 * accuracy(files[name], data))
                    line += f", test accuracy {found[name][-1]:.2f} %"
                print(f"seed {seed}, {name}: {line}", flush=True)
        for name, values in found.items():
            if len(values) > 1:
                print(
                    f"{name}: {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} %, {asked.epochs} epochs"
                )
        columns = latencies(files, image, asked.seconds)
    if asked.write:
        write([{"network": name, **sizes[name], **spread(found[name]), **columns[name]} for name in found], asked)


if __name__ == "__main__":
    main()
