"""Plain numbers, bit for bit: floats and integers split into byte planes, each stored the cheapest way.

The exponents of a network's biases, norms and scales take few values, their mantissas look random. A float is
rotated left by one bit, so that its top byte holds exponent bits and no sign, and the planes separate the two.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lightning_compress.export.packed.codec import entropy as coding
from lightning_compress.export.packed.varints import Reader, Writer

_STORED, _DEFLATED, _CODED = range(3)

SAMPLE = 1 << 16
"""Bytes of a plane by which the way to store it is chosen."""
BLOCK = 1 << 16
"""Numbers at a time, which the processor's cache holds."""


def encode(data: NDArray[np.uint8], width: int, *, rotate: bool) -> bytes:
    """Code numbers.

    Args:
        data: Their bytes, little-endian.
        width: Bytes in a number.
        rotate: Whether the numbers are floats of 2, 4 or 8 bytes, whose sign is to leave the top byte.
    """
    writer = Writer()
    planes = np.empty((width, data.size // width), np.uint8)
    for start in range(0, planes.shape[1], BLOCK):
        numbers = data.view(f"<u{width}")[start : start + BLOCK]
        if rotate:
            numbers = numbers << 1 | numbers >> (8 * width - 1)
        planes[:, start : start + BLOCK] = numbers.view(np.uint8).reshape(-1, width).T
    for plane in planes:
        # Deflating is slow, so that a sample says which way suits a large plane.
        sample = plane[:SAMPLE] if plane.size > SAMPLE else plane
        method = min(_METHODS, key=lambda method: len(_METHODS[method](sample)))
        stored = _METHODS[method](plane)
        writer.byte(method)
        if method != _STORED:
            writer.number(len(stored))
        writer.raw(stored)
    return bytes(writer.data)


def decode(reader: Reader, count: int, width: int, *, rotate: bool) -> NDArray[np.uint8]:
    """The inverse of ``encode`` for ``count`` numbers; the caller has checked that so many fit in memory."""
    planes = np.empty((count, width), np.uint8)
    for k in range(width):
        method = reader.byte("plane.method", largest=_CODED)
        stored = reader.view(count if method == _STORED else reader.number("plane.length"), "plane")
        if method == _STORED:
            planes[:, k] = np.frombuffer(stored, np.uint8)
        elif method == _DEFLATED:
            planes[:, k] = np.frombuffer(inflate(stored, count, reader, "plane"), np.uint8)
        else:
            planes[:, k] = _decode(stored, count, reader)
    data = planes.reshape(-1)
    if rotate:
        for start in range(0, count, BLOCK):
            numbers = data.view(f"<u{width}")[start : start + BLOCK]
            numbers[:] = numbers >> 1 | numbers << (8 * width - 1)
    return data


def deflate(data: bytes) -> bytes:
    """Raw deflate (RFC 1951), as hard as zlib tries."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def inflate(data: bytes | memoryview, length: int, reader: Reader, field: str) -> bytes:
    """The inverse of ``deflate``, which never gives more than the ``length`` bytes that there should be."""
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = decompressor.decompress(data, length + 1)
    except zlib.error as error:
        raise reader.damaged(field, f"not deflated data ({error})") from None
    if len(found) != length or not decompressor.eof or decompressor.unused_data:
        raise reader.damaged(field, f"deflated data of another length than the {length} bytes that should be")
    return found


def _code(plane: NDArray[np.uint8]) -> bytes:
    lowest, highest = (int(plane.min()), int(plane.max())) if plane.size else (0, 0)
    weights = coding.weight_codes(coding.histogram(plane)[lowest : highest + 1])
    encoder = coding.Encoder()
    encoder.put(plane - np.uint8(lowest), coding.frequencies(weights))
    return bytes([lowest, highest - lowest, *weights]) + encoder.finish()


_METHODS: dict[int, Callable[[NDArray[np.uint8]], bytes]] = {
    _STORED: lambda plane: plane.tobytes(),
    _DEFLATED: lambda plane: deflate(plane.tobytes()),
    _CODED: _code,
}


def _decode(stored: memoryview, count: int, outer: Reader) -> NDArray[np.uint8]:
    reader = Reader(stored, outer.where)
    lowest = reader.byte("plane.lowest")
    spread = reader.byte("plane.spread", largest=255 - lowest)
    model = coding.frequencies(list(reader.raw(spread + 1, "plane.table")))
    decoder = coding.Decoder(reader.rest(), outer.where)
    found = decoder.take(count, model) + np.uint8(lowest)
    decoder.close()
    return found
