from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from lightning_compress.data import MNIST, FashionMNIST
from lightning_compress.data.idx import read_idx
from lightning_compress.errors import CompressionError


def idx(array: np.ndarray) -> bytes:
    """The format as LeCun's page states it, written with struct."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_set(folder: Path, *, packed: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (40, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(40, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
    }
    for name, array in arrays.items():
        raw = idx(array)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(raw) if packed else raw)
    return arrays


@pytest.mark.parametrize("packed", [True, False])
def test_an_idx_file_gives_back_its_array(tmp_path: Path, packed: bool) -> None:
    arrays = write_set(tmp_path, packed=packed)
    name = "train-images-idx3-ubyte"
    assert np.array_equal(read_idx(tmp_path / (f"{name}.gz" if packed else name)), arrays[name])


@pytest.mark.parametrize("folder", ["", "mnist"])
def test_files_are_found_in_the_root_or_in_a_folder_of_the_name(tmp_path: Path, folder: str) -> None:
    arrays = write_set(tmp_path / folder)
    data = MNIST(tmp_path)
    data.prepare_data()
    pixels = data.read()
    assert np.array_equal(pixels.images[:, 0], arrays["train-images-idx3-ubyte"])
    assert np.array_equal(pixels.labels, arrays["train-labels-idx1-ubyte"])
    assert pixels.test_images is not None
    assert np.array_equal(pixels.test_images[:, 0], arrays["t10k-images-idx3-ubyte"])


def test_missing_files_are_named_with_both_ways_out(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(CompressionError) as error:
        FashionMNIST(tmp_path).prepare_data()
    message = str(error.value)
    assert "fashion_mnist needs t10k-labels-idx1-ubyte.gz, found neither" in message
    assert "train-images" not in message
    assert str(tmp_path) in message
    assert "data.download=true" in message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"not idx at all", "not an idx file"),
        (idx(np.zeros((3, 4), np.uint8))[:-1], "the header promises 3x4 values and the file holds 11"),
        (b"\x00\x00", "not an idx file"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(raw)
    with pytest.raises(CompressionError, match=f"train-images-idx3-ubyte: .*{message}"):
        read_idx(path)


def test_a_cut_gzip_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(idx(np.zeros(1000, np.uint8)))[:-9])
    with pytest.raises(CompressionError, match=r"labels\.gz: cannot be unpacked"):
        read_idx(path)
