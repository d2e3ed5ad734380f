"""A network of depthwise separable convolutions, for keywords and other small tasks."""

from __future__ import annotations

from torch import Tensor, nn


class SeparableBlock(nn.Module):
    """A 3 x 3 convolution within each channel, then a 1 x 1 convolution across channels.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(width), nn.ReLU()
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(width), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [B, width, H, W] to the same shape."""
        x = self.relu1(self.bn1(self.depthwise(x)))
        out: Tensor = self.relu2(self.bn2(self.pointwise(x)))
        return out


class DSCNN(nn.Module):
    """DS-CNN of Zhang and others 2017, "Hello Edge": a strided convolution, then separable ones, then the mean.

    Args:
        in_channels: Channels of the spectrogram or image.
        num_classes: Number of classes.
        width: Channels.
        blocks: Number of separable convolutions.

    Example:
        >>> import torch
        >>> DSCNN(1, 10)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 64, blocks: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 5, stride=2, padding=2, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.blocks = nn.Sequential(*(SeparableBlock(width) for _ in range(blocks)))
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [B, C, H, W] to logits float32 [B, num_classes]."""
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits
