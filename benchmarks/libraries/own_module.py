"""A plain LightningModule around a network of a library that has no trainer of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from libraries import QUIET, Trained

LINES = "trainer = L.Trainer(..., callbacks=callbacks)"


class Around(L.LightningModule):
    """Calls ``network`` as the library's documentation calls it; ``loss(network, batch)`` is its loss."""

    def __init__(self, network: torch.nn.Module, loss: Callable[[Any, Any], torch.Tensor]) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        """The loss."""
        return self.loss(self.network, batch)

    def validation_step(self, batch: Any, _: int) -> None:
        """Logs it."""
        self.log("val_loss", self.loss(self.network, batch), batch_size=8)

    def predict_step(self, batch: Any, _: int) -> torch.Tensor:
        """The loss, which every network has."""
        return self.loss(self.network, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 1e-3)


def train_around(
    network: torch.nn.Module,
    loss: Callable[[Any, Any], torch.Tensor],
    samples: Sequence[Any],
    callbacks: list[Any],
    folder: Path,
    **loading: Any,
) -> Trained:
    """Train on samples, of which the last quarter validates."""
    module = Around(network, loss)
    kept = 3 * len(samples) // 4
    kind = loading.pop("loader", DataLoader)
    loaders = [kind(part, batch_size=8, **loading) for part in (samples[:kept], samples[kept:])]
    trainer = L.Trainer(max_epochs=4, default_root_dir=folder, callbacks=callbacks, **QUIET)
    trainer.fit(module, *loaders)
    return Trained(module, lambda: trainer.predict(module, loaders[1]))
