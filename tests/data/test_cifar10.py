from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_compress.data import CIFAR10
from lightning_compress.errors import CompressionError

NAMES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def write_binary(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Six files of ten records: a label byte, then red, green and blue planes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 10, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, (6, 10), dtype=np.uint8)
    folder.mkdir(parents=True)
    for name, x, y in zip(NAMES, images, labels, strict=True):
        (folder / name).write_bytes(b"".join(bytes([b]) + a.tobytes() for a, b in zip(x, y, strict=True)))
    return images, labels


def write_jpeg(path: Path) -> np.ndarray:
    """Smooth pictures, so that JPEG changes them little; six for training and four for testing."""
    ramp = np.linspace(0, 255, 32)
    images = np.stack([np.stack([np.tile(ramp, (32, 1)) * (i + 1) / 10] * 3, -1) for i in range(10)]).astype(np.uint8)
    arrays: dict[str, np.ndarray] = {}
    for part, chosen in (("train", images[:6]), ("test", images[6:])):
        files = []
        for image in chosen:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=75)
            files.append(file.getvalue())
        arrays[f"jpeg_{part}"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"offsets_{part}"] = np.cumsum([0, *map(len, files)])
        arrays[f"y_{part}"] = np.arange(len(files), dtype=np.uint8)
    np.savez(path, **arrays)
    return images


@pytest.mark.parametrize("archive", [False, True])
def test_the_binary_version_gives_its_pixels_in_order(tmp_path: Path, archive: bool) -> None:
    folder = tmp_path / "source" / "cifar-10-batches-bin" if archive else tmp_path / "cifar-10-batches-bin"
    images, labels = write_binary(folder)
    if archive:
        with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as file:
            file.add(folder, arcname="cifar-10-batches-bin")
    pixels = CIFAR10(tmp_path).read()
    assert np.array_equal(pixels.images, images[:5].reshape(-1, 3, 32, 32))
    assert np.array_equal(pixels.labels, labels[:5].ravel())
    assert pixels.test_images is not None
    assert np.array_equal(pixels.test_images, images[5])


def test_jpeg_copies_are_decoded_and_called_what_they_are(tmp_path: Path) -> None:
    images = write_jpeg(tmp_path / "cifar10_jpeg_stream.npz")
    pixels = CIFAR10(tmp_path).read()
    assert pixels.test_images is not None
    found = np.concatenate([pixels.images, pixels.test_images]).transpose(0, 2, 3, 1)
    assert np.abs(found.astype(int) - images).mean() < 3
    assert pixels.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert "JPEG q75" in pixels.source


def test_published_pixels_are_preferred_and_a_variant_can_be_asked_for(tmp_path: Path) -> None:
    write_binary(tmp_path / "cifar10" / "cifar-10-batches-bin")
    (tmp_path / "cifar10_jpeg").mkdir()
    write_jpeg(tmp_path / "cifar10_jpeg" / "cifar10_jpeg_stream.npz")
    assert "binary" in CIFAR10(tmp_path).read().source
    assert "JPEG" in CIFAR10(tmp_path, variant="jpeg").read().source


def test_a_root_without_files_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"cifar-10-batches-bin/ or cifar-10-binary.tar.gz.*data.download=true"):
        CIFAR10(tmp_path).prepare_data()
    with pytest.raises(CompressionError, match=r"cifar10_jpeg_stream.npz") as error:
        CIFAR10(tmp_path, variant="jpeg", download=True).prepare_data()
    assert "download" not in str(error.value)


def test_a_short_batch_file_is_refused_by_name(tmp_path: Path) -> None:
    write_binary(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").write_bytes(b"\x00" * 100)
    with pytest.raises(CompressionError, match=r"data_batch_3\.bin: 100 bytes are not a whole number of 3073-byte"):
        CIFAR10(tmp_path).read()


def test_a_file_with_other_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "cifar10_jpeg_stream.npz", images=np.zeros(3))
    with pytest.raises(CompressionError, match="holds no jpeg_train, offsets_train, y_train; it holds images"):
        CIFAR10(tmp_path).read()
