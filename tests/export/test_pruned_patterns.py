"""What is exported has the pattern in which it was pruned, among the integers too."""

from __future__ import annotations

from pathlib import Path

import networks
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_compress.export import load_packed, save_packed, to_onnx
from lightning_compress.pruning import Pruner
from lightning_compress.quantization import find, prepare


def two_of_four(weight: np.ndarray) -> bool:
    """At most two of four neighbours along the input dimension are not zero."""
    groups = np.moveaxis(weight, 1, -1).reshape(-1, 4)
    return bool((np.count_nonzero(groups, axis=1) <= 2).all())


def whole_blocks(weight: np.ndarray) -> bool:
    """Blocks of 1×4 of the weight as a matrix are zero altogether or not at all, but for what rounds to zero."""
    zero = (weight.reshape(weight.shape[0], -1, 4) == 0).all(axis=2)
    return 0.4 < zero.mean() < 0.6


def trained(pattern: str) -> tuple[nn.Module, torch.Tensor, list[str]]:
    torch.manual_seed(0)
    model = networks.PlainNet()
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 5
    pruner = Pruner(model, final_sparsity=0.5, start=0, end=4, pattern=pattern, distribution="uniform")
    prepare(model, example_inputs=x[:2])
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    for step in range(8):
        pruner.step(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    pruner.apply()
    assert pruner.sparsity() >= 0.5
    return model.eval(), x, list(pruner.masks)


PATTERNS = pytest.mark.parametrize(("pattern", "holds"), [("2:4", two_of_four), ("block:1x4", whole_blocks)])


@PATTERNS
def test_the_onnx_file_s_integers_keep_the_pattern(pattern: str, holds: object, tmp_path: Path) -> None:
    model, x, names = trained(pattern)
    quantization = find(model)
    assert quantization is not None
    file = to_onnx(model, x[:2], tmp_path / "model.onnx")
    stored = [onnx.numpy_helper.to_array(t) for t in onnx.load(file.path).graph.initializer]
    integers = [array for array in stored if array.dtype == np.int8 and array.ndim > 1]
    wanted = {tuple(model.get_parameter(name).shape) for name in names}
    found = [array for array in integers if array.shape in wanted]
    assert len(found) == len(names)
    assert all(holds(array) for array in found)  # type: ignore[operator]


@PATTERNS
def test_the_packed_integers_keep_the_pattern(pattern: str, holds: object, tmp_path: Path) -> None:
    model, _, names = trained(pattern)
    save_packed(model, tmp_path / "model.packed")
    loaded = load_packed(tmp_path / "model.packed", networks.PlainNet())
    quantization = find(loaded)
    assert quantization is not None
    for name in names:
        assert holds(quantization.layers[name].integers().numpy())  # type: ignore[operator]
        assert holds(loaded.get_parameter(name).detach().numpy())  # type: ignore[operator]
