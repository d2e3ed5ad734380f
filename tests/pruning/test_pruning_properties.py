"""What holds for every shape, sparsity, pattern and type of weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_compress.pruning import Pruner

PATTERNS = {"unstructured": 1, "2:4": 4, "1:4": 4, "4:8": 8, "block:1x4": 4, "block:2x2": 4}


class Weights(nn.Module):
    def __init__(self, shapes, dtype, generator):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inside, outside, bias=False, dtype=dtype) for outside, inside in shapes)
        for layer in self.layers:
            # Few levels, so that many weights are equal.
            values = torch.randint(-20, 21, layer.weight.shape, generator=generator)
            layer.weight.data = values.to(dtype) / 4


@st.composite
def cases(draw):
    pattern = draw(st.sampled_from(list(PATTERNS)))
    size = st.integers(1, 6).map(lambda n: n * PATTERNS[pattern])
    shapes = draw(st.lists(st.tuples(size, size), min_size=1, max_size=3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sparsity = draw(st.floats(0.01, 0.95))
    if ":" in pattern and pattern[0].isdigit():
        kept, of = map(int, pattern.split(":"))
        sparsity = 1 - kept / of
    return pattern, Weights(shapes, dtype, generator), sparsity


def expected_zeros(pattern, model, sparsity, distribution):
    """Weights that are pruned, counted in units of the pattern."""
    sizes = [layer.weight.numel() for layer in model.layers]
    pools = [sum(sizes)] if distribution == "global" else sizes
    unit = 4 if pattern.startswith("block") else 1
    return sum(round(sparsity * (pool // unit)) * unit for pool in pools)


@pytest.mark.parametrize("distribution", ["global", "uniform"])
@settings(max_examples=60)
@given(case=cases())
def test_counts_are_exact_patterns_whole_and_updates_idempotent(distribution, case):
    pattern, model, sparsity = case
    pruner = Pruner(model, final_sparsity=sparsity, pattern=pattern, distribution=distribution, start=3, end=3)
    assert pruner.step(3) == (expected_zeros(pattern, model, sparsity, distribution) > 0)
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    assert sum(int((~mask).sum()) for mask in masks.values()) == expected_zeros(pattern, model, sparsity, distribution)
    for name, mask in masks.items():
        kept = mask.numpy()
        if pattern[0].isdigit():
            n, m = map(int, pattern.split(":"))
            assert (kept.reshape(-1, m).sum(1) == n).all()
        elif pattern != "unstructured":
            rows, columns = map(int, pattern.removeprefix("block:").split("x"))
            blocks = kept.reshape(kept.shape[0] // rows, rows, kept.shape[1] // columns, columns).sum((1, 3))
            assert np.isin(blocks, [0, rows * columns]).all()
        assert not model.get_parameter(name).detach()[~mask].any()
    assert not pruner.step(3)
    # Another pruner, which knows nothing of the first, finds the same masks from the zeros.
    again = Pruner(
        model, final_sparsity=sparsity, pattern=pattern, distribution=distribution, start=3, end=3, keep_zeros=True
    )
    zeros = sum(int((parameter == 0).sum()) for parameter in model.parameters())
    again.step(3)
    if zeros == sum(int((~mask).sum()) for mask in masks.values()):
        assert all(torch.equal(mask, again.masks[name]) for name, mask in masks.items())
