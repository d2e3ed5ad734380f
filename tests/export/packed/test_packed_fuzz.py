"""Damaged and hostile files end in a CompressionError or a right load: no crash, no hang, no great memory."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import ResidualNet
from packed_mutations import Liar, cases
from torch import nn

from lightning_compress import quantization
from lightning_compress.apps.inspect.inspect import inspect
from lightning_compress.errors import CompressionError
from lightning_compress.export.packed import container
from lightning_compress.export.packed.layout import INTEGERS, PLAIN, SPARSE, Entry
from lightning_compress.export.packed.save_load import PackedReader, load_packed, save_packed


@pytest.fixture(scope="module")
def true_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = ResidualNet()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(torch.rand_like(parameter) < 0.4)
    quantization.prepare(net, example_inputs=torch.randn(1, 3, 16, 16), overrides={"fc": None})
    net.train()(torch.randn(4, 3, 16, 16))
    return save_packed(net, tmp_path_factory.mktemp("fuzz") / "true.packed").path


def attempt(path: Path) -> nn.Module | None:
    model = ResidualNet()
    try:
        load_packed(path, model)
        with PackedReader(path) as reader:
            for name in reader.entries:
                reader.tensor(name)
    except CompressionError as error:
        if not str(error).startswith(str(path)):
            raise
        return None
    return model


@pytest.mark.parametrize("seed", range(4))
def test_no_damaged_file_does_harm(true_file: Path, tmp_path: Path, seed: int) -> None:
    data = true_file.read_bytes()
    expected = attempt(true_file)
    path = tmp_path / "case.packed"
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for is_lie, case in cases(data, Liar(true_file, tmp_path / "scratch"), 100, seed):
        path.write_bytes(case)
        start = time.process_time()
        found = attempt(path)
        assert time.process_time() - start < 5
        refused += found is None
        # A lie may be a file of other weights; damage must be seen, or have changed nothing.
        if found is not None and not is_lie:
            for name, tensor in expected.state_dict().items():
                assert torch.equal(tensor, found.state_dict()[name])
    assert refused > 70
    # Bombs of up to 8 GB are among the cases.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kilobytes < 150_000


@pytest.mark.parametrize("kind", [PLAIN, SPARSE])
def test_quantizers_far_larger_than_the_file_are_refused_before_they_are_made(
    true_file: Path, tmp_path: Path, kind: int
) -> None:
    liar = Liar(true_file, tmp_path / "bomb.packed")
    entries = list(liar.layout.entries)
    entries[-1] = replace(entries[-1], kind=kind, dtype=0, shape=(2**20, 2**10), chunk=len(liar.chunks))
    container.write(liar.scratch, entries, [*liar.chunks, bytes([2, 3, 0, 0, 1]) * 4], liar.layout.extra)
    with pytest.raises(CompressionError, match="its quantizers would take 4294967"):
        load_packed(liar.scratch, ResidualNet())


@pytest.mark.parametrize("where", ["header", "lead", "layout", "first chunk", "last byte"])
def test_a_single_flipped_bit_is_always_seen(true_file: Path, tmp_path: Path, where: str) -> None:
    data = true_file.read_bytes()
    start = {"header": 0, "lead": 128, "layout": 160, "first chunk": 1200, "last byte": len(data) - 1}[where]
    for offset in range(start, min(start + 12, len(data))):
        for bit in range(8):
            broken = bytearray(data)
            broken[offset] ^= 1 << bit
            (tmp_path / "case.packed").write_bytes(broken)
            assert attempt(tmp_path / "case.packed") is None


def test_every_truncation_is_seen(true_file: Path, tmp_path: Path) -> None:
    data = true_file.read_bytes()
    for length in [*range(0, 200), *range(200, len(data), 97), len(data) - 1]:
        (tmp_path / "case.packed").write_bytes(data[:length])
        assert attempt(tmp_path / "case.packed") is None


EXTRA = '{"metadata":null,"prefix":null,"quantization":null}'
SINGLE = bytes([0, 0, 1, 1, 0, 0, 0])
"""A chunk of integers that are all zero, however many there are."""
PLANES = bytes([2, 3, 0, 0, 1]) * 16
"""Planes of zeros, however many numbers there are."""
SCALE = Entry("", 0, (), PLAIN, 1)
BOMBS: dict[str, tuple[list[Entry], list[bytes]]] = {
    "rows without columns": ([Entry("w", 0, (2**31, 0), INTEGERS, 0, scale=1), SCALE], [SINGLE, bytes(8)]),
    "columns without rows": ([Entry("w", 0, (0, 2**31), SPARSE, 0)], [SINGLE + b"\0" + PLANES]),
    "integers": ([Entry("w", 0, (2**13, 2**13), INTEGERS, 0, scale=1, bits=8), SCALE], [SINGLE, bytes(8)]),
    "sparse": ([Entry("w", 0, (2**13, 2**13), SPARSE, 0)], [SINGLE + b"\0" + PLANES]),
    "plain": ([Entry("w", 0, (2**28,), PLAIN, 0)], [PLANES]),
    "a large one in a pool": ([Entry("w", 0, (1,), PLAIN, 0), Entry("b", 0, (2**29,), PLAIN, 0)], [PLANES]),
    "a pool of many": ([Entry(f"w{k}", 0, (2**13,), PLAIN, 0) for k in range(5000)], [PLANES]),
    "many": ([Entry(f"w{k}", 0, (2**13,), PLAIN, k) for k in range(5000)], [PLANES] * 5000),
    "sizes that overflow": ([Entry("w", 0, (2**47, 2**47, 0), PLAIN, 0)], [PLANES]),
    "a product that overflows": ([Entry("w", 0, (2**24, 2**24, 2**24), PLAIN, 0)], [PLANES]),
    "one chunk for two": (
        [Entry(name, 0, (4, 4), INTEGERS, 0, scale=2, bits=8) for name in "ab"] + [SCALE], [SINGLE, bytes(8)],
    ),
    "a scale of its own shape": (
        [Entry("w", 0, (4, 4), INTEGERS, 0, scale=1, bits=8), replace(SCALE, shape=(2**20,))], [SINGLE, PLANES],
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_with_right_checksums_are_refused_before_anything_is_allocated(bomb: str, tmp_path: Path) -> None:
    entries, chunks = BOMBS[bomb]
    path = tmp_path / "bomb.packed"
    container.write(path, entries, chunks, EXTRA)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = peak()
    with pytest.raises(CompressionError, match="bomb"):
        inspect(path)
    with pytest.raises(CompressionError, match="bomb"):
        read_first(path)
    assert peak() - before < 20_000


def read_first(path: Path) -> torch.Tensor:
    """The first tensor of a file, integers as such."""
    with PackedReader(path) as reader:
        name = next(iter(reader.entries))
        return (reader.integers if reader.entries[name].kind == INTEGERS else reader.tensor)(name)


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@pytest.mark.parametrize("extra", ["[" * 70 + "]" * 70, '{"a":' * 70 + "1" + "}" * 70])
def test_metadata_that_is_nested_too_deeply_is_refused_when_read_and_when_written(extra: str, tmp_path: Path) -> None:
    container.write(tmp_path / "deep.packed", [], [], EXTRA.replace('"metadata":null', f'"metadata":{extra}'))
    with pytest.raises(CompressionError, match="deeply nested"):
        PackedReader(tmp_path / "deep.packed")
    with pytest.raises(CompressionError, match="nested more than"):
        save_packed(nn.Linear(2, 2), tmp_path / "net.packed", json.loads(extra))
