"""monai: a U-Net of volumes with the library's Dice loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import Trained
from libraries.own_module import LINES, train_around

REQUIREMENTS = ("monai",)
__all__ = ["LINES", "REQUIREMENTS", "train"]


def train(callbacks: list[Any], folder: Path) -> Trained:
    """Bright voxels of noise."""
    import torch
    from monai.losses import DiceLoss
    from monai.networks.nets import UNet

    network = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16), strides=(2,), num_res_units=1)
    dice = DiceLoss(to_onehot_y=True, softmax=True)
    volumes = torch.randn(32, 1, 8, 8, 8)
    samples = [{"image": volume, "label": (volume > 0).float()} for volume in volumes]
    loss = lambda net, batch: dice(net(batch["image"]), batch["label"])  # noqa: E731
    return train_around(network, loss, samples, callbacks, folder)
