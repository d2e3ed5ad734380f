from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import EncoderNet, Mlp, ResidualNet
from torch import nn

from lightning_compress.metrics import describe
from lightning_compress.metrics.layer_table import count_zeros, entropies
from lightning_compress.pruning import Pruner
from lightning_compress.quantization import Quantization, find, prepare
from lightning_compress.quantization.quantizers.weight import WeightQuantizer


def weights(quantization: Quantization) -> dict[str, torch.Tensor]:
    return {name: quantizer.weight for name, quantizer in quantization.layers.items()}


IMAGE = torch.zeros(1, 3, 8, 8)


def test_every_parameter_has_one_row_in_the_model_s_order() -> None:
    model = ResidualNet()
    assert [row.name for row in describe(model)] == [name for name, _ in model.named_parameters()]


def test_tied_parameters_have_one_row() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert [row.name for row in describe(nn.Sequential(first, second))] == ["0.weight", "0.bias", "1.bias"]


def test_zeros_agree_with_numpy() -> None:
    tensors = [torch.tensor([0.0, -0.0, 1e-45, math.nan]), torch.randn(50, 3).relu(), torch.zeros(0, 4)]
    assert count_zeros(tensors) == [int((t.numpy() == 0).sum()) for t in tensors]


def test_only_layers_weights_count_as_weights() -> None:
    weights = {row.name for row in describe(EncoderNet()) if row.weight}
    expected = {name for name, p in EncoderNet().named_parameters() if p.ndim == 2}
    assert weights == expected


def test_targets_and_patterns_come_from_the_pruner() -> None:
    model = Mlp()
    pruner = Pruner(
        model,
        final_sparsity=0.5,
        start=0,
        end=1,
        distribution="uniform",
        ignore=["5"],
        overrides={"3": {"final_sparsity": 0.75, "pattern": "1:4"}},
    )
    pruner.step(1)
    rows = {row.name: row for row in describe(model, pruner=pruner)}
    assert (rows["1.weight"].sparsity_target, rows["1.weight"].pattern) == (0.5, "unstructured")
    assert (rows["3.weight"].sparsity_target, rows["3.weight"].pattern) == (0.75, "1:4")
    assert (rows["5.weight"].sparsity_target, rows["5.weight"].pattern) == (None, "none")
    assert rows["3.weight"].sparsity == 0.75


def test_bits_are_those_of_the_quantizers() -> None:
    model = prepare(Mlp(), weight_bits=4, activation_bits=8, overrides={"3": None}, example_inputs=torch.zeros(1, 12))
    rows = {row.name: (row.weight_bits, row.activation_bits) for row in describe(model)}
    assert rows["1.weight"] == (4, 8)
    assert rows["3.weight"] == (32, 32)
    assert rows["1.bias"] == (32, 32)


def test_bits_are_those_of_floats_while_quantization_is_off() -> None:
    model = prepare(Mlp(), example_inputs=torch.zeros(1, 12))
    quantization = find(model)
    assert quantization is not None
    quantization.enabled = False
    assert {(row.weight_bits, row.activation_bits) for row in describe(model)} == {(32, 32)}


def test_half_precision_weights_have_sixteen_bits() -> None:
    assert describe(nn.Linear(2, 2, dtype=torch.bfloat16))[0].weight_bits == 16


def bits_of(quantizer: WeightQuantizer) -> float:
    """Entropy of a weight's integers, and its scales, by NumPy."""
    _, counts = np.unique(quantizer.integers().numpy(), return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum() + 32 * quantizer.scale().numel() / quantizer.weight.numel())


@pytest.mark.parametrize("granularity", ["channel", "tensor", "group:4"])
def test_entropy_agrees_with_the_exported_integers(granularity: str) -> None:
    model = prepare(Mlp(), weight_bits=4, activation_bits=None, weight_granularity=granularity, backend=None)
    quantization = find(model)
    assert quantization is not None
    found = entropies(weights(quantization), quantization.layers)
    assert found == pytest.approx({name: bits_of(q) for name, q in quantization.layers.items()}, rel=1e-6)


def test_entropy_of_a_large_weight_is_sampled_closely() -> None:
    model = prepare(nn.Linear(400, 1000), activation_bits=None, backend=None)
    quantization = find(model)
    assert quantization is not None
    found = entropies(weights(quantization), quantization.layers)["weight"]
    assert found == pytest.approx(bits_of(quantization.layers["weight"]), rel=0.01)


def test_diverged_weights_are_still_described() -> None:
    model = prepare(nn.Linear(4, 4), activation_bits=None, backend=None)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    assert describe(model)[0].zeros == 0


def test_multiply_accumulates_are_left_out_without_example_inputs() -> None:
    assert {row.macs for row in describe(ResidualNet())} == {None}
    assert describe(ResidualNet(), example_inputs=IMAGE)[0].macs == 8 * 3 * 9 * 64
