"""The packed file itself: a safetensors file with one entry, which holds a layout and checksummed chunks.

Nothing here knows what a chunk means; ``FORMAT.md`` describes all of it to the byte. Every length is checked against
the file before anything is allocated, and no byte of a file is ever executed.
"""

from __future__ import annotations

import lzma
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from lightning_compress.errors import CompressionError
from lightning_compress.export.packed.codec.byte_planes import deflate, inflate
from lightning_compress.export.packed.layout import Entry, Layout, from_bytes, to_bytes
from lightning_compress.export.packed.varints import Reader, Writer
from lightning_compress.foundation.atomic_write import replacing

VERSION = 1
_STORED, _DEFLATED, _LZMA = range(3)
LAYOUT_EXPANSION = 32
"""A layout is at most this many times longer than its compressed form, or it is stored otherwise."""

_HEADER = re.compile(
    rb'\{"__metadata__":\{"lightning-compress":"packed (\d{1,9})"\},'
    rb'"packed":\{"dtype":"U8","shape":\[(\d{1,15})\],"data_offsets":\[0,(\d{1,15})\]\}\} {0,7}'
)
# Raw LZMA without a header; these settings are part of the format.
_FILTERS = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "lc": 0, "lp": 0, "pb": 0}]
_LONGEST_HEADER = 1024
_LONGEST_LEAD = 32


def write(path: Path, entries: list[Entry], chunks: Sequence[bytes], extra: str) -> tuple[int, int]:
    """Write a file, atomically.

    Returns:
        Bytes of the header, and bytes of the layout with its lead.
    """
    layout = to_bytes(Layout(entries, [len(c) for c in chunks], [zlib.crc32(c) for c in chunks], extra))
    choices = [(_STORED, layout), (_DEFLATED, deflate(layout)), (_LZMA, _lzma(layout))]
    fitting = [choice for choice in choices if len(layout) <= LAYOUT_EXPANSION * len(choice[1])]
    method, stored = min(fitting, key=lambda choice: len(choice[1]))
    lead = Writer()
    lead.byte(method)
    lead.number(len(layout))
    lead.number(len(stored))
    lead.raw(zlib.crc32(bytes(lead.data) + stored).to_bytes(4, "little"))
    first = bytes(lead.data) + stored
    header = _header_bytes(len(first) + sum(len(chunk) for chunk in chunks))
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(header)
        file.write(first)
        for chunk in chunks:
            file.write(chunk)
    return len(header), len(first)


class Container:
    """An open packed file; chunks are read one by one when asked for.

    Args:
        path: The file.

    Raises:
        CompressionError: There is no such file, it is not a packed file, it is newer than this package, or damaged.

    Attributes:
        layout: What the file holds.
        size: Bytes of the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise CompressionError(f"{self.path}: cannot be read ({error.strerror or error}).") from error
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self.layout = self._read_layout(self._read_header())
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Container:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def where(self, name: str) -> str:
        """File and tensor, for messages."""
        return f"{self.path}, {name}" if name else f"{self.path}"

    def chunk(self, index: int, name: str) -> bytes:
        """Read a chunk and check its checksum.

        Args:
            index: Which one.
            name: The tensor that it is read for, for messages.
        """
        self._file.seek(self._starts[index])
        data = self._file.read(self.layout.lengths[index])
        if zlib.crc32(data) != self.layout.checksums[index]:
            raise CompressionError(f"{self.where(name)}: damaged, the checksum does not match. Copy the file again.")
        return data

    def check(self) -> None:
        """Check every chunk's checksum, in small memory."""
        for index, length in enumerate(self.layout.lengths):
            self._file.seek(self._starts[index])
            checksum = 0
            while length:
                block = self._file.read(min(length, 1 << 20))
                if not block:
                    break
                checksum, length = zlib.crc32(block, checksum), length - len(block)
            if checksum != self.layout.checksums[index]:
                raise CompressionError(
                    f"{self.path}: damaged, the checksum of chunk {index} does not match. Copy the file again."
                )

    def _read_header(self) -> int:
        """Check the safetensors header; gives where the entry begins."""
        length = int.from_bytes(self._file.read(8), "little")
        if self.size < 8 or length > _LONGEST_HEADER:
            raise CompressionError(f"{self.path}: not a packed file of lightning-compress.")
        header = self._file.read(length)
        version = re.match(rb'\{"__metadata__":\{"lightning-compress":"packed (\d{1,9})"', header)
        if version is None:
            raise CompressionError(f"{self.path}: not a packed file of lightning-compress.")
        if int(version[1]) > VERSION:
            raise CompressionError(
                f"{self.path}: format version {int(version[1])} is newer than the {VERSION} that this version of "
                f"lightning-compress reads. Upgrade lightning-compress."
            )
        found = _HEADER.fullmatch(header)
        size = self.size - 8 - length
        if found is None or int(found[2]) != int(found[3]) or header != _header_bytes(int(found[2]))[8:]:
            raise CompressionError(f"{self.path}: damaged, the header is not the one that its version has.")
        if int(found[2]) != size:
            raise CompressionError(
                f"{self.path}: damaged, {size} bytes follow the header where {int(found[2])} should. "
                f"The file was cut off or grew; copy it again."
            )
        return 8 + length

    def _read_layout(self, start: int) -> Layout:
        self._file.seek(start)
        lead = self._file.read(_LONGEST_LEAD)
        reader = Reader(lead, str(self.path))
        method = reader.byte("layout.method", largest=_LZMA)
        length = reader.number("layout.length", largest=LAYOUT_EXPANSION * self.size)
        stored_length = reader.number("layout.stored", largest=self.size)
        numbers = lead[: len(lead) - len(reader.rest())]
        self._file.seek(start + len(numbers))
        checksum = int.from_bytes(self._file.read(4), "little")
        stored = self._file.read(min(stored_length, self.size))
        if len(stored) != stored_length or zlib.crc32(numbers + stored) != checksum:
            raise CompressionError(f"{self.path}: damaged, the checksum of the layout does not match. Copy it again.")
        if length > LAYOUT_EXPANSION * stored_length or (method == _STORED and length != stored_length):
            raise reader.damaged("layout.length", f"{length} for {stored_length} stored bytes")
        data = stored
        if method != _STORED:
            data = (inflate if method == _DEFLATED else _unlzma)(stored, length, reader, "layout")
        layout = from_bytes(Reader(data, f"{self.path}, layout"), self.size)
        self._starts = [start + len(numbers) + 4 + stored_length]
        for chunk in layout.lengths:
            self._starts.append(self._starts[-1] + chunk)
        if self._starts[-1] != self.size:
            raise CompressionError(f"{self.path}: damaged, its chunks do not fill it. Export the model again.")
        return layout


def _lzma(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=_FILTERS)


def _unlzma(data: bytes, length: int, reader: Reader, field: str) -> bytes:
    """The inverse of ``_lzma``, which never gives more than the ``length`` bytes that there should be."""
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        found = decompressor.decompress(data, length + 1)
    except lzma.LZMAError as error:
        raise reader.damaged(field, f"not LZMA data ({error})") from None
    if len(found) != length or decompressor.unused_data:
        raise reader.damaged(field, f"LZMA data of another length than the {length} bytes that should be")
    return found


def _header_bytes(length: int) -> bytes:
    text = (
        f'{{"__metadata__":{{"lightning-compress":"packed {VERSION}"}},'
        f'"packed":{{"dtype":"U8","shape":[{length}],"data_offsets":[0,{length}]}}}}'
    ).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
