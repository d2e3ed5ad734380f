"""CIFAR-10 from the published binary version, or from a file of JPEGs."""

from __future__ import annotations

import io
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_compress.data.download import fetch
from lightning_compress.data.images import ImageData, Pixels
from lightning_compress.data.memory import missing_files
from lightning_compress.errors import CompressionError

_FOLDER = "cifar-10-batches-bin"
_ARCHIVE = "cifar-10-binary.tar.gz"
_JPEG = "cifar10_jpeg_stream.npz"
_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_TRAIN = [f"data_batch_{i}.bin" for i in range(1, 6)]
_TEST = ["test_batch.bin"]
_RECORD = 1 + 3 * 32 * 32


class CIFAR10(ImageData):
    """Photographs, 3 x 32 x 32, ten classes (A. Krizhevsky 2009).

    Args:
        root: Directory that holds ``cifar-10-batches-bin/``, ``cifar-10-binary.tar.gz`` or
            ``cifar10_jpeg_stream.npz``, or a directory ``cifar10/`` or ``cifar10_jpeg/`` with one of them.
        variant: ``"binary"`` for the published pixels, ``"jpeg"`` for the JPEG copies (needs Pillow) and
            ``"auto"`` for whichever is there, published pixels first. The report says which it was.
        download: Whether to fetch the published archive when it is missing.
        options: See :class:`ImageData`.
    """

    name = "cifar10"

    def __init__(
        self,
        root: str | Path,
        *,
        variant: Literal["auto", "binary", "jpeg"] = "auto",
        download: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if variant not in ("auto", "binary", "jpeg"):
            raise CompressionError.field("data.variant", expected="one of auto, binary, jpeg", got=variant)
        self.root, self.variant, self.download = Path(root).expanduser(), variant, download

    def prepare_data(self) -> None:
        """Find the files, or fetch the published archive when asked to.

        Raises:
            CompressionError: Files are missing or the download fails.
        """
        if self._find() is not None:
            return
        if not self.download or self.variant == "jpeg":
            raise self._missing()
        fetch(_URL, self.root / self.name / _ARCHIVE, "md5", _MD5)

    def read(self) -> Pixels:
        """Read whichever form is there."""
        path = self._find()
        if path is None:
            raise self._missing()
        if path.name == _JPEG:
            return read_jpeg_stream(path)
        train, test = ([_parse(*_record_file(path, name)) for name in names] for names in (_TRAIN, _TEST))
        images, labels = (np.concatenate(part) for part in zip(*train, strict=True))
        test_images, test_labels = test[0]
        return Pixels(images, labels, test_images, test_labels, "CIFAR-10, the published binary version")

    def _find(self) -> Path | None:
        forms = {"binary": [_FOLDER, _ARCHIVE], "jpeg": [_JPEG], "auto": [_FOLDER, _ARCHIVE, _JPEG]}
        folders = (self.root, self.root / self.name, self.root / "cifar10_jpeg")
        places = (folder / form for form in forms[self.variant] for folder in folders)
        return next((path for path in places if path.exists()), None)

    def _missing(self) -> CompressionError:
        if self.variant == "jpeg":
            return missing_files(self.root, self.name, [_JPEG], "")
        wanted = [f"{_FOLDER}/ or {_ARCHIVE}" + (f" or {_JPEG}" if self.variant == "auto" else "")]
        return missing_files(self.root, self.name, wanted, ", or add data.download=true to fetch the archive")


def _record_file(path: Path, name: str) -> tuple[str, bytes]:
    """Bytes of one batch file, from the unpacked folder or from the archive."""
    where = f"{path}/{name}"
    try:
        if path.is_dir():
            return where, (path / name).read_bytes()
        with tarfile.open(path) as archive:
            member = archive.extractfile(f"{_FOLDER}/{name}")
            if member is None:
                raise CompressionError(f"{where}: not a file.")
            return where, member.read()
    except (FileNotFoundError, KeyError, tarfile.TarError, EOFError) as error:
        raise CompressionError(
            f"{where}: cannot be read ({error}). Fetch the archive again with data.download=true."
        ) from error


def _parse(where: str, raw: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Split records of one label byte and 3 x 32 x 32 pixel bytes."""
    if not raw or len(raw) % _RECORD:
        raise CompressionError(f"{where}: {len(raw)} bytes are not a whole number of {_RECORD}-byte records.")
    records = np.frombuffer(raw, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def read_jpeg_stream(path: Path) -> Pixels:
    """Decode JPEG copies of the images, stored end to end in one npz file.

    The arrays are ``jpeg_{train,test}`` uint8 (the files' bytes), ``offsets_{train,test}`` int64 [N + 1] and
    ``y_{train,test}`` uint8 [N]. No pickled objects are read.

    Raises:
        CompressionError: Pillow is missing, or the file holds something else.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise CompressionError(
            f"{path}: reading JPEG copies needs Pillow, which is not installed. Run: pip install pillow"
        ) from error
    parts: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for part in ("train", "test"):
            wanted = [f"jpeg_{part}", f"offsets_{part}", f"y_{part}"]
            if absent := [name for name in wanted if name not in stored]:
                raise CompressionError(f"{path}: holds no {', '.join(absent)}; it holds {', '.join(stored)}.")
            stream, offsets, labels = stored[wanted[0]].tobytes(), stored[wanted[1]], stored[wanted[2]]
            images = np.empty((len(offsets) - 1, 3, 32, 32), np.uint8)
            for i, (begin, end) in enumerate(pairwise(offsets)):
                with Image.open(io.BytesIO(stream[begin:end])) as picture:
                    images[i] = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
            parts[part] = images, labels.astype(np.int64)
    return Pixels(*parts["train"], *parts["test"], "CIFAR-10 (JPEG q75 copies, not the published pixels)")
