"""Damaged and hostile packed files: blind damage, and lies with right checksums by one who knows the format."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from lightning_compress.export.packed import container
from lightning_compress.export.packed.codec.byte_planes import deflate
from lightning_compress.export.packed.container import Container
from lightning_compress.export.packed.layout import Entry, Layout, to_bytes

NUMBERS = [0, 1, 2, 3, 7, 15, 16, 127, 128, 255, 256, 65_535, 2**20, 2**31 - 1, 2**32, 2**40, 2**47]


def blind(data: bytes, rng: random.Random) -> bytes:
    """Bit flips, cuts, growth, moved and repeated pieces, foreign bytes."""
    kind = rng.randrange(7)
    found = bytearray(data)
    start = rng.randrange(len(data))
    if rng.random() < 0.3:
        # The header and the layout are where a byte means most.
        start = rng.randrange(min(len(data), 700))
    stop = min(len(data), start + rng.randrange(1, 64))
    if kind == 0:
        for _ in range(rng.randrange(1, 5)):
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del found[start:]
    elif kind == 2:
        found += rng.randbytes(rng.randrange(1, 200))
    elif kind == 3:
        found[start:stop] = rng.randbytes(stop - start)
    elif kind == 4:
        del found[start:stop]
    elif kind == 5:
        found[start:start] = found[start:stop]
    else:
        found[:8] = rng.choice(NUMBERS).to_bytes(8, "little")
    return bytes(found)


class Liar:
    """Makes files whose checksums are right and whose contents are not.

    Args:
        path: A true file.
        scratch: Where to write.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        with Container(path) as file:
            self.layout = file.layout
            self.chunks = [file.chunk(k, "") for k in range(len(file.layout.lengths))]
        self.scratch = scratch
        self._bombs: dict[int, bytes] = {}

    def lie(self, rng: random.Random) -> bytes:
        """One hostile file."""
        kinds = [self._entries, self._chunk, self._coded, self._extra, self._raw_layout, self._bomb, self._large]
        return rng.choice(kinds)(rng)

    def _write(self, entries: list[Entry], chunks: list[bytes], extra: str) -> bytes:
        container.write(self.scratch, entries, chunks, extra)
        return self.scratch.read_bytes()

    def _entries(self, rng: random.Random) -> bytes:
        entries = list(self.layout.entries)
        for _ in range(rng.randrange(1, 4)):
            k = rng.randrange(len(entries))
            entry = entries[k]
            sizes = tuple(rng.choice(NUMBERS) for _ in range(rng.randrange(5)))
            name = rng.choice(["../../etc/passwd", "/etc/passwd", "", "x" * 9999, entries[0].name, "\0", "__class__"])
            changes: list[Callable[[], Entry]] = [
                lambda entry=entry: replace(entry, dtype=rng.randrange(16)),
                lambda entry=entry: replace(entry, kind=rng.randrange(5)),
                lambda entry=entry, sizes=sizes: replace(entry, shape=sizes),
                lambda entry=entry: replace(entry, shape=entry.shape[::-1]),
                lambda entry=entry: replace(entry, chunk=rng.choice([*NUMBERS, rng.randrange(30)])),
                lambda entry=entry: replace(entry, scale=rng.choice([*NUMBERS, rng.randrange(len(entries))])),
                lambda entry=entry: replace(entry, axis=rng.randrange(4), group=rng.choice(NUMBERS)),
                lambda entry=entry, name=name: replace(entry, name=name),
            ]
            entries[k] = rng.choice(changes)()
        if rng.random() < 0.2:
            del entries[rng.randrange(len(entries))]
        return self._write(entries, self.chunks, self.layout.extra)

    def _chunk(self, rng: random.Random) -> bytes:
        chunks = list(self.chunks)
        k = rng.randrange(len(chunks))
        chunk = chunks[k] or b"\0"
        kind = rng.randrange(4)
        if kind == 0:
            chunks[k] = blind(chunk, rng)
        elif kind == 1:
            # Parameters stand first.
            found = bytearray(chunk)
            found[rng.randrange(min(len(found), 24))] = rng.randrange(256)
            chunks[k] = bytes(found)
        elif kind == 2:
            chunks[k] = rng.randbytes(rng.randrange(200))
        else:
            other = rng.randrange(len(chunks))
            chunks[k], chunks[other] = chunks[other], chunks[k]
        return self._write(self.layout.entries, chunks, self.layout.extra)

    def _coded(self, rng: random.Random) -> bytes:
        """A chunk as the format has it, with parameters that are made up; what is coded is real, noise or nothing."""
        chunks = list(self.chunks)
        k = rng.randrange(len(chunks))
        tail = rng.choice([b"", rng.randbytes(rng.randrange(1, 99)) + b"\1", chunks[k][-rng.randrange(1, 200) :]])
        parts = [_positions(rng), _values(rng), _planes(rng, tail)]
        chunks[k] = rng.choice(
            [
                parts[0] + parts[1] + tail,
                parts[0] + _number(rng.choice([len(tail), *NUMBERS])) + tail + parts[2],
                parts[2],
            ]
        )
        entries = list(self.layout.entries)
        if rng.random() < 0.5:
            holders = [i for i, entry in enumerate(entries) if entry.kind != 3 and entry.chunk == k]
            for i in holders:
                entries[i] = replace(entries[i], kind=rng.randrange(3))
        return self._write(entries, chunks, self.layout.extra)

    def _large(self, rng: random.Random) -> bytes:
        """Great shapes over a chunk that decodes for ever: alone, beside small ones, empty, overflowing, or many."""
        entries, free = list(self.layout.entries), len(self.chunks)
        named = rng.choice(entries)
        plane = bytes([2, 3, 0, 0, 1]) * 16
        single = bytes([0, 0, 1, 1, 0, 0, 0])
        power = rng.randrange(16, 47)
        shapes = [
            (2**power, 0),
            (0, 2**power),
            (2**power,),
            (2**20, 2 ** max(0, power - 20)),
            (2**24,) * 3,
            (2**power, 1),
        ]
        shape = rng.choice([*shapes, (2**47, 2**47, 0), (1,) * 16, (2,) * 16])
        name = rng.choice([named.name, "", "another"])
        kind = rng.randrange(3)
        made = Entry(name, rng.choice([0, 3, 13]), shape, kind, free, scale=len(entries), bits=8)
        k = entries.index(named)
        place = rng.randrange(4)
        if place == 0:
            entries[k] = replace(made, name=named.name)
        elif place == 1:
            entries.append(made)
        elif place == 2:
            # In the pool of another tensor.
            entries.insert(rng.randrange(len(entries)), replace(made, kind=0, dtype=named.dtype, chunk=named.chunk))
        else:
            many = [replace(made, name=f"{name}{i}", shape=(2**16,)) for i in range(rng.choice([10, 1000]))]
            entries += many
        entries.append(Entry("", 0, (), 0, free + 1))
        return self._write(entries, [*self.chunks, plane if kind == 0 else single, bytes(8)], self.layout.extra)

    def _extra(self, rng: random.Random) -> bytes:
        text = self.layout.extra
        start = rng.randrange(len(text))
        pieces = ["null", "1e999", "[" * 30_000, '{"$tensor":0}', '"', "}", "-1", "{}", "true", "NaN", "9" * 5000]
        text = text[:start] + rng.choice(pieces) + text[start + rng.randrange(20) :]
        for old, new in (('"bits":8', '"bits":99999999'), ("[0]", '["__dict__"]'), ("output", "input")):
            if rng.random() < 0.2:
                text = text.replace(old, new, rng.randrange(1, 3))
        if rng.random() < 0.1:
            deep, wide = "[" * 400 + "]" * 400, "[" + "[]," * 100_000 + "0]"
            metadata = rng.choice([deep, wide, json.dumps({"a": "b" * 300_000})])
            text = self.layout.extra.replace('"metadata":null', f'"metadata":{metadata}')
        elif rng.random() < 0.1:
            text = rng.choice(["", "[]", "{}", '{"metadata":0,"prefix":7,"quantization":{}}', '{"prefix":"a."}'])
        return self._write(self.layout.entries, self.chunks, text)

    def _raw_layout(self, rng: random.Random) -> bytes:
        layout = to_bytes(Layout(self.layout.entries, self.layout.lengths, self.layout.checksums, self.layout.extra))
        return self._with_layout(blind(layout, rng), len(layout), rng.randrange(2))

    def _bomb(self, rng: random.Random) -> bytes:
        """Far more than there should be behind few bytes: a layout of nothing, a plane of nothing, empty weights."""
        size = rng.choice([2**20, 2**25])
        kind = rng.randrange(3)
        if kind < 2 and size not in self._bombs:
            self._bombs[size] = deflate(b"\0" * size)
        if kind == 0:
            return self._with_layout(self._bombs[size], rng.choice([size, 5000]), 1, compressed=True)
        if kind == 1:
            chunk = (bytes([1]) + _number(len(self._bombs[size])) + self._bombs[size]) * 4
            return self._write(self.layout.entries, [chunk] * len(self.chunks), self.layout.extra)
        # A plane of one value takes three bytes, whatever its length.
        entries = list(self.layout.entries)
        k = rng.randrange(len(entries))
        entries[k] = replace(entries[k], kind=0, shape=(size, 64), chunk=len(self.chunks))
        return self._write(entries, [*self.chunks, bytes([2, 3, 0, 0, 1]) * 8], self.layout.extra)

    def _with_layout(self, layout: bytes, length: int, method: int, *, compressed: bool = False) -> bytes:
        stored = deflate(layout) if method == 1 and not compressed else layout
        lead = bytes([method]) + _number(length) + _number(len(stored))
        first = lead + zlib.crc32(lead + stored).to_bytes(4, "little") + stored
        body = first + b"".join(self.chunks)
        return container._header_bytes(len(body)) + body


