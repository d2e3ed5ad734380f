"""What all image data modules share: a seeded and recorded split, normalisation, loaders."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_compress.data.batches import ImageDataset
from lightning_compress.data.memory import MemoryData
from lightning_compress.errors import CompressionError

Augment = Literal["none", "crop", "crop_flip"]


@dataclass(frozen=True)
class Pixels:
    """A data set as it was published.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        test_images: uint8 [M, C, H, W]; ``None`` where no test set was published.
        test_labels: int64 [M].
        source: What was read, for the report.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    test_images: NDArray[np.uint8] | None
    test_labels: NDArray[np.int64] | None
    source: str


def stratified_split(
    labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Set a share of every class aside.

    Args:
        labels: int [N].
        fraction: Share to set aside, in [0, 1).
        seed: Seed of the choice.

    Returns:
        Sorted indices of what stays and of what was set aside.

    Example:
        >>> stay, aside = stratified_split(np.repeat([0, 1], 10), 0.2, seed=0)
        >>> len(stay), np.bincount(np.repeat([0, 1], 10)[aside]).tolist()
        (16, [2, 2])
    """
    rng = np.random.default_rng(seed)
    aside = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        aside[rng.permutation(members)[: round(fraction * len(members))]] = True
    return np.flatnonzero(~aside), np.flatnonzero(aside)


class ImageData(MemoryData):
    """Images in memory, split by a seed. Subclasses say how they are read.

    Args:
        batch_size: Images in a training batch.
        eval_batch_size: Images in a validation or test batch.
        val_fraction: Share of the training images, of every class, set aside for validation.
        test_fraction: Share set aside for testing where no test set was published.
        augment: Random shifts by up to ``crop_padding`` pixels, with or without mirroring.
        crop_padding: Pixels.
        seed: Seed of split, order and augmentation.

    Raises:
        CompressionError: A setting is out of its range.
    """

    name = "images"

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int = 512,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        augment: Augment = "none",
        crop_padding: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        for field, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 < share < 1:
                raise CompressionError.field(f"data.{field}", expected="a share between 0 and 1", got=share)
        if augment not in ("none", "crop", "crop_flip"):
            raise CompressionError.field("data.augment", expected="one of none, crop, crop_flip", got=augment)
        if crop_padding < 0:
            raise CompressionError.field("data.crop_padding", expected="at least 0", got=crop_padding)
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.augment, self.crop_padding = augment, crop_padding

    def read(self) -> Pixels:
        """Read the data set.

        Raises:
            CompressionError: It is not there.
        """
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read, split and normalise, once."""
        if self._sets:
            return
        pixels = self.read()
        images, labels = pixels.images, pixels.labels
        if pixels.test_images is None or pixels.test_labels is None:
            rest, test = stratified_split(labels, self.test_fraction, self.seed)
            test_images, test_labels = images[test], labels[test]
            images, labels = images[rest], labels[rest]
        else:
            test_images, test_labels = pixels.test_images, pixels.test_labels
        train, val = stratified_split(labels, self.val_fraction, self.seed + 1)
        # Of the training images alone: validation and test must not leak into the normalisation.
        mean, std = (_per_channel(images[train], moment) for moment in ("mean", "std"))
        crop = self.crop_padding if self.augment != "none" else 0
        flip = self.augment == "crop_flip"
        parts = {
            "train": (images[train], labels[train]),
            "val": (images[val], labels[val]),
            "test": (test_images, test_labels),
        }
        self._sets = {part: ImageDataset(torch.tensor(x), torch.tensor(y), mean, std) for part, (x, y) in parts.items()}
        self._sets["train"].augment_with(crop_padding=crop, flip=flip, seed=self.seed)
        self._record = {
            "name": self.name,
            "source": pixels.source,
            "seed": self.seed,
            **{part: len(data) for part, data in self._sets.items()},
            "validation": f"{self.val_fraction:g} of each class, chosen by the seed",
            "test_set": "published" if pixels.test_images is not None else f"{self.test_fraction:g} of each class",
            "classes": int(max(labels.max(), test_labels.max())) + 1,
            "image_shape": list(images.shape[1:]),
            "augment": self.augment,
            "mean": [round(value, 6) for value in mean.tolist()],
            "std": [round(value, 6) for value in std.tolist()],
            "sha256": {part: _digest(x, y) for part, (x, y) in parts.items()},
        }


def _per_channel(images: NDArray[np.uint8], moment: Literal["mean", "std"]) -> Tensor:
    """Mean or standard deviation of pixels in [0, 1], float32 [C], from exact integer sums."""
    counts = [np.bincount(images[:, c].ravel(), minlength=256) for c in range(images.shape[1])]
    values = np.arange(256) / 255
    means = [np.average(values, weights=count) for count in counts]
    if moment == "mean":
        return torch.tensor(means, dtype=torch.float32)
    spread = [
        np.sqrt(np.average((values - mean) ** 2, weights=count)) for mean, count in zip(means, counts, strict=True)
    ]
    return torch.tensor(spread, dtype=torch.float32).clamp_min(1 / 255)


def _digest(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    digest = hashlib.sha256(images.tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
