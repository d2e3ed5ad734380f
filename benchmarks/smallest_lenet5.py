"""The smallest file of LeNet-5 on MNIST that keeps its error near one percent: channels, then weights, then bits.

Channels first, since every channel that goes takes its bias and its column of the next layer with it; what is left is
pruned without a pattern and trained with few bits. The dense network teaches both stages. The size is that of the whole
packed file, against the float32 weights of the dense LeNet-5 (431,080 parameters); the error is that of the packed
file, read again, on the 10,000 test images. Bayesian compression (Louizos and others 2017) reports 419 times at 1.0 %
error for the same network.

    python benchmarks/smallest_lenet5.py --root ~/data --seeds 0 1 2 --write

A stage that is finished is not trained again, and ``--write`` keeps every finished seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import results
import torch
from torch import Tensor, nn

from lightning_compress import GradualMagnitudePruning, KnowledgeDistillation, QuantizationAwareTraining
from lightning_compress.data import MNIST
from lightning_compress.distillation import Logits
from lightning_compress.export import load_packed, save_packed
from lightning_compress.models import Classifier, LeNet5
from lightning_compress.pruning import shrink

NAME = "smallest_lenet5"
IMAGE = (1, 28, 28)
CHANNELS = {"net.conv1": 0.5, "net.conv2": 0.6, "net.fc1": 0.84}
"""Share of the channels of each layer that goes: 20, 50 and 500 become 10, 20 and 80."""


def main() -> None:
    """Train what is missing, print, and keep where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="where the data is")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsity", type=float, default=0.92, help="of the weights that are left by the channels")
    parser.add_argument("--bits", type=int, default=4, help="of weights")
    parser.add_argument("--epochs", type=int, nargs=3, default=[6, 3, 12], help="of the three stages")
    parser.add_argument("--work", type=Path, help="where stages are kept; outputs/smallest_lenet5 by default")
    parser.add_argument("--write", action="store_true", help=f"keep the numbers in benchmarks/results/{NAME}.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    work = asked.work or results.ROOT / "outputs" / NAME
    for seed in asked.seeds:
        row = smallest(asked, work / f"seed{seed}", seed)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if asked.write:
            keep(row)


def smallest(asked: argparse.Namespace, work: Path, seed: int) -> dict[str, Any]:
    """All stages of one seed."""
    data = MNIST(root=asked.root, batch_size=128, augment="crop", crop_padding=1, seed=seed)
    L.seed_everything(seed, verbose=False)
    dense = module(LeNet5(1, 28, 10))
    dense_bytes = 4 * sum(parameter.numel() for parameter in dense.parameters())
    stage(work / "dense.pt", dense, data, asked.epochs[0], [])

    narrow = copy.deepcopy(dense)
    overrides = {name: {"final_sparsity": share} for name, share in CHANNELS.items()}
    by_channel = GradualMagnitudePruning(0.5, pattern="channel", distribution="uniform", overrides=overrides)
    stage(work / "channels.pt", narrow, data, asked.epochs[1], [by_channel, taught_by(dense)])
    small = module(shrink(narrow.net, torch.randn(2, *IMAGE)).model)

    packed = work / f"{asked.sparsity:g}_{asked.bits}bits.packed"
    if not packed.exists():
        compression = [
            GradualMagnitudePruning(asked.sparsity, start=0.05, end=0.5),
            QuantizationAwareTraining(
                asked.bits, 8, start=0.4, range="learned", weight_granularity="tensor", first_last_bits=None
            ),
            taught_by(dense),
        ]
        trained = copy.deepcopy(small)
        fit(trained, data, asked.epochs[2], compression)
        save_packed(trained, packed)
    again = load_packed(packed, small).net
    size = packed.stat().st_size
    return {
        "seed": seed,
        "channels": "-".join(str(layer.weight.shape[0]) for layer in layers(again)),
        "weights": sum(int(layer.weight.count_nonzero()) for layer in layers(again)),
        "bits": asked.bits,
        "dense_error": error(dense.net, data),
        "error": error(again, data),
        "bytes": size,
        "times_smaller": round(dense_bytes / size, 1),
    }


def module(net: nn.Module) -> Classifier:
    """A network with the settings of its training."""
    return Classifier(net, num_classes=10, lr=0.003, weight_decay=0.01, input_shape=IMAGE)


def taught_by(dense: Classifier) -> KnowledgeDistillation:
    """Distillation from a copy of the dense network."""
    return KnowledgeDistillation(copy.deepcopy(dense), [Logits(temperature=4.0)])


def stage(path: Path, trained: Classifier, data: MNIST, epochs: int, callbacks: list[L.Callback]) -> None:
    """Train a network in place, or read the weights that it had after that."""
    if path.exists():
        trained.load_state_dict(torch.load(path, weights_only=True))
        return
    fit(trained, data, epochs, callbacks)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(trained.state_dict(), path)


def fit(trained: Classifier, data: MNIST, epochs: int, callbacks: list[L.Callback]) -> None:
    """Train a network in place."""
    L.seed_everything(data.seed, verbose=False)
    L.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    ).fit(trained, datamodule=data)
    trained.eval()


def layers(net: nn.Module) -> list[Any]:
    """Convolutions and linear layers, from input to output."""
    return [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def error(net: nn.Module, data: MNIST) -> float:
    """Error on the test images in percent."""
    data.prepare_data()
    data.setup("test")
    net.eval()
    wrong, count = 0, 0
    with torch.no_grad():
        for x, y in data.test_dataloader():
            answers: Tensor = net(x)
            wrong, count = wrong + int((answers.argmax(1) != y).sum()), count + len(y)
    return round(100 * wrong / count, 2)


def keep(row: dict[str, Any]) -> None:
    """Write one seed beside those that were kept before."""
    path = results.FOLDER / f"{NAME}.json"
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []
    same = ("seed", "bits")
    rows = [old for old in earlier if any(old[key] != row[key] for key in same)] + [row]
    results.write(
        NAME,
        sorted(rows, key=lambda one: (one["bits"], one["seed"])),
        columns={
            "seed": "seed",
            "channels": "channels of the layers",
            "weights": "weights that are not zero",
            "bits": "bits",
            "dense_error": ("dense error, %", ".2f"),
            "error": ("error of the packed file, %", ".2f"),
            "bytes": "whole file, bytes",
            "times_smaller": ("× smaller than float32 LeNet-5", ".0f"),
        },
        seeds=sorted({one["seed"] for one in rows}),
        threads=1,
    )


if __name__ == "__main__":
    main()
