"""What is in a packed file: names, types and shapes of tensors, and where their data is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_compress.export.packed.varints import LARGEST, Reader, Writer

DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "float8_e4m3fn",
    "float8_e5m2",
    "complex64",
    "complex128",
)
"""Names in torch of the element types, in the order of their codes."""

WIDTHS = (4, 2, 2, 8, 8, 4, 2, 1, 1, 1, 1, 1, 8, 16)
FLOATS = frozenset({0, 1, 2, 3})
"""Codes of the element types that are rotated before they are split into planes."""

POOLED = 1 << 16
"""Plain tensors of fewer bytes share a chunk; larger ones have their own, so that they load alone."""

PLAIN, INTEGERS, SPARSE, SAME = range(4)
KINDS = ("plain", "integers", "sparse", "same")


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in the file.

    Attributes:
        name: Key in the model's ``state_dict``; empty for what only other entries refer to.
        dtype: Code of the element type.
        shape: Shape.
        kind: ``PLAIN`` numbers, quantized ``INTEGERS``, ``SPARSE`` numbers, or the ``SAME`` as another entry.
        chunk: Chunk that holds it; for ``SAME`` the entry.
        scale: For integers, the entry with the scale.
        axis: For integers, the dimension along which scales differ; ``None`` for a single scale.
        group: For integers, neighbours that share a scale; 0 without groups.
        bits: For integers, their bit width.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    kind: int
    chunk: int
    scale: int = 0
    axis: int | None = None
    group: int = 0
    bits: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.numel * WIDTHS[self.dtype]


@dataclass(frozen=True)
class Layout:
    """What is in a file, and where.

    Attributes:
        entries: All tensors.
        lengths: Length of each chunk in bytes.
        checksums: CRC-32 of each chunk.
        extra: JSON text: metadata, and the state of quantizers.
    """

    entries: list[Entry]
    lengths: list[int]
    checksums: list[int]
    extra: str


def to_bytes(layout: Layout) -> bytes:
    """A layout as bytes."""
    # Column by column, since equal things next to each other deflate best.
    writer = Writer()
    names = "\n".join(entry.name for entry in layout.entries).encode()
    writer.number(len(layout.entries))
    writer.number(len(names))
    writer.raw(names)
    writer.raw(bytes(entry.dtype for entry in layout.entries))
    writer.raw(bytes(entry.kind for entry in layout.entries))
    writer.raw(bytes(len(entry.shape) for entry in layout.entries))
    for entry in layout.entries:
        for size in entry.shape:
            writer.number(size)
    for entry in layout.entries:
        writer.number(entry.chunk)
    for entry in layout.entries:
        if entry.kind == INTEGERS:
            writer.number(entry.scale)
            writer.byte(0 if entry.axis is None else entry.axis + 1)
            writer.number(entry.group)
            writer.byte(entry.bits)
    writer.number(len(layout.lengths))
    for length in layout.lengths:
        writer.number(length)
    for checksum in layout.checksums:
        writer.raw(checksum.to_bytes(4, "little"))
    writer.raw(layout.extra.encode())
    return bytes(writer.data)


def from_bytes(reader: Reader, size: int) -> Layout:
    """The inverse of ``to_bytes``, for a file of ``size`` bytes.

    Raises:
        CompressionError: The bytes are not a layout, or entries refer to what there is not.
    """
    # Each entry and chunk takes more than a byte of the file, so its size bounds their number.
    count = reader.number("entries", largest=size)
    try:
        names = reader.raw(reader.number("names"), "names").decode().split("\n") if count else []
    except UnicodeDecodeError:
        raise reader.damaged("names", "not UTF-8") from None
    if not count:
        reader.number("names", largest=0)
    if len(names) != count:
        raise reader.damaged("names", f"{len(names)} names for {count} tensors")
    known = [name for name in names if name]
    if len(set(known)) != len(known):
        raise reader.damaged("names", "a list in which a name comes twice")
    dtypes, kinds, ranks = (reader.raw(count, field) for field in ("dtypes", "kinds", "ranks"))
    if count and (max(dtypes) >= len(DTYPES) or max(kinds) > SAME or max(ranks) > 16):
        raise reader.damaged("dtypes, kinds, ranks", f"{max(dtypes)}, {max(kinds)}, {max(ranks)}: unknown here")
    shapes = [tuple(reader.number("shape") for _ in range(rank)) for rank in ranks]
    chunks = [reader.number("chunk", largest=size) for _ in range(count)]
    entries = []
    for name, dtype, shape, kind, chunk in zip(names, dtypes, shapes, kinds, chunks, strict=True):
        scale = axis = group = bits = 0
        if kind == INTEGERS:
            scale = reader.number("scale", largest=count - 1)
            axis = reader.byte("axis", largest=len(shape))
            group = reader.number("group")
            bits = reader.byte("bits", largest=8)
        entries.append(Entry(name, dtype, shape, kind, chunk, scale, axis - 1 if axis else None, group, bits))
    count = reader.number("chunks", largest=size)
    lengths = [reader.number("chunk.length", largest=size) for _ in range(count)]
    checksums = [int.from_bytes(reader.raw(4, "checksum"), "little") for _ in range(count)]
    try:
        extra = reader.rest().decode()
    except UnicodeDecodeError:
        raise reader.damaged("extra", "not UTF-8") from None
    layout = Layout(entries, lengths, checksums, extra)
    _check_references(layout, reader)
    return layout


def scale_shape(entry: Entry) -> tuple[int, ...] | None:
    """Shape that the scale of quantized integers must have; ``None`` where axis and group make no sense."""
    if entry.axis is None:
        return () if entry.group == 0 else None
    channels = entry.shape[entry.axis]
    if entry.group == 0:
        return (channels,)
    inputs = entry.numel // channels
    return (channels, -(-inputs // entry.group)) if entry.group <= inputs else None


def _check_references(layout: Layout, reader: Reader) -> None:
    """Check what entries say of each other and of chunks, so that nothing is decoded twice or as another type."""
    entries, coded = layout.entries, set[int]()
    pools: dict[int, list[Entry]] = {}
    for index, entry in enumerate(entries):
        # Sizes of 0 do not hide what the others come to.
        if math.prod(max(size, 1) for size in entry.shape) > LARGEST:
            raise reader.damaged(f"shape of {entry.name or index}", f"{entry.shape}, which is too large")
        fine = True
        if entry.kind == SAME:
            # Backwards, at an entry that is not itself such a pointer: no loops, no long chains.
            fine = entry.chunk < index and entries[entry.chunk].kind != SAME
            fine = fine and (entries[entry.chunk].shape, entries[entry.chunk].dtype) == (entry.shape, entry.dtype)
        elif entry.kind == PLAIN:
            fine = entry.chunk < len(layout.lengths)
            pools.setdefault(entry.chunk, []).append(entry)
        else:
            # Coded numbers have a chunk of their own.
            fine = entry.chunk < len(layout.lengths) and entry.chunk not in coded and entry.dtype in FLOATS
            fine = fine and bool(entry.shape) and entry.numel > 0
            coded.add(entry.chunk)
        if not fine:
            raise reader.damaged(f"entry {entry.name or index}", "one that refers to what it cannot")
        if entry.kind == INTEGERS:
            scale = entries[entry.scale]
            if scale.kind != PLAIN or scale.dtype not in FLOATS or scale.shape != scale_shape(entry):
                raise reader.damaged(f"scale of {entry.name or index}", "one that does not fit its integers")
    for chunk, pool in pools.items():
        if chunk in coded or any(entry.dtype != pool[0].dtype for entry in pool):
            raise reader.damaged(f"chunk {chunk}", "one of more than one type")
        if len(pool) > 1 and max(entry.nbytes for entry in pool) >= POOLED:
            raise reader.damaged(f"chunk {chunk}", f"shared by a tensor of {POOLED} bytes or more")
