"""A small convolutional network for small images."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_compress.models.resnet import Block


class SmallCNN(nn.Module):
    """A convolution, a residual block, a residual block at half the size, and a linear layer.

    It has every structure that matters to quantized inference in little space: batch norm after convolutions,
    residual adds with and without a projection, global pooling.

    Args:
        in_channels: Channels of the image.
        num_classes: Number of classes.
        width: Channels of the first half; the second has twice as many.

    Example:
        >>> import torch
        >>> SmallCNN(1, 10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.block1 = Block(width, width, stride=1)
        self.block2 = Block(width, 2 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [B, C, H, W] to logits float32 [B, num_classes]."""
        x = self.block2(self.block1(self.relu(self.bn1(self.conv1(x)))))
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits
