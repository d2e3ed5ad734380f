"""Classes of rows and columns: found by density, merged where that saves bytes, and stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.export.packed.codec import entropy as coding
from lightning_compress.export.packed.varints import Reader, Writer

Counts = NDArray[np.int64]
Classes = NDArray[np.intp]


@dataclass(frozen=True)
class Labels:
    """The class of each of a number of things.

    Attributes:
        values: The classes; zeros until ``decode``.
        weights: Weight code of each class.
        bits: Cost in bits with the weights.
    """

    values: NDArray[np.uint8]
    weights: list[int]
    bits: float

    @classmethod
    def single(cls, count: int) -> Labels:
        """All in one class."""
        return cls(np.zeros(count, np.uint8), [1], 8.0)

    @classmethod
    def of(cls, values: NDArray[Any]) -> Labels:
        """Labels for known classes, which are 0, 1, … without gaps."""
        counts = np.bincount(values)
        if len(counts) == 1:
            return cls.single(len(values))
        weights = coding.weight_codes(counts)
        bits = 8 * (1 + len(weights)) + coding.information(counts, coding.frequencies(weights))
        return cls(values.astype(np.uint8), weights, bits)

    @classmethod
    def read(cls, count: int, most: int, reader: Reader, field: str) -> Labels:
        """Read the weights; the classes are coded and follow by ``decode``."""
        classes = reader.byte(field, largest=most)
        if classes == 0:
            raise reader.damaged(field, "0 classes")
        weights = list(reader.raw(classes, field)) if classes > 1 else [1]
        return cls(np.zeros(count, np.uint8), weights, 0.0)

    def write(self, writer: Writer) -> None:
        """Write the weights; a single class needs none."""
        writer.byte(len(self.weights))
        if len(self.weights) > 1:
            writer.raw(bytes(self.weights))

    def encode(self, encoder: coding.Encoder) -> None:
        """Code the classes."""
        encoder.put(self.values, coding.frequencies(self.weights))

    def decode(self, decoder: coding.Decoder) -> None:
        """Fill in the classes."""
        self.values[:] = decoder.take(len(self.values), coding.frequencies(self.weights))


@dataclass(frozen=True)
class Merged:
    """Fewer classes.

    Attributes:
        rows: Fine class of rows → merged class.
        columns: Fine class of columns → merged class.
        ones: Nonzero weights of each pair of merged classes.
        sizes: All weights of each pair.
    """

    rows: Classes
    columns: Classes
    ones: Counts
    sizes: Counts


def density_classes(ones: Counts, size: int, most: int) -> Classes:
    """Group things by density: one-dimensional k-means on the square root of the density.

    The square root makes the spread of a count about equal at all densities.

    Args:
        ones: Nonzero weights of each thing.
        size: All weights of each thing.
        most: Number of classes, at most.

    Returns:
        Class of each thing: 0, 1, … by rising density, without gaps.
    """
    density = np.sqrt((ones + 0.375) / (size + 0.75))
    centres = np.unique(np.quantile(density, (np.arange(most) + 0.5) / most))
    for _ in range(12):
        found = np.searchsorted((centres[1:] + centres[:-1]) / 2, density)
        totals = np.bincount(found, density, len(centres))
        counts = np.bincount(found, minlength=len(centres))
        centres = totals[counts > 0] / counts[counts > 0]
    found = np.searchsorted((centres[1:] + centres[:-1]) / 2, density)
    return np.unique(found, return_inverse=True)[1].reshape(-1)


def merge(ones: Counts, row_sizes: Counts, column_sizes: Counts, repeats: int) -> Merged:
    """Merge neighbouring classes as long as that makes the whole cheaper.

    Args:
        ones: Nonzero weights of each pair of classes: ``[rows, columns]``.
        row_sizes: Rows in each class.
        column_sizes: Units of columns in each class.
        repeats: Columns in a unit.
    """
    rows, columns = np.arange(len(row_sizes)), np.arange(len(column_sizes))
    cost = _cost(ones, row_sizes, column_sizes, repeats)
    best = (cost, rows, columns, ones, row_sizes, column_sizes)
    while ones.shape != (1, 1):
        trials = []
        for k in range(len(row_sizes) - 1):
            trial = np.add.reduceat(ones, _without(k, len(row_sizes)), 0)
            sizes = np.add.reduceat(row_sizes, _without(k, len(row_sizes)))
            trials.append((_cost(trial, sizes, column_sizes, repeats), 0, k))
        for k in range(len(column_sizes) - 1):
            trial = np.add.reduceat(ones, _without(k, len(column_sizes)), 1)
            sizes = np.add.reduceat(column_sizes, _without(k, len(column_sizes)))
            trials.append((_cost(trial, row_sizes, sizes, repeats), 1, k))
        cost, axis, k = min(trials)
        if axis == 0:
            ones = np.add.reduceat(ones, _without(k, len(row_sizes)), 0)
            row_sizes = np.add.reduceat(row_sizes, _without(k, len(row_sizes)))
            rows = rows - (rows > k)
        else:
            ones = np.add.reduceat(ones, _without(k, len(column_sizes)), 1)
            column_sizes = np.add.reduceat(column_sizes, _without(k, len(column_sizes)))
            columns = columns - (columns > k)
        if cost <= best[0]:
            best = (cost, rows, columns, ones, row_sizes, column_sizes)
    _, rows, columns, ones, row_sizes, column_sizes = best
    return Merged(rows, columns, ones, np.outer(row_sizes, column_sizes) * repeats)


def _without(k: int, count: int) -> NDArray[np.intp]:
    """Starts of the groups when ``k`` and ``k + 1`` become one."""
    return np.delete(np.arange(count), k + 1)


def _cost(ones: Counts, row_sizes: Counts, column_sizes: Counts, repeats: int) -> float:
    sizes = np.outer(row_sizes, column_sizes) * repeats
    labels = _entropy(row_sizes) + _entropy(column_sizes)
    tables = 8 * (ones.size + len(row_sizes) + len(column_sizes))
    return _binary(ones, sizes) + labels + tables


def _entropy(counts: Counts) -> float:
    total = counts.sum()
    return float((counts * (np.log2(total) - np.log2(np.maximum(counts, 1)))).sum())


def _binary(ones: Counts, sizes: Counts) -> float:
    zeros = sizes - ones
    each = sizes * np.log2(np.maximum(sizes, 1))
    each -= ones * np.log2(np.maximum(ones, 1)) + zeros * np.log2(np.maximum(zeros, 1))
    return float(each.sum())
