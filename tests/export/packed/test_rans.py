"""The compiled coder and ``constriction``'s give the same words and take each other's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from lightning_compress.errors import CompressionError
from lightning_compress.export.packed.codec import entropy as coding
from lightning_compress.export.packed.codec import rans

RNG = np.random.default_rng(0)
Runs = list[tuple[np.ndarray, np.ndarray]]


@pytest.fixture(autouse=True)
def _mode() -> Iterator[None]:
    yield
    rans.use_compiled("auto")


def run(symbols: int, count: int, skew: float) -> tuple[np.ndarray, np.ndarray]:
    counts = np.exp(-skew * np.arange(symbols))
    model = coding.frequencies(coding.weight_codes(counts))
    return RNG.choice(symbols, count, p=counts / counts.sum()).astype(np.uint8), model


CASES: dict[str, Runs] = {
    "nothing": [],
    "one symbol": [run(2, 1, 1.0)],
    "a few": [run(5, 3, 0.2)],
    "two alphabets": [run(127, 5000, 0.03), run(2, 333, 3.0)],
    "the largest alphabet": [run(256, 9000, 0.0)],
    "rare symbols": [run(256, 9000, 0.9)],
    "almost certain": [(np.zeros(70_000, np.uint8), coding.bit_frequencies(0))],
    "more than a block": [run(16, rans.BLOCK + 77, 0.3)],
}


def decoded(words: np.ndarray, runs: Runs) -> list[np.ndarray]:
    decoder, found = rans.Decoder(words), []
    for symbols, model in runs:
        found.append(decoder.take(symbols.size, model))
    assert decoder.is_empty()
    return found


@pytest.mark.parametrize("name", CASES)
def test_both_coders_give_the_same_words_and_take_each_others(name: str) -> None:
    runs = CASES[name]
    words = {}
    for mode in (True, False):
        rans.use_compiled(mode)
        words[mode] = rans.encode(runs)
    np.testing.assert_array_equal(words[True], words[False])
    for mode in (True, False):
        rans.use_compiled(mode)
        for found, (symbols, _) in zip(decoded(words[not mode], runs), runs, strict=True):
            np.testing.assert_array_equal(found, symbols)


@pytest.mark.parametrize("compiled", [True, False])
def test_symbols_that_are_left_are_seen(compiled: bool) -> None:
    rans.use_compiled(compiled)
    symbols, model = run(16, 4000, 0.1)
    decoder = rans.Decoder(rans.encode([(symbols, model)]))
    decoder.take(3000, model)
    assert not decoder.is_empty()


def test_damaged_words_give_the_same_symbols_from_both() -> None:
    symbols, model = run(100, 5000, 0.05)
    words = rans.encode([(symbols, model)])
    words[words.size // 2] ^= 12345
    found = []
    for mode in (True, False):
        rans.use_compiled(mode)
        found.append(rans.Decoder(words).take(5000, model))
    np.testing.assert_array_equal(*found)
    assert (found[0] != symbols).any()


@pytest.mark.parametrize(
    "model",
    [[], [1 << 24, 1], [0, 1 << 24], [-1, (1 << 24) + 1], [5, 5], [1 << 63 - 24] * 2, [1 << 16] * 257],
    ids=["none", "too much", "zero", "negative", "too little", "overflow", "too many"],
)
def test_what_is_no_model_is_refused_before_anything_is_coded_by_it(model: list[int]) -> None:
    rans.use_compiled(True)
    frequencies = np.array(model, np.int64)
    with pytest.raises(CompressionError, match="each at least 1"):
        rans.encode([(np.zeros(3, np.uint8), frequencies)])
    with pytest.raises(CompressionError, match="each at least 1"):
        rans.Decoder(np.ones(4, np.uint32)).take(3, frequencies)


@pytest.mark.parametrize(
    ("symbols", "message"), [([0, 5], "one of them"), ([0, 300], "0 to 255"), ([-1, 0], "0 to 255")]
)
def test_symbols_outside_of_their_model_are_refused(symbols: list[int], message: str) -> None:
    rans.use_compiled(True)
    model = np.array([1 << 22] * 4, np.int64)
    with pytest.raises(CompressionError, match=message):
        rans.encode([(np.array(symbols), model)])


def test_more_symbols_than_were_coded_read_nothing_that_is_not_there() -> None:
    found = []
    for mode in (True, False):
        rans.use_compiled(mode)
        symbols, model = np.arange(200, dtype=np.uint8), coding.frequencies([9] * 200)
        decoder = rans.Decoder(rans.encode([(symbols, model)]))
        found.append(decoder.take(5000, model))
        np.testing.assert_array_equal(found[-1][:200], symbols)
    np.testing.assert_array_equal(*found)
