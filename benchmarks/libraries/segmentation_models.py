"""segmentation-models-pytorch: a U-Net with the library's Dice loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import Trained
from libraries.own_module import LINES, train_around

REQUIREMENTS = ("segmentation-models-pytorch",)
__all__ = ["LINES", "REQUIREMENTS", "train"]


def train(callbacks: list[Any], folder: Path) -> Trained:
    """Bright pixels of noise."""
    import segmentation_models_pytorch as smp
    import torch

    network = smp.Unet("resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=(32, 16, 8), classes=1)
    dice = smp.losses.DiceLoss("binary")
    images = torch.randn(32, 3, 32, 32)
    samples = [(image, (image[:1] > 0).float()) for image in images]
    return train_around(network, lambda net, batch: dice(net(batch[0]), batch[1]), samples, callbacks, folder)
