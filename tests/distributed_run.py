"""One of two ranks: trains under DDP, each rank on batches of other data and other size, and writes what it has."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import (
    CompressedCheckpoint,
    CompressedExport,
    CompressionMonitor,
    GradualMagnitudePruning,
    QuantizationAwareTraining,
)
from lightning_compress.export import save_packed
from lightning_compress.quantization import find

RANK = int(os.environ["LOCAL_RANK"])
STEPS = 6


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
        self.unused = nn.Linear(8, 8)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def loader(batch_size: int, seed: int) -> DataLoader[Any]:
    x = torch.randn(STEPS * batch_size, 8, generator=torch.Generator().manual_seed(seed)) * (1 + seed)
    return DataLoader(TensorDataset(x, x[:, :4].argmax(1)), batch_size)


def run(folder: Path, strategy: DDPStrategy, ckpt_path: Path | None = None) -> dict[str, Any]:
    """Fit, and give everything that must be equal on both ranks."""
    torch.manual_seed(RANK)
    callbacks = [
        GradualMagnitudePruning(
            0.75, start=1, end=8, every=1, criterion="movement", regrow="random", ignore=["unused"]
        ),
        QuantizationAwareTraining(start=3, freeze_range=11),
        CompressionMonitor(),
        CompressedExport(folder / f"export{RANK}", formats=["packed"], latency=False, module="net"),
        CompressedCheckpoint(folder / "best", filename="best", monitor="val/loss"),
        CompressedCheckpoint(folder / "all", filename="{step}", every_n_train_steps=1, save_top_k=-1),
    ]
    module = Module()
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, loader(4 + 2 * RANK, RANK), loader(4, 7), ckpt_path=ckpt_path)
    quantization = find(module)
    packed = folder / f"rank{RANK}.packed"
    save_packed(module, packed)
    return {
        "masks": callbacks[0].pruner.masks,
        "weights": {name: value.clone() for name, value in module.named_parameters()},
        "ranges": {name: q.range for name, q in quantization.activations.items()},
        "scales": {name: q.scale() for name, q in quantization.layers.items()},
        "packed": hashlib.sha256(packed.read_bytes()).hexdigest(),
        "best": Path(callbacks[4].best_model_path).name,
        "history": callbacks[2].history,
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    whole = run(out / "whole", DDPStrategy(find_unused_parameters=True))
    resumed = run(out / "resumed", DDPStrategy(static_graph=True), out / "whole" / "all" / "step=6.ckpt")
    torch.save({"whole": whole, "resumed": resumed}, out / f"{RANK}.pt")
