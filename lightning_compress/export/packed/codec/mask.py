"""Where the nonzero weights are: coded masks, below the entropy of their overall density where they have structure.

Two models compete for each tensor, seen as a matrix of its first dimension by all others; the cheaper is kept.

* ``Classes``: rows and columns fall into a few classes of similar density (dead inputs, busy channels), and each
  pair of classes has a density of its own.
* ``Groups``: 4 or 8 neighbours form one symbol with a table of its own, which finds ``n:m`` and block patterns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_compress.export.packed.codec import entropy as coding
from lightning_compress.export.packed.codec.density_classes import Labels, density_classes, merge
from lightning_compress.export.packed.varints import Reader, Writer

Shape = tuple[int, ...]
Bits = NDArray[np.uint8]

MOST_CLASSES = 32
BLOCK = 1 << 16
"""Groups that are taken apart at a time."""
SAMPLE = 1 << 20
"""Weights on which the two models are compared; a larger tensor is judged by its first rows."""

_AS_IS, _TRANSPOSED, _INPUTS_LAST = range(3)
_GROUPS = {1: 4, 2: 8}
"""Kind of model in the file → neighbours in a group; 0 is ``Classes``."""


def matrix(shape: Shape) -> tuple[int, int]:
    """Rows and columns of the matrix that a weight is seen as."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape) // rows if rows else 0


