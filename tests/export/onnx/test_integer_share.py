"""What runs in integers, counted from real shapes, and why the rest does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.export import to_onnx
from lightning_compress.export.integer_share import IntegerShare
from lightning_compress.export.onnx.integer_share import integer_share
from lightning_compress.quantization import prepare


def counted(model: nn.Module, x: torch.Tensor, path: Path, *, dynamic: bool = True, **settings: Any) -> IntegerShare:
    torch.manual_seed(0)
    prepare(model, example_inputs=x, **settings)
    model.train()(x)
    return integer_share(to_onnx(model.eval(), x, path / "model.onnx", dynamic_batch=dynamic).path)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("dynamic", [True, False])
def test_products_of_a_sequence_are_counted_whole_whatever_is_free(dynamic: bool, tmp_path: Path) -> None:
    found = counted(Attention(), torch.randn(1 if not dynamic else 2, 10, 16), tmp_path, dynamic=dynamic)
    projections, products = 10 * 16 * (4 * 16 + 3), 2 * 10 * 10 * 16
    assert found.total == projections + products
    assert found.integer == found.total


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.register_buffer("basis", torch.randn(16, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) @ self.basis


def test_a_product_by_a_buffer_is_named_with_its_share(tmp_path: Path) -> None:
    found = counted(Scores(), torch.randn(2, 10, 16), tmp_path)
    (line,) = [line for line in found.lines() if "of the multiply-adds" in line]
    assert f"({12 / 28:.2f} of the multiply-adds)" in line
    assert "stored in float" in line


def test_a_layer_that_is_left_out_is_named_with_the_reason(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    found = counted(model, torch.randn(2, 8), tmp_path, ignore=["4"])
    reasons = {operation.name: operation.reason for operation in found.operations}
    assert set(reasons) == {"2", "4"}
    assert "its weight is stored in float" in reasons["4"]
    # Its ReLU, which nothing quantizes, is fused into a float kernel.
    assert "no quantizer stands behind its activation" in reasons["2"]
    assert found.share == 8 * 16 / found.total


def test_a_recurrent_layer_is_named(tmp_path: Path) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0])

    found = counted(Tagger(), torch.randn(2, 5, 4), tmp_path)
    assert [(operation.kernel, operation.macs) for operation in found.operations] == [("LSTM", 5 * 4 * 8 * (4 + 8))]
    assert "no integer kernel for LSTM" in found.lines()[0]


def test_signed_activations_are_named_as_the_reason(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    found = counted(model, torch.randn(2, 8), tmp_path, activation_scheme="symmetric")
    assert all("signed" in operation.reason for operation in found.operations)


def test_a_sum_beside_norms_is_named_and_costs_no_multiply_adds(tmp_path: Path) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer, self.last = nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(x + self.layer(self.norm(x)))

    found = counted(Residual(), torch.randn(2, 8), tmp_path)
    assert found.share == 1
    assert [(operation.kernel, operation.macs) for operation in found.operations] == [("Add", 0)]
