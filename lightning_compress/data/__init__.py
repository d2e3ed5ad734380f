"""Image classification data held in memory: digits, MNIST, Fashion-MNIST, CIFAR-10."""

from lightning_compress.data.cifar10 import CIFAR10
from lightning_compress.data.digits import Digits
from lightning_compress.data.idx import MNIST, FashionMNIST
from lightning_compress.data.images import ImageData, Pixels

__all__ = ["CIFAR10", "MNIST", "Digits", "FashionMNIST", "ImageData", "Pixels"]
