"""Entropy coding of small integers: an asymmetric numeral system over models with whole-number frequencies.

Every model is a list of whole numbers that sum to ``2**24``, so that decoding needs no floating-point arithmetic
that could differ between machines. The coder is rANS (Duda et al. 2015) from ``constriction``; ``packed.md`` gives
its arithmetic, and the tests decode with an independent reader written from that description.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from lightning_compress.errors import CompressionError

PRECISION = 24
TOTAL = 1 << PRECISION
BLOCK = 1 << 20
"""Symbols at a time: ``constriction`` takes and gives 4 bytes a symbol, which are narrowed before the next block."""
Frequencies = NDArray[np.int64]


def weight(code: int) -> int:
    """The whole number behind one byte: 0 to 15 as they are, then four bits of mantissa and an exponent.

    Example:
        >>> [weight(code) for code in (3, 16, 31, 32, 255)]
        [3, 16, 31, 32, 507904]
    """
    return code if code < 16 else (16 + (code & 15)) << ((code >> 4) - 1)


def weight_codes(counts: NDArray[Any]) -> list[int]:
    """The byte for each count, after scaling the largest to the top of the range; nonzero counts stay nonzero."""
    largest = max(float(np.max(counts)), 1e-300)
    scaled = np.asarray(counts, np.float64) * (_WEIGHTS[-1] / largest)
    codes = np.searchsorted(_MIDPOINTS, scaled)
    return [int(max(code, 1)) if count else 0 for code, count in zip(codes, counts, strict=True)]


_WEIGHTS = np.array([weight(code) for code in range(256)], np.float64)
_MIDPOINTS = (_WEIGHTS[1:] + _WEIGHTS[:-1]) / 2


def frequencies(codes: Sequence[int]) -> Frequencies:
    """Turn weight codes into frequencies: each at least 1, their sum ``2**24``, the rest to the first largest.

    Example:
        >>> frequencies([1, 3]).tolist()
        [4194304, 12582912]
    """
    weights = np.array([weight(code) for code in codes], np.int64)
    total = int(weights.sum())
    if total == 0:
        weights, total = np.ones_like(weights), len(weights)
    found = 1 + weights * (TOTAL - len(weights)) // total
    found[int(np.argmax(found))] += TOTAL - int(found.sum())
    return found


def density_code(ones: int, count: int) -> int:
    """The byte for a share of ones; finer near 0 and near 1, where it matters.

    Example:
        >>> density_code(0, 10), density_code(5, 10), density_code(10, 10)
        (0, 127, 255)
    """
    share = ones / count if count else 0.0
    low = round(127 * (2 * min(share, 1 - share)) ** 0.5)
    return low if share <= 0.5 else 255 - low


def density(code: int) -> int:
    """Frequency of a one, out of ``2**24``: ``(k / 127)² / 2`` for a code k up to 127, mirrored above.

    Example:
        >>> density(127) == TOTAL // 2, density(255)
        (True, 16777215)
    """
    low = min(code, 255 - code)
    found = max(1, low * low * TOTAL // (2 * 127 * 127))
    return found if code < 128 else TOTAL - found


def bit_frequencies(code: int) -> Frequencies:
    """Frequencies of a zero and of a one."""
    one = density(code)
    return np.array([TOTAL - one, one], np.int64)


@lru_cache(maxsize=256)
def byte_frequencies(code: int) -> Frequencies:
    """Frequencies of the 256 patterns of eight independent bits, whichever their order in the byte."""
    one = density(code)
    zero = TOTAL - one
    by_ones = [max(1, (one**k * zero ** (8 - k)) >> (7 * PRECISION)) for k in range(9)]
    found = np.array([by_ones[pattern.bit_count()] for pattern in range(256)], np.int64)
    found[int(np.argmax(found))] += TOTAL - int(found.sum())
    return found


def information(counts: NDArray[Any], model: Frequencies) -> float:
    """Bits that symbols with these counts cost under a model."""
    return float(np.dot(counts, PRECISION - np.log2(model.astype(np.float64))))


def histogram(symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each of the 256 bytes comes; in blocks, since counting widens what it counts to 8 bytes."""
    even = symbols.size // 2 * 2
    pairs = np.zeros((256, 256), np.int64)
    for start in range(0, even, BLOCK):
        # Two bytes at once, which halves what there is to count.
        both = np.ascontiguousarray(symbols[start : min(start + BLOCK, even)]).view(np.uint16)
        pairs += np.bincount(both, minlength=1 << 16).reshape(256, 256)
    return pairs.sum(0) + pairs.sum(1) + np.bincount(symbols[even:], minlength=256)


class Encoder:
    """Collects runs of symbols, each run with its model, and codes them into bytes."""

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[Any], Frequencies]] = []

    def put(self, symbols: NDArray[Any], model: Frequencies) -> None:
        """Add symbols (whole numbers below ``len(model)``); a model of one symbol costs and stores nothing."""
        if symbols.size and len(model) > 1:
            self._runs.append((symbols, model))

    def put_bits(self, bits: NDArray[Any], code: int) -> None:
        """Add bits of a common density: eight to a symbol, the last few one by one."""
        whole = bits.size // 8 * 8
        self.put(np.packbits(bits[:whole]), byte_frequencies(code))
        self.put(bits[whole:], bit_frequencies(code))

    def finish(self) -> bytes:
        """Everything that was put, as bytes."""
        coder = constriction.stream.stack.AnsCoder()
        for symbols, model in reversed(self._runs):
            # A last-in-first-out coder takes the end first.
            for start in reversed(range(0, symbols.size, BLOCK)):
                coder.encode_reverse(symbols[start : start + BLOCK].astype(np.int32), _categorical(model))
        words: NDArray[np.uint32] = coder.get_compressed()
        # The last word is never zero, so that its leading zero bytes need no storage.
        return words.astype("<u4").tobytes().rstrip(b"\0")


class Decoder:
    """Gives back what an ``Encoder`` was given, in the same order.

    Args:
        data: The bytes; nothing else may follow in them.
        where: File and field, for messages.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self._where = where
        if data.endswith(b"\0"):
            raise CompressionError(f"{where}: damaged, coded data never ends in a zero byte.")
        padded = data + b"\0" * (-len(data) % 4)
        self._coder = constriction.stream.stack.AnsCoder(np.frombuffer(padded, "<u4").astype(np.uint32))

    def take(self, count: int, model: Frequencies) -> NDArray[np.uint8]:
        """Decode ``count`` symbols; the caller has checked that so many fit in memory."""
        found = np.zeros(count, np.uint8)
        if len(model) > 1:
            categorical = _categorical(model)
            for start in range(0, count, BLOCK):
                block = found[start : start + BLOCK]
                block[:] = self._coder.decode(categorical, block.size)
        return found

    def take_bits(self, count: int, code: int) -> NDArray[np.uint8]:
        """Decode ``count`` bits of a common density."""
        whole = count // 8
        packed = self.take(whole, byte_frequencies(code))
        rest = self.take(count - 8 * whole, bit_frequencies(code))
        return np.concatenate([np.unpackbits(packed), rest]) if rest.size else np.unpackbits(packed)

    def close(self) -> None:
        """Check that everything was used."""
        if not self._coder.is_empty():
            raise CompressionError(f"{self._where}: damaged, coded data is left over after the last value.")


def _categorical(model: Frequencies) -> Any:
    # With perfect=False the model's frequency of symbol i is exactly 1 + p_i when the p_i are whole numbers that
    # sum to 2**24 minus the number of symbols: no rounding is left to differ between machines or releases.
    return constriction.stream.model.Categorical((model - 1).astype(np.float64), perfect=False)
