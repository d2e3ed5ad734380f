"""Values of the nonzero integers: signs, and magnitudes under a table of a few steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_compress.export.packed.codec import entropy as coding
from lightning_compress.export.packed.varints import Reader, Writer

LARGEST = 127
"""Magnitudes are 1 to 127: symmetric integers of at most 8 bits."""

_STEP_BITS = 16
"""What a step costs in the file: its width and its weight."""


@dataclass(frozen=True)
class Values:
    """A model for nonzero integers.

    Magnitudes 1, 2, … are covered by consecutive steps; within a step all are equally likely. Steps are as many as
    pay for themselves, so that a small tensor gets a coarse table and a large one an exact one.

    Attributes:
        negative: Density code of negative values.
        widths: Number of magnitudes in each step.
        weights: Weight code of each magnitude of the step.
        bits: Cost in bits with all parameters.
    """

    negative: int
    widths: list[int]
    weights: list[int]
    bits: float

    @classmethod
    def fit(cls, values: NDArray[np.int8]) -> Values:
        """The cheapest table for values, none of which is 0."""
        by_byte = coding.histogram(values.view(np.uint8))
        negatives = int(by_byte[128:].sum())
        negative = coding.density_code(negatives, values.size)
        signs = np.array([values.size - negatives, negatives])
        bits = 16 + coding.information(signs, coding.bit_frequencies(negative))
        if not values.size:
            return cls(negative, [], [], 16)
        # As bytes in two's complement, -1, -2, … are 255, 254, …
        counts = np.trim_zeros(by_byte[1:128] + by_byte[:128:-1], "b")
        widths = _steps(counts)
        starts = np.concatenate([[0], np.cumsum(widths)[:-1]])
        weights = coding.weight_codes(np.add.reduceat(counts, starts) / widths)
        bits += _STEP_BITS * len(widths) + coding.information(counts, _table(widths, weights))
        return cls(negative, widths, weights, bits)

    @classmethod
    def read(cls, reader: Reader) -> Values:
        """Read the parameters."""
        negative = reader.byte("values.negative")
        steps = reader.byte("values.steps", largest=LARGEST)
        pairs = [(reader.byte("values.width"), reader.byte("values.weight")) for _ in range(steps)]
        widths = [width for width, _ in pairs]
        if 0 in widths or sum(widths) > LARGEST:
            raise reader.damaged("values.width", f"a table of {widths} magnitudes")
        return cls(negative, widths, [code for _, code in pairs], 0.0)

    def write(self, writer: Writer) -> None:
        """Write the parameters."""
        writer.byte(self.negative)
        writer.byte(len(self.widths))
        for width, code in zip(self.widths, self.weights, strict=True):
            writer.byte(width)
            writer.byte(code)

    def encode(self, values: NDArray[np.int8], encoder: coding.Encoder) -> None:
        """Code signs, then magnitudes."""
        encoder.put_bits((values < 0).view(np.uint8), self.negative)
        encoder.put(np.abs(values).view(np.uint8) - np.uint8(1), _table(self.widths, self.weights))

    def decode(self, count: int, reader: Reader, decoder: coding.Decoder) -> NDArray[np.int8]:
        """The inverse of ``encode``."""
        if count and not self.widths:
            raise reader.damaged("values.steps", f"0, yet there are {count} values")
        negative = decoder.take_bits(count, self.negative).view(np.int8)
        found = decoder.take(count, _table(self.widths, self.weights)).view(np.int8)
        found += 1
        # Two's complement: flipping all bits and adding one negates.
        np.bitwise_xor(found, -negative, out=found)
        found += negative
        return found


def _table(widths: list[int], weights: list[int]) -> coding.Frequencies:
    codes = [code for width, code in zip(widths, weights, strict=True) for _ in range(width)]
    return coding.frequencies(codes or [1])


def _steps(counts: NDArray[np.int64]) -> list[int]:
    """Widths of steps: neighbours are merged as long as that makes table and data together cheaper."""
    sizes = np.ones(len(counts), np.int64)
    totals = counts.astype(np.int64)
    while len(sizes) > 1:
        pair = sizes[1:] + sizes[:-1], totals[1:] + totals[:-1]
        loss = _cost(*pair) - _cost(sizes[1:], totals[1:]) - _cost(sizes[:-1], totals[:-1])
        k = int(np.argmin(loss))
        if loss[k] > _STEP_BITS:
            break
        sizes = np.concatenate([sizes[:k], [pair[0][k]], sizes[k + 2 :]])
        totals = np.concatenate([totals[:k], [pair[1][k]], totals[k + 2 :]])
    return [int(size) for size in sizes]


def _cost(sizes: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bits of a step's values, up to a constant: ``n log2(width / n)``."""
    return totals * (np.log2(sizes) - np.log2(np.maximum(totals, 1)))
