"""LightningModules that know nothing of compression, and a quiet Trainer."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from networks import ResidualNet
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy


class PlainModule(L.LightningModule):
    """Builds its layers where it is told to: ``"init"``, ``"setup"`` or ``"configure_model"``."""

    def __init__(self, where: str = "init", lr: float = 0.05, calls_net: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.where, self.lr, self.calls_net = where, lr, calls_net
        self.accuracy = MulticlassAccuracy(5)
        if where == "init":
            self._build()

    def _build(self) -> None:
        self.net: nn.Module = ResidualNet()

    def setup(self, stage: str) -> None:
        if self.where == "setup" and not hasattr(self, "net"):
            self._build()

    def configure_model(self) -> None:
        if self.where == "configure_model" and not hasattr(self, "net"):
            self._build()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        logits = self.net(x) if self.calls_net else self(x)
        loss = F.cross_entropy(logits, y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Any, split: str) -> None:
        x, y = batch
        logits = self.net(x) if self.calls_net else self(x)
        self.accuracy(logits, y)
        self.log(f"{split}/accuracy", self.accuracy, on_epoch=True)
        self.log(f"{split}/loss", F.cross_entropy(logits, y), on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


def loader(batches: int = 8, seed: int = 0, scale: float = 1.0) -> DataLoader[Any]:
    """Batches of 8 random images in 5 classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8 * batches, 3, 8, 8, generator=generator) * scale
    y = torch.randint(0, 5, (8 * batches,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def quiet_trainer(**settings: Any) -> L.Trainer:
    """A Trainer on the CPU that prints and writes nothing unless told to."""
    defaults: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**{**defaults, **settings})
