from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ResidualNet
from torch import nn

from lightning_compress.export.packed.save_load import save_packed
from lightning_compress.metrics import LayerRow, describe, functional
from lightning_compress.monitoring.series import bar_text, phase, series
from lightning_compress.pruning import Pruner
from lightning_compress.pruning.schedule import CURVES, SparsitySchedule
from lightning_compress.quantization import find, prepare

IMAGE = torch.zeros(1, 3, 8, 8)


def row(name: str = "fc.weight", numel: int = 8, zeros: int = 0, **kwargs: Any) -> LayerRow:
    return LayerRow(name, "Linear", (numel,), numel, zeros, **kwargs)


def test_sparsity_is_over_what_is_pruned() -> None:
    rows = [
        row(zeros=6, sparsity_target=0.5),
        row(zeros=0, sparsity_target=0.5),
        row(zeros=8),
    ]
    assert functional.sparsity(rows) == 6 / 16


def test_sparsity_is_over_every_layer_s_weight_when_nothing_is_pruned() -> None:
    assert functional.sparsity([row(zeros=4), row(zeros=8, weight=False)]) == 0.5


def test_bits_leave_out_what_is_not_a_layer_s_weight() -> None:
    rows = [row(weight_bits=8, activation_bits=8), row(weight=False)]
    assert functional.weight_bits(rows) == 8
    assert functional.activation_bits(rows) == 8


def test_dense_bytes_are_four_for_each_parameter_and_those_of_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    expected = 4 * (4 * 3 * 9 + 4 + 4 + 4) + 4 * (4 + 4) + 8
    assert functional.dense_bytes(describe(model), functional.extra_bytes(model)) == expected


def test_dense_bytes_count_tied_weights_once() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    assert functional.dense_bytes(describe(model), functional.extra_bytes(model)) == 64


def test_bit_operations_are_unknown_without_multiply_accumulates() -> None:
    assert functional.bit_operations([row(macs=None)]) is None


def test_products_of_activations_count_in_float() -> None:
    assert functional.bit_operations([row(macs=2, weight_bits=4, activation_bits=8)], products=3) == 64 + 3 * 1024


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_packed_estimate_is_close_to_the_file(tmp_path: Path, bits: int | None, sparsity: float) -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=0.05)
    if sparsity:
        Pruner(model, final_sparsity=sparsity, start=0, end=1).step(1)
    if bits is not None:
        prepare(model, weight_bits=bits, activation_bits=None, backend=None)
    estimate = functional.packed_bytes(describe(model), functional.extra_bytes(model))
    assert save_packed(model, tmp_path / "model.packed").bytes == pytest.approx(estimate, rel=0.1)


@pytest.mark.parametrize("rows", ["kernel", "columns"])
def test_packed_estimate_reads_every_place_of_a_kernel_and_a_row(tmp_path: Path, rows: str) -> None:
    if rows == "kernel":
        model: nn.Module = nn.Conv2d(256, 256, 3, bias=False)  # 9 × 65,536 weights
        thinned = model.weight.detach()[:, :, 0, 0]
    else:
        model = nn.Linear(1024, 512, bias=False)
        thinned = model.weight.detach()[:, ::2]
    thinned.mul_(-0.0)  # of both signs
    estimate = functional.packed_bytes(describe(model))
    assert save_packed(model, tmp_path / "model.packed").bytes == pytest.approx(estimate, rel=0.15)


def test_series_has_every_key() -> None:
    model = ResidualNet()
    assert sorted(series(describe(model, example_inputs=IMAGE))) == [
        "compress/bits/activation",
        "compress/bits/weight",
        "compress/bops",
        "compress/compression_ratio",
        "compress/size_mb/dense",
        "compress/size_mb/packed",
        "compress/sparsity/global",
        "compress/sparsity/target",
    ]


def test_zeros_lower_the_packed_estimate() -> None:
    model = ResidualNet()
    before = functional.packed_bytes(describe(model))
    Pruner(model, final_sparsity=0.7, start=0, end=1).step(1)
    assert functional.packed_bytes(describe(model)) < 0.5 * before


def test_phases_name_what_pruning_and_quantization_do() -> None:
    schedule = SparsitySchedule(0.0, 0.8, start=10, end=20, every=5, curve=CURVES["cubic"])
    model = prepare(nn.Linear(2, 2), activation_bits=None, backend=None)
    quantization = find(model)
    assert quantization is not None
    quantization.enabled = False
    names = [phase(step, schedule, quantization) for step in (9, 10, 19, 20)]
    quantization.enabled = True
    assert names == ["dense", "pruning", "pruning", "pruned"]
    assert phase(5, schedule, quantization) == "quantized"
    assert phase(25, schedule, quantization) == "pruned + quantized"


def test_bar_shows_fractional_bits() -> None:
    found = {"compress/sparsity/global": 0.5, "compress/bits/weight": 5.25, "compress/bits/activation": 32.0}
    assert bar_text(found)["bits"] == "5.25/32"
