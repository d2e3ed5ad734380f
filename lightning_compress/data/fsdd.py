"""Spoken digits as spectrograms: keyword spotting on the Free Spoken Digit Dataset."""

from __future__ import annotations

import math
import re
import wave
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.data.images import ImageData, Pixels
from lightning_compress.data.memory import find_file, missing_files
from lightning_compress.errors import CompressionError

RATE = 8000
BINS = 32
"""Mel bins, and frames of a recording's second."""
_WINDOW, _HOP = 512, RATE // BINS
_RANGE_DB = 60.0
_ARCHIVE, _FOLDER = "fsdd.npz", "recordings"
_RECORDING = re.compile(r"(\d)_(\w+)_(\d+)\.wav")
_TEST_RECORDINGS = 5


class SpokenDigits(ImageData):
    """Recordings of ten digits by six speakers as 1 x 32 x 32 log-mel spectrograms, ten classes (Z. Jackson 2016).

    The middle second of each recording, 32 mel bins (rows, low to high) by 32 frames of 31 ms, decibels below the
    recording's own peak. The split is the published one: recordings 0 to 4 of every digit and speaker are the test
    set.

    Args:
        root: Directory that holds ``recordings/``, the published wav files, or ``fsdd.npz``, the same samples in one
            file; or a directory ``fsdd/`` with one of them.
        options: See :class:`ImageData`.
    """

    name = "fsdd"

    def __init__(self, root: str | Path, **options: Any) -> None:
        super().__init__(**options)
        self.root = Path(root).expanduser()

    def prepare_data(self) -> None:
        """Find the files.

        Raises:
            CompressionError: They are missing.
        """
        self._find()

    def read(self) -> Pixels:
        """Read the recordings and compute their spectrograms."""
        path = self._find()
        train, test = _from_archive(path) if path.suffix == ".npz" else _from_folder(path)
        images, test_images = (spectrograms(waves) for waves, _ in (train, test))
        return Pixels(images, train[1], test_images, test[1], f"Free Spoken Digit Dataset, {path.name}")

    def _find(self) -> Path:
        folders = (place / _FOLDER for place in (self.root / self.name, self.root))
        folder = next((place for place in folders if place.is_dir()), None)
        path = folder or find_file(self.root, self.name, _ARCHIVE)
        if path is None:
            raise missing_files(self.root, self.name, [f"{_FOLDER}/ (the published wav files) or {_ARCHIVE}"], "")
        return path


Recordings = tuple[list[NDArray[np.int16]], NDArray[np.int64]]


def spectrograms(recordings: Sequence[NDArray[np.int16]]) -> NDArray[np.uint8]:
    """Log-mel spectrograms of the middle second, in bytes.

    Args:
        recordings: int16 [samples] each, at 8 kHz, of any length.

    Returns:
        uint8 [N, 1, 32, 32]: mel bin, frame; 255 is the recording's peak, 0 is 60 dB below it or less.

    Example:
        >>> tone = (8000 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)).astype(np.int16)
        >>> image = spectrograms([tone])[0, 0]
        >>> image.shape, int(image[:, 16].argmax())
        ((32, 32), 14)
    """
    filters, window = mel_filters(), np.hanning(_WINDOW)
    images = np.empty((len(recordings), 1, BINS, BINS), np.uint8)
    for image, recording in zip(images, recordings, strict=True):
        samples = np.zeros(RATE + _WINDOW - _HOP)
        middle = recording[max(0, (len(recording) - RATE) // 2) :][:RATE]
        start = (len(samples) - len(middle)) // 2
        samples[start : start + len(middle)] = middle
        frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP] * window
        power = filters @ (np.abs(np.fft.rfft(frames, axis=1)) ** 2).T
        decibels = 10 * np.log10(np.maximum(power, 1e-9) / max(power.max(), 1e-9))
        image[0] = np.round(255 * np.clip(1 + decibels / _RANGE_DB, 0, 1))
    return images


def mel_filters() -> NDArray[np.float64]:
    """Triangles that are equally spaced on the mel scale from 0 to 4 kHz (O'Shaughnessy 1987): [bins, frequencies]."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BINS + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / RATE)
    low, centre, high = (edges[i : i + BINS, None] for i in range(3))
    rising, falling = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    return np.maximum(0, np.minimum(rising, falling))


def _from_archive(path: Path) -> tuple[Recordings, Recordings]:
    """Training and test recordings of ``fsdd.npz``: all samples end to end, and where each recording begins."""
    try:
        with np.load(path) as archive:
            parts = [
                (np.split(archive[f"audio_{part}"], archive[f"offsets_{part}"][1:-1]), archive[f"y_{part}"])
                for part in ("train", "test")
            ]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise CompressionError(f"{path}: cannot be read as recordings ({error}). Copy it again.") from error
    train, test = ((waves, labels.astype(np.int64)) for waves, labels in parts)
    return train, test


def _from_folder(folder: Path) -> tuple[Recordings, Recordings]:
    """Training and test recordings of the published files, ``{digit}_{speaker}_{number}.wav``."""
    parts: dict[bool, Recordings] = {}
    named = [(path, _RECORDING.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    for test in (False, True):
        chosen = [(path, m) for path, m in named if m is not None and (int(m[3]) < _TEST_RECORDINGS) == test]
        if not chosen:
            raise CompressionError(f"{folder}: there are no {'test' if test else 'training'} recordings 0_name_7.wav.")
        parts[test] = [_samples(path) for path, _ in chosen], np.array([int(m[1]) for _, m in chosen], np.int64)
    return parts[False], parts[True]


def _samples(path: Path) -> NDArray[np.int16]:
    try:
        with wave.open(str(path)) as file:
            kind = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise CompressionError(f"{path}: cannot be read as a wav file ({error}). Fetch it again.") from error
    if kind != (1, 2, RATE):
        raise CompressionError(f"{path}: expected mono, 16 bits, {RATE} Hz; the file has {kind}.")
    return np.frombuffer(raw, "<i2").astype(np.int16)
