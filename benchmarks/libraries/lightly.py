"""lightly: SimCLR, as its example in Lightning writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import Trained
from libraries.own_module import LINES, train_around

REQUIREMENTS = ("lightly",)
__all__ = ["LINES", "REQUIREMENTS", "train"]


def train(callbacks: list[Any], folder: Path) -> Trained:
    """Two noisy views of each image."""
    import torch
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, 2, 1), torch.nn.BatchNorm2d(32), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), SimCLRProjectionHead(32, 32, 16),
    )  # fmt: skip
    criterion = NTXentLoss()
    images = torch.randn(32, 3, 16, 16)
    samples = [(image + 0.1 * torch.randn(3, 16, 16), image + 0.1 * torch.randn(3, 16, 16)) for image in images]
    loss = lambda net, batch: criterion(net(batch[0]), net(batch[1]))  # noqa: E731
    return train_around(network, loss, samples, callbacks, folder)
