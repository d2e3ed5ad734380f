"""One weight as one chunk: parameters of its models, then what they coded, then leftover floats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_compress.export.packed.codec import byte_planes as planes
from lightning_compress.export.packed.codec import entropy as coding
from lightning_compress.export.packed.codec import mask as positions
from lightning_compress.export.packed.codec.nonzero_values import Values
from lightning_compress.export.packed.varints import Reader, Writer


@dataclass(frozen=True)
class Coded:
    """A coded weight.

    Attributes:
        data: The chunk.
        positions: How many of its bytes say where the nonzero weights are; the rest say what they are.
        entropy_bound: Fewest bytes for independent integers with these frequencies, mask and values together.
    """

    data: bytes
    positions: int
    entropy_bound: float = 0.0


def encode_integers(integers: NDArray[np.int8]) -> Coded:
    """Code quantized integers from -127 to 127, of the weight's own shape (one dimension or more)."""
    mask = integers != 0
    where = positions.fit(mask)
    nonzero = np.compress(mask.reshape(-1), integers)
    values = Values.fit(nonzero)
    writer, encoder = Writer(), coding.Encoder()
    where.write(writer)
    values.write(writer)
    where.encode(mask, encoder)
    values.encode(nonzero, encoder)
    data = bytes(writer.data) + encoder.finish()
    # One stream holds both, so that the border between them is where the models' costs put it.
    share = where.bits / max(where.bits + values.bits, 1.0)
    counts = coding.histogram(nonzero.view(np.uint8))
    counts[0] = integers.size - nonzero.size
    counts = counts[counts > 0]
    bound = float((counts * (np.log2(integers.size) - np.log2(counts))).sum()) / 8 if integers.size else 0.0
    return Coded(data, round(share * len(data)), bound)


def decode_integers(data: bytes, shape: tuple[int, ...], where: str) -> NDArray[np.int8]:
    """The inverse of ``encode_integers``; the caller has checked that the shape fits in memory."""
    reader = Reader(data, where)
    model = positions.read(shape, reader)
    values = Values.read(reader)
    decoder = coding.Decoder(reader.rest(), where)
    mask = model.decode(decoder)
    found = np.zeros(shape, np.int8)
    found[mask] = values.decode(int(np.count_nonzero(mask)), reader, decoder)
    decoder.close()
    return found


def encode_sparse(data: NDArray[np.uint8], shape: tuple[int, ...], width: int) -> Coded | None:
    """Code floats of which many are zero, or give ``None`` where that would not be smaller.

    Negative zeros come back as zeros: masking by multiplication leaves them behind, and their signs would cost a bit
    for every pruned weight.

    Args:
        data: Bytes of the floats.
        shape: Their shape (one dimension or more).
        width: Bytes in a float.
    """
    numbers = data.view(f"<u{width}")
    mask = (numbers << 1 != 0).reshape(shape)
    if np.count_nonzero(mask) > 0.98 * mask.size:
        return None
    where = positions.fit(mask)
    writer, encoder = Writer(), coding.Encoder()
    where.write(writer)
    where.encode(mask, encoder)
    coded = encoder.finish()
    writer.number(len(coded))
    writer.raw(coded)
    first = len(writer.data)
    writer.raw(planes.encode(np.compress(mask.reshape(-1), numbers).view(np.uint8), width, rotate=True))
    return Coded(bytes(writer.data), first)


def decode_sparse(data: bytes, shape: tuple[int, ...], width: int, where: str) -> NDArray[np.uint8]:
    """The inverse of ``encode_sparse``; the caller has checked that the shape fits in memory."""
    reader = Reader(data, where)
    model = positions.read(shape, reader)
    decoder = coding.Decoder(reader.raw(reader.number("positions.length"), "positions"), where)
    mask = model.decode(decoder).reshape(-1)
    decoder.close()
    found = np.zeros(mask.size, f"<u{width}")
    found[mask] = planes.decode(reader, int(np.count_nonzero(mask)), width, rotate=True).view(found.dtype)
    reader.end()
    return found.view(np.uint8)
