"""A packed file read with the standard library and NumPy, from ``packed.md`` alone: the reference for the format."""

import json
import lzma
import zlib
from bisect import bisect_right
from itertools import accumulate
from math import prod

import numpy as np

T = 1 << 24
WIDTHS = [4, 2, 2, 8, 8, 4, 2, 1, 1, 1, 1, 1, 8, 16]


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def raw(self, count):
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self):
        return self.raw(1)[0]

    def number(self):
        value, shift = 0, 0
        while True:
            byte = self.byte()
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value


class Coded:
    def __init__(self, data):
        data = data + b"\0" * (-len(data) % 4)
        self.words = [int.from_bytes(data[k : k + 4], "little") for k in range(0, len(data), 4)]
        self.state = 0
        while self.words and self.state < 1 << 32:
            self.state = self.state << 32 | self.words.pop()

    def run(self, count, f):
        if len(f) == 1:
            return [0] * count
        starts, found = [0, *accumulate(f)], []
        for _ in range(count):
            q = self.state % T
            s = bisect_right(starts, q) - 1
            self.state = self.state // T * f[s] + q - starts[s]
            if self.state < 1 << 32 and self.words:
                self.state = self.state << 32 | self.words.pop()
            found.append(s)
        return found

    def bits(self, count, code):
        j = min(code, 255 - code)
        d = max(1, j * j * T // 32258)
        a = d if code < 128 else T - d
        by_byte = [max(1, a ** k.bit_count() * (T - a) ** (8 - k.bit_count()) // 2**168) for k in range(256)]
        symbols = self.run(count // 8, complete(by_byte))
        return [s >> (7 - k) & 1 for s in symbols for k in range(8)] + self.run(count % 8, [T - a, a])


def complete(f):
    f[f.index(max(f))] += T - sum(f)
    return f


def frequencies(codes):
    w = [c if c < 16 else (16 + c % 16) * 2 ** (c // 16 - 1) for c in codes]
    w = w if sum(w) else [1] * len(w)
    return complete([1 + x * (T - len(w)) // sum(w) for x in w])


def read_planes(data, count, dtype):
    width = WIDTHS[dtype]
    planes = np.zeros((count, width), np.uint8)
    for k in range(width):
        method = data.byte()
        stored = Bytes(data.raw(data.number() if method else count))
        if method == 0:
            plane = stored.data
        elif method == 1:
            plane = zlib.decompress(stored.data, -15)
        else:
            lowest, spread = stored.byte(), stored.byte()
            f = frequencies(stored.raw(spread + 1))
            plane = [lowest + s for s in Coded(stored.data[stored.at :]).run(count, f)]
        planes[:, k] = np.frombuffer(bytes(plane), np.uint8)
    flat = planes.reshape(-1)
    if dtype < 4:
        rotated = flat.view(f"<u{width}")
        flat = (rotated >> 1 | rotated << (8 * width - 1)).view(np.uint8)
    return flat


def positions(data, shape):
    rows = shape[0] if len(shape) > 1 else 1
    columns = prod(shape) // rows
    kind, option = data.byte(), data.byte()
    if kind:
        codes, size = data.raw(16 if kind == 1 else 256), 4 * kind

        def decode(coded):
            r, c = (columns, rows) if option == 1 else (rows, columns)
            width = -(-c // size)
            symbols = coded.run(r * width, frequencies(codes))
            flat = np.array([s >> (size - 1 - k) & 1 for s in symbols for k in range(size)])
            flat = flat.reshape(r, -1)[:, :c]
            if option == 1:
                return flat.T.reshape(shape)
            if option == 2:
                return np.moveaxis(flat.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
            return flat.reshape(shape)

        return decode
    units = [columns, shape[1] if len(shape) > 1 else 0, prod(shape[2:])][option]
    weights = []
    for _ in range(2):
        classes = data.byte()
        weights.append(list(data.raw(classes)) if classes > 1 else [1])
    codes = [[data.byte() for _ in weights[1]] for _ in weights[0]]

    def decode(coded):
        row_class = np.array(coded.run(rows, frequencies(weights[0])))
        unit_class = np.array(coded.run(units, frequencies(weights[1])))
        kernel = prod(shape[2:])
        of_column = [unit_class, np.repeat(unit_class, kernel), np.tile(unit_class, columns // max(units, 1))][option]
        mask = np.zeros((rows, columns), int)
        for i, line in enumerate(codes):
            for j, code in enumerate(line):
                where = np.ix_(row_class == i, of_column == j)
                mask[where] = np.reshape(coded.bits(mask[where].size, code), mask[where].shape)
        return mask.reshape(shape)

    return decode


def read_integers(chunk, shape):
    data = Bytes(chunk)
    decode = positions(data, shape)
    negative, steps = data.byte(), data.byte()
    codes = [code for width, code in ((data.byte(), data.byte()) for _ in range(steps)) for _ in range(width)]
    coded = Coded(data.data[data.at :])
    mask = decode(coded)
    signs = coded.bits(mask.sum(), negative)
    magnitudes = coded.run(mask.sum(), frequencies(codes)) if codes else []
    found = np.zeros(shape, int)
    found[mask == 1] = [-(m + 1) if s else m + 1 for s, m in zip(signs, magnitudes, strict=True)]
    return found


def read(path):
    """Name → (element type, shape, integers and scale, or bytes), and the JSON text."""
    file = path.read_bytes()
    start = 8 + int.from_bytes(file[:8], "little")
    data = Bytes(file[start:])
    assert json.loads(file[8:start])["packed"]["shape"] == [len(data.data)]
    method, length, stored = data.byte(), data.number(), data.number()
    lead = data.data[: data.at]
    crc, layout = int.from_bytes(data.raw(4), "little"), data.raw(stored)
    assert zlib.crc32(lead + layout) == crc
    if method == 1:
        layout = zlib.decompress(layout, -15)
    elif method == 2:
        filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 65536, "lc": 0, "lp": 0, "pb": 0}]
        layout = lzma.decompress(layout, lzma.FORMAT_RAW, filters=filters)
    assert len(layout) == length
    table = Bytes(layout)
    count = table.number()
    names = table.raw(table.number()).decode().split("\n")
    dtypes, kinds, ranks = table.raw(count), table.raw(count), table.raw(count)
    shapes = [tuple(table.number() for _ in range(rank)) for rank in ranks]
    places = [table.number() for _ in range(count)]
    quantized = [(table.number(), table.byte(), table.number(), table.byte()) if k == 1 else None for k in kinds]
    lengths = [table.number() for _ in range(table.number())]
    sums = [int.from_bytes(table.raw(4), "little") for _ in lengths]
    chunks = [data.raw(size) for size in lengths]
    assert [zlib.crc32(chunk) for chunk in chunks] == sums

    def plain(k):
        members = [m for m in range(count) if kinds[m] == 0 and places[m] == places[k]]
        values = read_planes(Bytes(chunks[places[k]]), sum(prod(shapes[m]) for m in members), dtypes[k])
        before = sum(prod(shapes[m]) for m in members if m < k) * WIDTHS[dtypes[k]]
        return values[before : before + prod(shapes[k]) * WIDTHS[dtypes[k]]]

    def entry(k):
        if kinds[k] == 3:
            return entry(places[k])
        if kinds[k] == 0:
            return plain(k).tobytes()
        if kinds[k] == 1:
            return read_integers(chunks[places[k]], shapes[k]), plain(quantized[k][0]).view("<f4")
        chunk = Bytes(chunks[places[k]])
        decode = positions(chunk, shapes[k])
        mask = decode(Coded(chunk.raw(chunk.number()))).reshape(-1) == 1
        width = WIDTHS[dtypes[k]]
        found = np.zeros((mask.size, width), np.uint8)
        found[mask] = read_planes(chunk, int(mask.sum()), dtypes[k]).reshape(-1, width)
        return found.tobytes()

    found = {name: (dtypes[k], shapes[k], entry(k)) for k, name in enumerate(names) if name}
    return found, table.data[table.at :].decode()
