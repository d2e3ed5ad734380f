"""Batches of images that lie in memory: one indexing operation a batch, and an order that can be resumed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

Batch = tuple[Tensor, Tensor]


def seeded(*entropy: int) -> torch.Generator:
    """A CPU generator for a tuple of non-negative integers.

    PyTorch's CPU generator looks at 32 bits of its seed alone, so the integers are mixed and not just packed.

    Example:
        >>> int(torch.randint(1000, (), generator=seeded(1, 0))) == int(torch.randint(1000, (), generator=seeded(0, 0)))
        False
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


class ImageDataset(Dataset[Batch]):
    """Images as bytes, made into normalised floats a batch at a time.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        mean: float32 [C], of pixels in [0, 1].
        std: float32 [C].
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor) -> None:
        self.images, self.labels = images, labels
        self._scale = (1 / (255 * std))[:, None, None]
        self._shift = (mean / std)[:, None, None]
        self.crop_padding, self.flip, self.seed = 0, False, 0

    def augment_with(self, *, crop_padding: int, flip: bool, seed: int) -> None:
        """Shift images by up to ``crop_padding`` pixels, and mirror half of them, from now on."""
        self.crop_padding, self.flip, self.seed = crop_padding, flip, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        """One image [C, H, W] and its label []."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        """A whole batch: images float32 [B, C, H, W] and labels int64 [B].

        ``DataLoader`` calls this in place of ``__getitem__`` for every sample.
        """
        index = torch.tensor(indices)
        images = self.images[index]
        if self.crop_padding or self.flip:
            # Drawn from the batch's own indices, so that a resumed run sees the same crops without any state.
            draw = seeded(self.seed, zlib.crc32(index.numpy().tobytes()))
            if self.crop_padding:
                images = random_crop(images, self.crop_padding, draw)
            if self.flip:
                mirrored = torch.rand(len(images), generator=draw) < 0.5
                images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return images.float().mul_(self._scale).sub_(self._shift), self.labels[index]


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift every image by up to ``padding`` pixels each way; what comes in at the edges is 0.

    Args:
        images: [B, C, H, W].
        padding: Pixels.
        generator: Source of the shifts.

    Returns:
        Tensor of the same shape and dtype.

    Example:
        >>> random_crop(torch.ones(2, 1, 4, 4), 1, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 4, 4])
    """
    batch, size = len(images), tuple(images.shape[2:])
    padded = torch.nn.functional.pad(images, [padding] * 4).numpy()
    top, left = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator).numpy()
    # NumPy copies whole windows here, six times as fast as indexing the same view with torch.
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))
    return torch.from_numpy(np.ascontiguousarray(windows[np.arange(batch), :, top, left]))


class EpochShuffle(Sampler[int]):
    """A random order that is a function of seed and epoch alone.

    Lightning calls :meth:`set_epoch`; there is no generator whose state a checkpoint would have to keep.

    Args:
        length: Number of samples.
        seed: Seed of the order.

    Example:
        >>> sampler = EpochShuffle(4, seed=0)
        >>> list(sampler) == list(sampler)
        True
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = seeded(self.seed, self.epoch)
        yield from torch.randperm(self.length, generator=generator).tolist()


def already_a_batch(batch: Any) -> Any:
    """Collate function for a dataset that hands out whole batches."""
    return batch


class ResumableLoader(DataLoader[Batch]):
    """A loader that goes on in the middle of an epoch; Lightning stores its state in checkpoints."""

    # Set on the class, since Lightning makes the loader again from DataLoader's own arguments under DDP.
    _delivered = 0
    _skip = 0
    _skip_epoch: int | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # An epoch that the Trainer cut short is over, too: the next one has no batches behind.
        skip = self._skip if self._skip_epoch == self._epoch else 0
        self._skip = self._delivered = 0
        for batch in super().__iter__():
            self._delivered += 1
            if self._delivered > skip:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """How many batches of which epoch are behind; 0 at its end."""
        return {"delivered": self._delivered % len(self), "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Leave out, once, the batches that are behind."""
        self._skip, self._skip_epoch = state["delivered"], state["epoch"]

    @property
    def _epoch(self) -> int | None:
        """The epoch whose order comes next; ``None`` where all have the same."""
        return getattr(self.sampler, "epoch", None)
