"""Models and coder, against the plain reader written from packed.md and against the entropy."""

from __future__ import annotations

import numpy as np
import plain_packed_reader as plain
import pytest

from lightning_compress.errors import CompressionError
from lightning_compress.export.packed.codec import byte_planes as planes
from lightning_compress.export.packed.codec import entropy as coding
from lightning_compress.export.packed.codec import mask as positions
from lightning_compress.export.packed.codec import weight as weights
from lightning_compress.export.packed.codec.density_classes import Labels
from lightning_compress.export.packed.codec.nonzero_values import Values
from lightning_compress.export.packed.varints import Reader, Writer

RNG = np.random.default_rng(0)


def entropy_bytes(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float((counts * np.log2(counts.sum() / counts)).sum()) / 8


def dead_inputs(shape: tuple[int, ...]) -> np.ndarray:
    """A mask in which most columns are almost empty, as the border of an image leaves it."""
    density = np.where(RNG.random(shape[1:]) < 0.5, 0.002, 0.3)
    return RNG.random(shape) < density


def two_of_four(shape: tuple[int, ...]) -> np.ndarray:
    kept = RNG.random((int(np.prod(shape)) // 4, 4)).argsort(1)[:, :2]
    mask = np.zeros((len(kept), 4), bool)
    np.put_along_axis(mask, kept, True, 1)
    return mask.reshape(shape)


MASKS = {
    "random": RNG.random((40, 60)) < 0.2,
    "one dimension": RNG.random(77) < 0.4,
    "one row": RNG.random((1, 33)) < 0.4,
    "empty rows": (RNG.random((30, 50)) < 0.5) & (RNG.random((30, 1)) < 0.3),
    "dead inputs": dead_inputs((60, 200)),
    "dead input channels": (RNG.random((32, 16, 3, 3)) < 0.5) & (RNG.random((1, 16, 1, 1)) < 0.4),
    "kernel positions": RNG.random((32, 16, 3, 3)) < np.linspace(0, 0.9, 9).reshape(3, 3),
    "2:4": two_of_four((32, 64)),
    "2:4 along input channels": np.moveaxis(two_of_four((16, 3, 3, 32)), -1, 1),
    "blocks in a row": np.repeat(RNG.random((32, 16)) < 0.2, 8, 1),
    "blocks in a column": np.repeat(RNG.random((8, 60)) < 0.2, 4, 0),
    "rows of an odd length": np.repeat(RNG.random((30, 17)) < 0.3, 4, 1)[:, :66],
    "nothing": np.zeros((5, 7), bool),
    "everything": np.ones((5, 7), bool),
    "one weight": np.ones((1, 1), bool),
    "no weights": np.zeros((0, 4), bool),
}


def coded(mask: np.ndarray) -> tuple[bytes, bytes, float]:
    mask = np.ascontiguousarray(mask)
    model, writer, encoder = positions.fit(mask), Writer(), coding.Encoder()
    model.write(writer)
    model.encode(mask, encoder)
    return bytes(writer.data), encoder.finish(), model.bits / 8


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_mask_comes_back_here_and_in_the_plain_reader(mask: np.ndarray) -> None:
    parameters, data, _ = coded(mask)
    reader, decoder = Reader(parameters, "test"), coding.Decoder(data, "test")
    found = positions.read(mask.shape, reader).decode(decoder)
    reader.end()
    decoder.close()
    assert np.array_equal(found, mask)
    if mask.size:
        assert np.array_equal(plain.positions(plain.Bytes(parameters), mask.shape)(plain.Coded(data)), mask)


def test_a_class_that_a_file_names_and_no_row_or_column_has_is_read_as_empty() -> None:
    rows, columns = (Labels(np.zeros(count, np.uint8), [3, 3], 0.0) for count in (4, 6))
    mask = RNG.random((4, 6)) < 0.5
    parameters = positions.Classes((4, 6), 0, rows, columns, [[128, 128], [128, 128]], 0.0)
    encoder, writer = coding.Encoder(), Writer()
    parameters.write(writer)
    parameters.encode(mask, encoder)
    reader, decoder = Reader(bytes(writer.data), "test"), coding.Decoder(encoder.finish(), "test")
    assert np.array_equal(positions.read((4, 6), reader).decode(decoder), mask)
    decoder.close()


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("random", 1.06),
        ("dead inputs", 0.8),
        ("dead input channels", 0.6),
        ("kernel positions", 0.77),
        ("empty rows", 0.6),
        ("2:4", 0.75),
        ("2:4 along input channels", 0.70),
        ("blocks in a row", 0.65),
        ("blocks in a column", 0.45),
    ],
)
def test_structure_is_found_below_the_entropy_of_the_density(name: str, share: float) -> None:
    parameters, data, _ = coded(MASKS[name])
    assert len(parameters) + len(data) < share * entropy_bytes(MASKS[name])


@pytest.mark.parametrize("name", ["random", "dead inputs", "2:4"])
def test_the_cost_that_decides_is_the_cost_that_comes_out(name: str) -> None:
    parameters, data, expected = coded(MASKS[name])
    assert len(parameters) + len(data) == pytest.approx(expected, abs=6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 300, 20_000])
