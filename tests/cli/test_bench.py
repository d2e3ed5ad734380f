from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from lightning_compress import CompressionError
from lightning_compress.apps.bench.bench import bench
from lightning_compress.apps.bench.open_file import inputs
from lightning_compress.cli.bench import add_bench
from lightning_compress.export.onnx.session import open_session


def matmuls(path: Path, count: int, shape: list[int | str], width: int = 64) -> Path:
    """A chain of matrix products: its time grows with their number."""
    weight = np.eye(width, dtype=np.float32)
    names = ["x", *(f"y{i}" for i in range(count))]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_bench(parser.add_subparsers())
    parsed = parser.parse_args(["bench", *arguments])
    code: int = parsed.command(parsed, [])
    return code


def test_a_file_with_a_tenth_of_the_work_has_a_ratio_below_one(tmp_path):
    small, large = (matmuls(tmp_path / f"{n}.onnx", n, ["batch", 64]) for n in (4, 40))
    (row,) = bench(small, large, batch_sizes=[64], seconds=0.05)
    assert row.ratio.high < 0.6
    assert row.samples_per_second == pytest.approx(64e3 / row.timing.median_ms)


def test_there_is_a_row_for_each_batch_size_and_number_of_threads(tmp_path):
    path = matmuls(tmp_path / "a.onnx", 1, ["batch", 64])
    rows = bench(path, batch_sizes=[1, 2], threads=[1, 2], seconds=0.001)
    assert [(row.threads, row.batch_size) for row in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert rows[0].ratio is None


def test_inputs_have_the_batch_size_and_the_given_dimensions(tmp_path):
    path = matmuls(tmp_path / "a.onnx", 1, ["batch", "time", 64])
    feed = inputs(open_session(path), path, 3, {"time": 5})
    assert feed["x"].shape == (3, 5, 64)


def test_a_free_dimension_without_a_size_is_refused_by_name(tmp_path):
    path = matmuls(tmp_path / "a.onnx", 1, ["batch", "time", 64])
    with pytest.raises(CompressionError, match=r"dimension 1 of input 'x' is free \(time\).*--dim time=<n>"):
        bench(path)


def test_another_batch_size_than_the_file_fixes_is_refused(tmp_path):
    path = matmuls(tmp_path / "a.onnx", 1, [4, 64])
    with pytest.raises(CompressionError, match=r"--batch-size: expected 4, which .* fixes for 'x', got 8"):
        bench(path, batch_sizes=[8])


def test_the_command_prints_json(tmp_path, capsys):
    path = matmuls(tmp_path / "model.onnx", 1, ["batch", 64])
    matmuls(tmp_path / "dense.onnx", 1, ["batch", 64])
    assert run(str(tmp_path), "--against", str(tmp_path), "--seconds", "0.01", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(path)
    assert found["against"].endswith("dense.onnx")
    assert set(found["rows"][0]["ratio"]) == {"median", "low", "high"}


def test_the_command_prints_a_table(tmp_path, capsys):
    path = matmuls(tmp_path / "a.onnx", 1, ["batch", "time", 64])
    assert run(str(path), "--dim", "time=2", "--batch-size", "1", "8", "--seconds", "0.01") == 0
    assert "median ms" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--dim", "time"], ["--batch-size", "0"]])
def test_wrong_use_is_refused(tmp_path, options):
    path = matmuls(tmp_path / "a.onnx", 1, ["batch", 64])
    with pytest.raises(CompressionError, match=r"bench --"):
        run(str(path), *options)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CompressionError, match=r"expected a file that an export wrote"):
        bench(tmp_path / "model.packed")


def test_memory_grows_with_what_a_file_computes(tmp_path):
    path = matmuls(tmp_path / "a.onnx", 1, ["batch", 64])
    small, large = (row.memory for row in bench(path, batch_sizes=[1, 100_000], seconds=0.001, memory=True))
    # Input and output of the large batch are 26 MB each.
    assert large - small > 40e6


def test_percentiles_are_in_order_and_a_batch_may_have_any_size(tmp_path):
    path = matmuls(tmp_path / "a.onnx", 4, ["batch", 64])
    for row in bench(path, batch_sizes=[3, 7], seconds=0.01):
        assert row.timing.median_ms <= row.timing.p90_ms <= row.timing.p99_ms


@pytest.mark.parametrize(("name", "start"), [("out.svg", b"<?xml"), ("out.png", b"\x89PNG")])
def test_a_picture_is_drawn(name, start, tmp_path):
    path = matmuls(tmp_path / "a.onnx", 1, ["batch", 64])
    target = tmp_path / name
    options = ["--against", str(path), "--batch-size", "1", "4", "--threads", "1", "2", "--seconds", "0.01"]
    assert run(str(path), *options, "--plot", str(target)) == 0
    assert target.read_bytes().startswith(start)


def test_a_picture_of_another_kind_is_refused_before_anything_is_timed(tmp_path):
    with pytest.raises(CompressionError, match=r"bench --plot: expected a name that ends in"):
        run(str(tmp_path / "gone.onnx"), "--plot", "out.txt")
