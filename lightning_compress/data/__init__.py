"""Data held in memory: images (digits, MNIST, Fashion-MNIST, CIFAR-10), spoken digits, text."""

from lightning_compress.data.cifar10 import CIFAR10
from lightning_compress.data.clinc150 import Clinc150
from lightning_compress.data.digits import Digits
from lightning_compress.data.fsdd import SpokenDigits
from lightning_compress.data.idx import MNIST, FashionMNIST
from lightning_compress.data.images import ImageData, Pixels
from lightning_compress.data.text import Banking77, Shakespeare

__all__ = [
    "CIFAR10",
    "MNIST",
    "Banking77",
    "Clinc150",
    "Digits",
    "FashionMNIST",
    "ImageData",
    "Pixels",
    "Shakespeare",
    "SpokenDigits",
]
