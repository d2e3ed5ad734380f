"""Residual networks for small images."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lightning_compress.errors import CompressionError


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm, added to their input.

    Args:
        inside: Channels that come in.
        outside: Channels that go out.
        stride: Stride of the first convolution.
    """

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [B, inside, H, W] to [B, outside, H / stride, W / stride]."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """The CIFAR residual network of He and others 2016, section 4.2, with projection shortcuts.

    Three stages of ``(depth - 2) / 6`` blocks with ``width``, ``2 * width`` and ``4 * width`` channels.
    ``depth=20`` has 21 convolutions; ``depth=8`` is the network of MLPerf Tiny.

    Args:
        in_channels: Channels of the image.
        num_classes: Number of classes.
        depth: 6 n + 2.
        width: Channels of the first stage.

    Raises:
        CompressionError: No whole number of blocks gives this depth.

    Example:
        >>> sum(isinstance(m, nn.Conv2d) for m in ResNet(3, 10, depth=20).modules())
        21
    """

    def __init__(self, in_channels: int, num_classes: int, depth: int = 20, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise CompressionError.field("ResNet.depth", expected="6 n + 2, such as 8, 20, 32 or 56", got=depth)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        blocks = (depth - 2) // 6
        self.stage1 = _stage(width, width, blocks, stride=1)
        self.stage2 = _stage(width, 2 * width, blocks, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [B, C, H, W] to logits float32 [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits


def _stage(inside: int, outside: int, blocks: int, stride: Literal[1, 2]) -> nn.Sequential:
    first = Block(inside, outside, stride)
    return nn.Sequential(first, *(Block(outside, outside, 1) for _ in range(blocks - 1)))
