from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_compress.metrics.zero_patterns import empty_channels, pattern_of
from lightning_compress.pruning import Pruner


@pytest.mark.parametrize(
    ("pattern", "sparsity"),
    [
        ("2:4", 0.5),
        ("1:4", 0.75),
        ("block:1x4", 0.7),
        ("block:4x4", 0.6),
        ("unstructured", 0.5),
        ("unstructured", 0.95),
    ],
)
@pytest.mark.parametrize("layer", [nn.Linear(64, 32), nn.Conv2d(16, 32, 3)], ids=["linear", "conv"])
def test_the_pattern_that_pruning_made_is_found_again(layer: nn.Module, pattern: str, sparsity: float) -> None:
    nn.init.normal_(layer.weight)
    pruner = Pruner(layer, final_sparsity=sparsity, pattern=pattern, start=0, end=1)
    pruner.step(1)
    assert pattern_of(layer.weight.detach()) == pattern


@pytest.mark.parametrize("dim", [0, 1])
def test_whole_channels_are_named_whichever_side_they_are_on(dim: int) -> None:
    weight = torch.randn(16, 8, 3, 3)
    weight.index_fill_(dim, torch.tensor([1, 4, 6]), 0.0)
    assert pattern_of(weight) == "channel"
    assert empty_channels(weight) == (3 if dim == 0 else 0)


def test_integers_that_rounded_to_zero_inside_kept_blocks_do_not_hide_the_blocks() -> None:
    weight = torch.randint(1, 8, (32, 64), dtype=torch.int8)
    blocks = torch.rand(32, 16) < 0.5
    weight[blocks.repeat_interleave(4, 1)] = 0
    weight[torch.rand(32, 64) < 0.05] = 0
    assert pattern_of(weight) == "block:1x4"


def test_scattered_zeros_are_not_taken_for_structure_at_any_sparsity() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        sparsity = float(torch.rand((), generator=generator))
        weight = torch.rand(64, 64, generator=generator) + 1
        weight[torch.rand(64, 64, generator=generator) < sparsity] = 0
        assert pattern_of(weight) == "unstructured", sparsity


def test_a_weight_without_zeros_has_no_pattern() -> None:
    assert pattern_of(torch.ones(4, 4)) == "none"
