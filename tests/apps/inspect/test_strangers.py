"""Files of strangers: an error of one line, and no more memory than the file says it has."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lightning_compress.apps.inspect.inspect import inspect
from lightning_compress.errors import DoesNotHold


def model(path: Path, *, external: bool = False) -> onnx.ModelProto:
    """A multiplication by a quantized weight."""
    weight = numpy_helper.from_array(np.arange(-32, 32, dtype=np.int8).reshape(16, 4), "w")
    scale = numpy_helper.from_array(np.full(4, 0.1, np.float32), "s")
    zero = numpy_helper.from_array(np.zeros(4, np.int8), "z")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], axis=1),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 16]), ("y", [1, 4]))]
    made = helper.make_model(helper.make_graph(nodes, "g", shapes[:1], shapes[1:], [weight, scale, zero]))
    if external:
        onnx.save(made, path, save_as_external_data=True, location="m.data", size_threshold=0)
        made = onnx.load(path, load_external_data=False)
    onnx.save(made, path)
    return made


def shape(graph: Any, *dims: int) -> None:
    graph.initializer[0].dims[:] = dims


def moved(graph: Any, key: str, value: str) -> None:
    entry = next((e for e in graph.initializer[0].external_data if e.key == key), None)
    entry = graph.initializer[0].external_data.add(key=key) if entry is None else entry
    entry.value = value


LIES: dict[str, tuple[bool, Callable[[Any], None]]] = {
    "shape": (False, lambda g: shape(g, 2**20, 2**20)),
    "negative shape": (False, lambda g: shape(g, -16, -4)),
    "shape of what is beside": (True, lambda g: shape(g, 2**20, 2**20)),
    "type": (False, lambda g: setattr(g.initializer[0], "data_type", 99)),
    "fewer bytes": (False, lambda g: setattr(g.initializer[0], "raw_data", b"1234")),
    "block": (False, lambda g: g.node[0].attribute.append(helper.make_attribute("block_size", 2**40))),
    "axis": (False, lambda g: setattr(g.node[0].attribute[0], "i", 9)),
    "scale": (False, lambda g: g.initializer[2].CopyFrom(numpy_helper.from_array(np.zeros((9, 1, 1), np.int8), "z"))),
    "place": (True, lambda g: moved(g, "location", "../m.data")),
    "absolute place": (True, lambda g: moved(g, "location", "/etc/passwd")),
    "missing place": (True, lambda g: moved(g, "location", "elsewhere.data")),
    "offset": (True, lambda g: moved(g, "offset", str(1 << 60))),
    "length": (True, lambda g: moved(g, "length", "-5")),
    "length of no digits": (True, lambda g: moved(g, "length", "x")),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_onnx_file_with_lies_in_it_is_damaged(lie: str, tmp_path: Path) -> None:
    external, tell = LIES[lie]
    path = tmp_path / "below" / "m.onnx"
    path.parent.mkdir()
    made = model(path, external=external)
    assert {row.name for row in inspect(path).tensors} == {"w"}
    tell(made.graph)
    path.write_bytes(made.SerializeToString())
    with pytest.raises(DoesNotHold, match=r"m\.onnx"):
        inspect(path)


def test_an_onnx_file_without_its_side_file_is_damaged(tmp_path: Path) -> None:
    model(tmp_path / "m.onnx", external=True)
    (tmp_path / "m.data").unlink()
    with pytest.raises(DoesNotHold, match=r"m\.data, which is not beside it"):
        inspect(tmp_path / "m.onnx")


def test_no_byte_of_an_onnx_file_or_a_checkpoint_raises_anything_else(tmp_path: Path) -> None:
    model(tmp_path / "m.onnx")
    torch.save({"state_dict": {"weight": torch.arange(12.0).reshape(3, 4)}}, tmp_path / "m.ckpt")
    rng = random.Random(0)
    for path in (tmp_path / "m.onnx", tmp_path / "m.ckpt"):
        data = path.read_bytes()
        refused = 0
        for _ in range(150):
            changed = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                changed[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(changed)
            try:
                inspect(path)
            except ValueError:
                refused += 1
        assert refused > 20


def test_a_checkpoint_whose_tensor_repeats_one_value_for_ever_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(1).expand(1 << 40)}}, tmp_path / "m.ckpt")
    with pytest.raises(DoesNotHold, match="more values than the file holds"):
        inspect(tmp_path / "m.ckpt")
