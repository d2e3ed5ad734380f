"""Multi-layer perceptrons over flattened images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_compress.errors import CompressionError


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    ``hidden=(300, 100)`` on 28 x 28 images is LeNet-300-100 (LeCun and others 1998, section III.C).

    Args:
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        num_classes: Number of classes.
        hidden: Width of each hidden layer.

    Example:
        >>> sum(p.numel() for p in MLP(1, 28, 10, hidden=(300, 100)).parameters())
        266610
    """

    def __init__(
        self, in_channels: int, image_size: int, num_classes: int, hidden: Sequence[int] = (512, 512, 512)
    ) -> None:
        super().__init__()
        if any(width < 1 for width in hidden):
            raise CompressionError.field("MLP.hidden", expected="positive widths", got=list(hidden))
        widths = [in_channels * image_size**2, *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [B, C, H, W] to logits float32 [B, num_classes]."""
        logits: Tensor = self.layers(x)
        return logits
