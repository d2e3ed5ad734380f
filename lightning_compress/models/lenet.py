"""LeNet-5 in the form that the pruning literature compares."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_compress.errors import CompressionError

_SMALLEST = 16


class LeNet5(nn.Module):
    """Two 5 x 5 convolutions with max pooling and two linear layers: 20, 50, 500.

    This is Caffe's variant, 431k parameters on 28 x 28 images, used by Deep Compression (Han and others 2016)
    and by what was compared with it since.

    Args:
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels, at least 16.
        num_classes: Number of classes.

    Raises:
        CompressionError: The image is too small for two unpadded convolutions.

    Example:
        >>> sum(p.numel() for p in LeNet5(1, 28, 10).parameters())
        431080
    """

    def __init__(self, in_channels: int, image_size: int, num_classes: int) -> None:
        super().__init__()
        if image_size < _SMALLEST:
            raise CompressionError.field(
                "LeNet5.image_size",
                expected=f"at least {_SMALLEST} pixels",
                got=image_size,
                fix="For smaller images, such as data=digits, use model=cnn or model=mlp.",
            )
        size = ((image_size - 4) // 2 - 4) // 2
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(50 * size**2, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [B, C, H, W] to logits float32 [B, num_classes]."""
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        logits: Tensor = self.fc2(self.relu(self.fc1(self.flatten(x))))
        return logits
