from __future__ import annotations

import pytest
import torch
from networks import ResidualNet
from torch import nn
from torchmetrics import Metric, MetricCollection

from lightning_compress.errors import CompressionError
from lightning_compress.metrics import BitOperations, ModelSize, Sparsity, WeightBits
from lightning_compress.pruning import Pruner
from lightning_compress.quantization import prepare

IMAGE = torch.zeros(1, 3, 8, 8)


def test_sparsity_is_that_of_the_pruner_s_weights() -> None:
    model = ResidualNet()
    pruner = Pruner(model, final_sparsity=0.75, start=0, end=1, targets=["fc"])
    pruner.step(1)
    metric = Sparsity(pruner)
    metric.update(model)
    assert metric.compute().item() == pruner.sparsity() == 0.75


def test_bit_operations_fall_by_sixteen_with_eight_bits() -> None:
    model = ResidualNet()
    metric = BitOperations(IMAGE)
    metric.update(model)
    before = metric.compute()
    metric.update(prepare(model, example_inputs=IMAGE))
    assert before / metric.compute() == 16


def test_the_last_update_counts() -> None:
    metric = WeightBits()
    metric.update(prepare(nn.Linear(4, 4), activation_bits=None, backend=None))
    metric.update(nn.Linear(4, 4))
    assert metric.compute().item() == 32


def test_large_numbers_are_exact() -> None:
    metric = ModelSize("dense")
    metric.update(nn.Linear(4097, 4097, bias=False))
    assert metric.compute().item() == 4 * 4097**2


def test_packed_is_smaller_than_dense_once_quantized() -> None:
    model = prepare(ResidualNet(), example_inputs=IMAGE)
    sizes = MetricCollection({"dense": ModelSize("dense"), "packed": ModelSize("packed")})
    sizes.update(model)
    found = sizes.compute()
    assert found["packed"] < found["dense"] / 2


def test_another_form_is_refused() -> None:
    with pytest.raises(CompressionError, match=r"ModelSize.form: expected 'dense' or 'packed', got 'zip'"):
        ModelSize("zip")  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", [Sparsity(), WeightBits(), ModelSize(), BitOperations(torch.zeros(1, 4))])
def test_each_is_a_metric_that_resets(metric: Metric) -> None:
    metric.update(nn.Linear(4, 4))
    assert metric.compute().isfinite()
    metric.reset()
    assert metric.value.isnan()
