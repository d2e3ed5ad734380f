from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from lightning_compress.data import SpokenDigits
from lightning_compress.data.fsdd import mel_filters, spectrograms
from lightning_compress.errors import CompressionError


def tone(hertz: float, seconds: float) -> np.ndarray:
    return np.round(9000 * np.sin(2 * np.pi * hertz * np.arange(round(8000 * seconds)) / 8000)).astype(np.int16)


def write_wav(path: Path, samples: np.ndarray, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


def recordings() -> dict[str, np.ndarray]:
    """Three digits, seven recordings each; the first five are the published test set."""
    return {f"{d}_jo_{n}.wav": tone(300 * (d + 1), 0.3 + 0.02 * n) for d in range(3) for n in range(7)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, samples in recordings().items():
        write_wav(tmp_path / "fsdd" / "recordings" / name, samples)
    return tmp_path


def test_the_published_files_are_split_as_published(folder: Path) -> None:
    data = SpokenDigits(folder, val_fraction=0.5)
    data.prepare_data()
    pixels = data.read()
    assert pixels.images.shape == (6, 1, 32, 32)
    assert pixels.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert pixels.test_labels is not None
    assert np.bincount(pixels.test_labels).tolist() == [5, 5, 5]


def test_the_archive_gives_what_the_published_files_give(folder: Path, tmp_path: Path) -> None:
    found = recordings()
    arrays: dict[str, np.ndarray] = {}
    for part, numbers in (("train", (5, 6)), ("test", range(5))):
        names = [f"{d}_jo_{n}.wav" for d in range(3) for n in numbers]
        arrays[f"audio_{part}"] = np.concatenate([found[name] for name in names])
        arrays[f"offsets_{part}"] = np.cumsum([0, *(len(found[name]) for name in names)])
        arrays[f"y_{part}"] = np.array([int(name[0]) for name in names], np.uint8)
    (tmp_path / "other").mkdir()
    np.savez(tmp_path / "other" / "fsdd.npz", **arrays)
    ours, theirs = SpokenDigits(tmp_path / "other").read(), SpokenDigits(folder).read()
    assert np.array_equal(ours.images, theirs.images)
    assert ours.test_images is not None
    assert theirs.test_images is not None
    assert np.array_equal(ours.test_images, theirs.test_images)
    assert np.array_equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("hertz", [400, 1000, 2500])
def test_a_tone_is_brightest_in_the_mel_bin_of_its_frequency(hertz: int) -> None:
    image = spectrograms([tone(hertz, 1.0)])[0, 0]
    # The scale's definition by itself: 34 edges from 0 to mel(4000), the bin whose centre is nearest.
    centres = np.linspace(0, 1127.0105 * np.log(1 + 4000 / 700), 34)[1:-1]
    expected = int(np.abs(centres - 1127.0105 * np.log(1 + hertz / 700)).argmin())
    assert (image[:, 4:28].argmax(axis=0) == expected).all()
    assert image.max() == 255


def test_the_filters_cover_every_frequency_between_their_first_and_last_centres_once() -> None:
    frequencies = np.arange(257) * 8000 / 512
    between = (frequencies > 60) & (frequencies < 3700)
    assert np.allclose(mel_filters().sum(axis=0)[between], 1)


def test_loudness_does_not_change_a_spectrogram() -> None:
    loud, quiet = tone(700, 0.5), (tone(700, 0.5) // 4).astype(np.int16)
    assert np.abs(spectrograms([loud])[0].astype(int) - spectrograms([quiet])[0]).max() <= 3


def test_a_long_recording_gives_its_middle_second() -> None:
    long = np.concatenate([tone(400, 0.8), tone(2500, 1.0), tone(400, 0.8)])
    assert (
        spectrograms([long])[0, 0, :, 2:30].argmax(axis=0).tolist()
        == [int(spectrograms([tone(2500, 1.0)])[0, 0, :, 16].argmax())] * 28
    )


def test_absent_files_are_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"data\.root: fsdd needs recordings/ .* or fsdd\.npz.*Point data\.root"):
        SpokenDigits(tmp_path).prepare_data()


def test_another_sampling_rate_is_refused(folder: Path) -> None:
    path = folder / "fsdd" / "recordings" / "0_jo_6.wav"
    write_wav(path, tone(300, 0.3), rate=16000)
    with pytest.raises(CompressionError, match=r"0_jo_6\.wav: expected mono, 16 bits, 8000 Hz"):
        SpokenDigits(folder).read()


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fsdd.npz").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(CompressionError, match=r"fsdd\.npz: cannot be read as recordings"):
        SpokenDigits(tmp_path).read()