def cases(data: bytes, liar: Liar, count: int, seed: int) -> Iterator[tuple[bool, bytes]]:
    """Half blind damage, half lies: whether it is a lie, and the file."""
    rng = random.Random(seed)
    for k in range(count):
        yield (True, liar.lie(rng)) if k % 2 else (False, blind(data, rng))


def _positions(rng: random.Random) -> bytes:
    """Parameters of positions."""
    kind = rng.randrange(3)
    if kind:
        return bytes([kind, rng.randrange(4)]) + rng.randbytes(16 if kind == 1 else 256)
    rows, columns = (rng.choice([0, 1, 1, 2, 5, 32, 33]) for _ in range(2))
    labels = [bytes([count]) + rng.randbytes(count if count > 1 else 0) for count in (rows, columns)]
    return bytes([0, rng.randrange(4)]) + b"".join(labels) + rng.randbytes(rows * columns)


def _values(rng: random.Random) -> bytes:
    """Parameters of values."""
    steps = rng.choice([0, 1, 3, 30, 127, 128, 255])
    pairs = [bytes([rng.choice([0, 1, 1, 1, 4, 255]), rng.randrange(256)]) for _ in range(steps)]
    return bytes([rng.randrange(256), steps]) + b"".join(pairs)


def _planes(rng: random.Random, tail: bytes) -> bytes:
    """Planes of numbers."""
    found = b""
    for _ in range(rng.choice([1, 2, 4, 8, 16])):
        method = rng.randrange(4)
        content = deflate(tail * rng.randrange(50)) if method == 1 else rng.randbytes(2) + rng.randbytes(9) + tail
        if method == 2:
            content = rng.choice([bytes([3, 0, 0, 1]), content])
        length = rng.choice([len(content), len(content), *NUMBERS])
        found += bytes([method]) + (b"" if method == 0 else _number(length)) + content
    return found


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