def test_values_come_back_and_cost_little_more_than_their_entropy(bits: int, count: int) -> None:
    largest = 2 ** (bits - 1) - 1
    values = np.clip(np.round(RNG.normal(size=2 * count + 1) * largest / 3), -largest, largest).astype(np.int8)
    values = values[values != 0][:count]
    model, writer, encoder = Values.fit(values), Writer(), coding.Encoder()
    model.write(writer)
    model.encode(values, encoder)
    data = encoder.finish()
    reader, decoder = Reader(bytes(writer.data), "test"), coding.Decoder(data, "test")
    assert np.array_equal(Values.read(reader).decode(len(values), reader, decoder), values)
    decoder.close()
    assert len(writer.data) + len(data) <= 1.005 * entropy_bytes(values) + 45


@pytest.mark.parametrize("shape", [(30, 20), (8, 4, 3, 3), (17,)])
def test_integers_agree_with_the_plain_reader(shape: tuple[int, ...]) -> None:
    integers = (RNG.integers(-127, 128, shape) * (RNG.random(shape) < 0.3)).astype(np.int8)
    data = weights.encode_integers(integers).data
    assert np.array_equal(weights.decode_integers(data, shape, "test"), integers)
    assert np.array_equal(plain.read_integers(data, shape), integers)


def test_large_tensors_reach_the_entropy() -> None:
    integers = np.clip(np.round(RNG.normal(size=(500, 800)) * 40), -127, 127).astype(np.int8)
    integers[RNG.random(integers.shape) < 0.8] = 0
    found = weights.encode_integers(integers)
    assert found.entropy_bound == pytest.approx(entropy_bytes(integers))
    assert len(found.data) < 1.001 * found.entropy_bound


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", "<i8", "u1", "<u4"])
def test_planes_keep_every_bit(dtype: str) -> None:
    numbers = RNG.integers(0, 256, 8 * 50, np.uint8).view(dtype)
    numbers[:20] = np.arange(20)
    width, rotate = numbers.dtype.itemsize, numbers.dtype.kind == "f"
    data = planes.encode(numbers.view(np.uint8), width, rotate=rotate)
    found = planes.decode(Reader(data, "test"), numbers.size, width, rotate=rotate)
    assert found.tobytes() == numbers.tobytes()


def test_exponents_of_floats_are_compressed() -> None:
    numbers = RNG.normal(size=2000).astype(np.float32)
    assert len(planes.encode(numbers.view(np.uint8), 4, rotate=True)) < 0.86 * numbers.nbytes


def test_frequencies_sum_to_the_total_and_leave_nothing_impossible() -> None:
    for codes in ([0, 0], [0, 255], [1], list(range(256)), [255] * 256):
        found = coding.frequencies(codes)
        assert found.sum() == coding.TOTAL
        assert found.min() >= 1
    for code in range(256):
        assert coding.byte_frequencies(code).sum() == coding.TOTAL
        assert coding.byte_frequencies(code).min() >= 1


def test_weight_codes_keep_counts_to_three_percent_and_never_lose_one() -> None:
    counts = np.array([0, 1, 17, 1000, 123_456, 10_000_000])
    found = np.array([coding.weight(code) for code in coding.weight_codes(counts)], float)
    assert found[0] == 0
    assert found[1] > 0
    assert found[3:] / found[-1] == pytest.approx(counts[3:] / counts[-1], rel=0.032)


def test_numbers_of_any_size_come_back() -> None:
    writer = Writer()
    numbers = [0, 1, 127, 128, 300, 2**40]
    for number in numbers:
        writer.number(number)
    reader = Reader(bytes(writer.data), "test")
    assert [reader.number("n") for _ in numbers] == numbers


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 30, b"\xff" * 9 + b"\x01"])
def test_a_number_that_is_cut_off_or_too_large_is_refused(data: bytes) -> None:
    with pytest.raises(CompressionError, match="there: damaged, n is"):
        Reader(data, "there").number("n")


def test_coded_data_that_is_left_over_is_refused() -> None:
    encoder = coding.Encoder()
    encoder.put(np.ones(500, np.uint8), coding.bit_frequencies(100))
    decoder = coding.Decoder(encoder.finish(), "there")
    decoder.take(400, coding.bit_frequencies(100))
    with pytest.raises(CompressionError, match="there: damaged, coded data is left over"):
        decoder.close()


def test_more_symbols_than_a_block_come_back() -> None:
    symbols = RNG.integers(0, 16, coding.BLOCK + 77).astype(np.uint8)
    model = coding.frequencies([1 + k for k in range(16)])
    encoder = coding.Encoder()
    encoder.put(symbols, model)
    decoder = coding.Decoder(encoder.finish(), "there")
    np.testing.assert_array_equal(decoder.take(symbols.size, model), symbols)
    decoder.close()


def test_more_symbols_than_were_coded_read_nothing_that_is_not_there() -> None:
    symbols, model = np.arange(200, dtype=np.uint8), coding.frequencies([9] * 200)
    encoder = coding.Encoder()
    encoder.put(symbols, model)
    found = coding.Decoder(encoder.finish(), "there").take(5000, model)
    np.testing.assert_array_equal(found[:200], symbols)


def test_narrow_masks_of_many_rows_come_back_block_by_block() -> None:
    mask = np.repeat(RNG.random((60_000, 1)) < 0.3, 3, 1)
    model = positions.Groups.fit(mask, 0, 2)
    encoder = coding.Encoder()
    model.encode(mask, encoder)
    np.testing.assert_array_equal(model.decode(coding.Decoder(encoder.finish(), "there")), mask)