def fit(mask: NDArray[np.bool_]) -> Classes | Groups:
    """The cheaper model for a mask of the weight's own shape; True where the weight is not zero."""
    if not mask.size:
        return Classes(mask.shape, 0, Labels.single(1), Labels.single(1), [[0]], 0.0)
    rows = max(1, SAMPLE * len(mask) // mask.size)
    sample = mask[:rows] if mask.ndim > 1 else mask[:SAMPLE]
    orders = (_AS_IS, _TRANSPOSED, _INPUTS_LAST)[: mask.ndim]
    trials = [Groups.fit(sample, order, kind) for order in orders for kind in _GROUPS]
    best = min(trials, key=lambda model: model.bits)
    classes = Classes.fit(mask)
    # Classes decode faster, eight weights at a time, so that groups must save something worth having.
    if best.bits * mask.size / sample.size >= 0.995 * classes.bits:
        return classes
    return best if sample.size == mask.size else Groups.fit(mask, best.order, best.kind)


def read(shape: Shape, reader: Reader) -> Classes | Groups:
    """Read a model's parameters."""
    kind = reader.byte("positions.kind", largest=max(_GROUPS))
    return Groups.read(shape, kind, reader) if kind else Classes.read(shape, reader)


@dataclass(frozen=True)
class Classes:
    """Densities by class of row and class of column.

    Attributes:
        shape: The mask's shape.
        unit: What has a class of its own across a row: 0 a column, 1 an input channel, 2 a kernel position.
        rows: Classes of the rows.
        columns: Classes of the units.
        codes: Density code of each pair of classes.
        bits: Cost in bits with all parameters.
    """

    shape: Shape
    unit: int
    rows: Labels
    columns: Labels
    codes: list[list[int]]
    bits: float

    @classmethod
    def fit(cls, mask: NDArray[np.bool_]) -> Classes:
        """The cheapest classes found for a mask."""
        found = [cls._fit(mask, unit) for unit in ((0, 1, 2) if mask.ndim > 2 else (0,))]
        return min(found, key=lambda classes: classes.bits)

    @classmethod
    def _fit(cls, mask: NDArray[np.bool_], unit: int) -> Classes:
        flat = mask.reshape(matrix(mask.shape)).view(np.uint8)
        repeat, tile, units = _unit_layout(mask.shape, unit)
        per_row = flat.sum(1, dtype=np.int64)
        rows = density_classes(per_row, flat.shape[1], 16)
        # Summing row classes first leaves one small table, from which all merges are judged.
        by_row_class = np.stack([flat[rows == k].sum(0, dtype=np.int64) for k in range(int(rows.max()) + 1)])
        by_unit = by_row_class.reshape(-1, tile, units, repeat).sum((1, 3))
        columns = density_classes(by_unit.sum(0), len(flat) * repeat * tile, 24)
        ones = np.stack([by_unit[:, columns == k].sum(1) for k in range(int(columns.max()) + 1)], 1)
        row_sizes, unit_sizes = np.bincount(rows), np.bincount(columns)
        merged = merge(ones, row_sizes, unit_sizes, repeat * tile)
        row_labels = Labels.of(merged.rows[rows])
        unit_labels = Labels.of(merged.columns[columns])
        codes = [
            [coding.density_code(int(n), int(size)) for n, size in zip(*pair, strict=True)]
            for pair in zip(merged.ones, merged.sizes, strict=True)
        ]
        bits = row_labels.bits + unit_labels.bits + 8 * (2 + len(codes) * len(codes[0]))
        for line, ns, sizes in zip(codes, merged.ones, merged.sizes, strict=True):
            for code, n, size in zip(line, ns, sizes, strict=True):
                bits += coding.information(np.array([size - n, n]), coding.bit_frequencies(code))
        return cls(mask.shape, unit, row_labels, unit_labels, codes, bits)

    @classmethod
    def read(cls, shape: Shape, reader: Reader) -> Classes:
        """Read the parameters; the classes themselves are coded."""
        unit = reader.byte("positions.unit", largest=2 if len(shape) > 2 else 0)
        _, _, units = _unit_layout(shape, unit)
        rows = Labels.read(matrix(shape)[0], MOST_CLASSES, reader, "positions.rows")
        columns = Labels.read(units, MOST_CLASSES, reader, "positions.columns")
        codes = [
            [reader.byte("positions.density") for _ in range(len(columns.weights))] for _ in range(len(rows.weights))
        ]
        return cls(shape, unit, rows, columns, codes, 0.0)

    def write(self, writer: Writer) -> None:
        """Write the parameters."""
        writer.byte(0)
        writer.byte(self.unit)
        self.rows.write(writer)
        self.columns.write(writer)
        for line in self.codes:
            for code in line:
                writer.byte(code)

    def encode(self, mask: NDArray[np.bool_], encoder: coding.Encoder) -> None:
        """Code the classes, then the mask, pair by pair of classes."""
        self.rows.encode(encoder)
        self.columns.encode(encoder)
        flat = mask.reshape(matrix(self.shape)).view(np.uint8)
        if self._is_single:
            encoder.put_bits(flat.reshape(-1), self.codes[0][0])
            return
        columns = self._columns()
        for i, line in enumerate(self.codes):
            part = flat[self.rows.values == i]
            for j, code in enumerate(line):
                bits = part if len(line) == 1 else part[:, columns[j]]
                encoder.put_bits(bits.reshape(-1), code)

    def decode(self, decoder: coding.Decoder) -> NDArray[np.bool_]:
        """The inverse of ``encode``."""
        self.rows.decode(decoder)
        self.columns.decode(decoder)
        rows, columns = matrix(self.shape)
        if self._is_single:
            return decoder.take_bits(rows * columns, self.codes[0][0]).view(np.bool_).reshape(self.shape)
        flat = np.zeros((rows, columns), np.uint8)
        by_column = self._columns()
        order = np.argsort(np.concatenate(by_column))
        for i, line in enumerate(self.codes):
            selected = np.flatnonzero(self.rows.values == i)
            parts = [
                decoder.take_bits(len(selected) * len(of_class), code).reshape(len(selected), len(of_class))
                for code, of_class in zip(line, by_column, strict=True)
            ]
            flat[selected] = parts[0] if len(parts) == 1 else np.take(np.concatenate(parts, 1), order, axis=1)
        return flat.view(np.bool_).reshape(self.shape)

    @property
    def _is_single(self) -> bool:
        return len(self.codes) == 1 and len(self.codes[0]) == 1

    def _columns(self) -> list[NDArray[np.intp]]:
        repeat, tile, _ = _unit_layout(self.shape, self.unit)
        spread = np.tile(np.repeat(self.columns.values, repeat), tile)
        return [np.flatnonzero(spread == j) for j in range(len(self.columns.weights))]


@dataclass(frozen=True)
class Groups:
    """Neighbouring positions as one symbol.

    Attributes:
        shape: The mask's shape.
        order: 0 along the columns as they are, 1 along rows, 2 along input channels.
        kind: 1 for groups of 4, 2 for groups of 8.
        weights: Weight code of each of the patterns.
        bits: Cost in bits with all parameters.
    """

    shape: Shape
    order: int
    kind: int
    weights: list[int]
    bits: float

    @classmethod
    def fit(cls, mask: NDArray[np.bool_], order: int, kind: int) -> Groups:
        """The table for a mask."""
        symbols = _grouped(mask, order, _GROUPS[kind])
        counts = np.bincount(symbols, minlength=1 << _GROUPS[kind])
        weights = coding.weight_codes(counts)
        bits = 8 * (2 + len(weights)) + coding.information(counts, coding.frequencies(weights))
        return cls(mask.shape, order, kind, weights, bits)

    @classmethod
    def read(cls, shape: Shape, kind: int, reader: Reader) -> Groups:
        """Read the parameters."""
        order = reader.byte("positions.order", largest=min(len(shape) - 1, _INPUTS_LAST))
        return cls(shape, order, kind, list(reader.raw(1 << _GROUPS[kind], "positions.table")), 0.0)

    def write(self, writer: Writer) -> None:
        """Write the parameters."""
        writer.byte(self.kind)
        writer.byte(self.order)
        writer.raw(bytes(self.weights))

    def encode(self, mask: NDArray[np.bool_], encoder: coding.Encoder) -> None:
        """Code the patterns, each row padded with zeros to whole groups."""
        encoder.put(_grouped(mask, self.order, _GROUPS[self.kind]), self._model)

    def decode(self, decoder: coding.Decoder) -> NDArray[np.bool_]:
        """The inverse of ``encode``."""
        size = _GROUPS[self.kind]
        ordered = _ordered_shape(self.shape, self.order)
        width = -(-ordered[1] // size)
        symbols = decoder.take(ordered[0] * width, self._model).reshape(ordered[0], width)
        flat = np.empty(ordered, np.uint8)
        # In blocks, since a row that is shorter than its groups takes several times its bytes for a moment.
        for start in range(0, ordered[0], rows := max(1, BLOCK // max(width, 1))):
            bits = np.unpackbits(symbols[start : start + rows, :, None], axis=2)[:, :, 8 - size :]
            flat[start : start + rows] = bits.reshape(len(bits), width * size)[:, : ordered[1]]
        return _restored(flat.view(np.bool_), self.shape, self.order)

    @cached_property
    def _model(self) -> coding.Frequencies:
        return coding.frequencies(self.weights)


def _unit_layout(shape: Shape, unit: int) -> tuple[int, int, int]:
    """How often the class of a unit is repeated in place and as a whole along a row, and how many units there are."""
    columns = matrix(shape)[1]
    if unit == 0:
        return 1, 1, columns
    kernel = math.prod(shape[2:])
    return (kernel, 1, shape[1]) if unit == 1 else (1, shape[1], kernel)


def _ordered_shape(shape: Shape, order: int) -> tuple[int, int]:
    rows, columns = matrix(shape)
    return (columns, rows) if order == _TRANSPOSED else (rows, columns)


def _grouped(mask: NDArray[np.bool_], order: int, size: int) -> Bits:
    flat = mask.reshape(matrix(mask.shape))
    if order == _TRANSPOSED:
        flat = flat.T
    elif order == _INPUTS_LAST:
        flat = np.moveaxis(mask, 1, -1).reshape(flat.shape)
    rows, columns = flat.shape
    width = -(-columns // size)
    bits = np.zeros((rows, width * size), np.uint8)
    bits[:, :columns] = flat
    packed = np.packbits(bits.reshape(-1))
    return packed if size == 8 else np.stack([packed >> 4, packed & 15], 1).reshape(-1)[: rows * width]


def _restored(flat: NDArray[np.bool_], shape: Shape, order: int) -> NDArray[np.bool_]:
    if order == _TRANSPOSED:
        return np.ascontiguousarray(flat.T).reshape(shape)
    if order == _INPUTS_LAST:
        moved = flat.reshape(shape[0], *shape[2:], shape[1])
        return np.ascontiguousarray(np.moveaxis(moved, -1, 1))
    return flat.reshape(shape)
