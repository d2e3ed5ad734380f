"""Weights that are read in another module than their layer: training, ONNX and packed files see the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_compress.export import load_packed, save_packed, to_onnx
from lightning_compress.quantization import find, prepare


class Reader(nn.Module):
    """A convolution, an embedding's table and a linear layer, of which a function decides what is read."""

    def __init__(self, read: Callable[[Reader, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.read = read
        self.embed, self.norm = nn.Embedding(8, 6), nn.LayerNorm(6)
        self.conv, self.bn, self.head = nn.Conv1d(6, 6, 1, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        x = self.bn(self.conv(x.transpose(1, 2).to(self.conv.weight.dtype))).transpose(1, 2)
        return self.head(self.read(self, x).mean(1))


def squeezed(net: Reader, x: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x.transpose(1, 2), net.conv.weight.squeeze(-1)[..., None]).transpose(1, 2)


def normalized(net: Reader, x: torch.Tensor) -> torch.Tensor:
    return x @ net.norm(net.embed.weight).T @ net.norm(net.embed.weight)


def transposed(net: Reader, x: torch.Tensor) -> torch.Tensor:
    return x @ net.head.weight.T @ net.head.weight


def scaled(net: Reader, x: torch.Tensor) -> torch.Tensor:
    return x * net.embed.weight.mean(0)


TOKENS = torch.randint(0, 8, (4, 5), generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    prepare(model, example_inputs=TOKENS, **settings)
    model.train()
    for _ in range(3):
        model(TOKENS)
    return model.eval()


@pytest.mark.parametrize("bits", [8, None])
@pytest.mark.parametrize("read", [squeezed, normalized, transposed, scaled])
def test_every_file_says_what_the_trained_model_says(
    read: Callable[[Reader, torch.Tensor], torch.Tensor], bits: int | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Reader(read)
    fresh = copy.deepcopy(model).eval()
    trained(model, weight_bits=4, first_last_bits=None, activation_bits=bits)
    expected = model(TOKENS).detach()
    save_packed(model, tmp_path / "model.packed")
    torch.testing.assert_close(load_packed(tmp_path / "model.packed", fresh)(TOKENS), expected)
    file = to_onnx(model, TOKENS, tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    found = ort.InferenceSession(str(file.path), options).run(None, {"tokens": TOKENS.numpy()})[0]
    step = float(expected.abs().max()) / 20 if bits else 1e-4
    np.testing.assert_allclose(found, expected.numpy(), atol=step)


@pytest.mark.parametrize("read", [squeezed, normalized, scaled])
def test_the_outside_read_sees_the_grid_in_training(read: Callable[[Reader, torch.Tensor], torch.Tensor]) -> None:
    seen: dict[str, int] = {}

    def look(net: Reader, x: torch.Tensor) -> torch.Tensor:
        weight = net.conv.weight if read is squeezed else net.embed.weight
        seen["values"] = int(weight[0].unique().numel())
        return read(net, x)

    model = trained(Reader(look), weight_bits=2, first_last_bits=None, activation_bits=None)
    model(TOKENS)
    assert seen["values"] <= 3


def test_reading_a_type_or_a_shape_is_no_read() -> None:
    model = trained(Reader(lambda net, x: x + net.conv.weight.shape[0]))
    assert [len(q.uses) for q in find(model).layers.values()] == [1, 1, 1]


def test_a_penalty_is_no_read() -> None:
    def penalized(net: Reader, x: torch.Tensor) -> torch.Tensor:
        return x + 0.0 * net.conv.weight.square().sum()

    model = trained(Reader(penalized))
    assert [len(q.uses) for q in find(model).layers.values()] == [1, 1, 1]
    assert find(model).placement.folds


def test_a_norm_stays_where_another_function_reads_its_layers_weight() -> None:
    model = trained(Reader(squeezed))
    assert not find(model).placement.folds
