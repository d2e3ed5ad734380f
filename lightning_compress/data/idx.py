"""MNIST and Fashion-MNIST from their published idx files."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_compress.data.download import fetch
from lightning_compress.data.images import ImageData, Pixels
from lightning_compress.data.memory import missing_files
from lightning_compress.errors import CompressionError


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, gzipped or not.

    The format is LeCun's: two zero bytes, a type byte (8 for unsigned bytes), the number of dimensions, each
    dimension as a big-endian 32-bit integer, then the values.

    Returns:
        uint8 array of the shape that the header names.

    Raises:
        CompressionError: The file is damaged or holds something else.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError) as error:
        raise CompressionError(
            f"{path}: cannot be unpacked ({error}). Delete it and fetch it again with data.download=true."
        ) from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise CompressionError(f"{path}: not an idx file of unsigned bytes. Fetch it again with data.download=true.")
    rank = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    if len(raw) != 4 + 4 * rank + math.prod(shape):
        raise CompressionError(
            f"{path}: the header promises {'x'.join(map(str, shape))} values and the file holds "
            f"{len(raw) - 4 - 4 * rank}. Delete it and fetch it again with data.download=true."
        )
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


class IdxData(ImageData):
    """A data set published as four idx files.

    Args:
        root: Directory that holds the files, or a directory named after the data set with the files.
        download: Whether to fetch files that are missing.
        options: See :class:`ImageData`.
    """

    url: ClassVar[str]
    md5: ClassVar[dict[str, str]]
    """File name to MD5, in the order training images, training labels, test images, test labels."""

    def __init__(self, root: str | Path, *, download: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.download = Path(root).expanduser(), download

    def prepare_data(self) -> None:
        """Find the files, or fetch them when asked to.

        Raises:
            CompressionError: Files are missing or the download fails.
        """
        missing = [name for name in self.md5 if self._find(name) is None]
        if missing and not self.download:
            raise missing_files(self.root, self.name, missing, ", or add data.download=true to fetch them")
        for name in missing:
            fetch(self.url + name, self.root / self.name / name, "md5", self.md5[name])

    def read(self) -> Pixels:
        """Read the four files."""
        found = [self._find(name) for name in self.md5]
        missing = [name for name, path in zip(self.md5, found, strict=True) if path is None]
        if missing:
            raise missing_files(self.root, self.name, missing, ", or add data.download=true to fetch them")
        images, labels, test_images, test_labels = (read_idx(path) for path in found if path is not None)
        for x, y in ((images, labels), (test_images, test_labels)):
            if x.ndim != 3 or y.shape != x.shape[:1]:
                raise CompressionError(f"{self.name}: {x.shape} images and {y.shape} labels do not fit together.")
        return Pixels(
            images[:, None],
            labels.astype(np.int64),
            test_images[:, None],
            test_labels.astype(np.int64),
            f"{self.name}, the published idx files",
        )

    def _find(self, name: str) -> Path | None:
        plain = name.removesuffix(".gz")
        places = [folder / file for folder in (self.root / self.name, self.root) for file in (name, plain)]
        return next((path for path in places if path.is_file()), None)


class MNIST(IdxData):
    """Handwritten digits, 1 x 28 x 28, ten classes (Y. LeCun, C. Cortes, C. Burges)."""

    name = "mnist"
    url = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    md5: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    }


class FashionMNIST(IdxData):
    """Photographs of clothes, 1 x 28 x 28, ten classes (Zalando, H. Xiao and others 2017)."""

    name = "fashion_mnist"
    url = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    md5: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    }
