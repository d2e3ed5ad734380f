"""n:m and block patterns against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.pruning import Pruner
from lightning_compress.pruning.patterns import parse_pattern


def prune(layer, pattern, sparsity, **more):
    pruner = Pruner(layer, final_sparsity=sparsity, start=0, end=0, pattern=pattern, **more)
    pruner.step(0)
    return pruner.masks["weight"].numpy()


@settings(max_examples=40)
@given(
    pattern=st.sampled_from(["2:4", "1:4", "4:8", "1:2", "3:4"]),
    rows=st.integers(1, 6),
    groups=st.integers(1, 4),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_n_of_m_keeps_the_largest_of_every_group(pattern, rows, groups, seed, dtype):
    n, m = map(int, pattern.split(":"))
    torch.manual_seed(seed)
    layer = nn.Linear(groups * m, rows, bias=False).to(dtype)
    values = layer.weight.detach().float().abs().numpy().reshape(-1, m)
    expected = np.ones_like(values, dtype=bool)
    np.put_along_axis(expected, np.argsort(values, axis=1, kind="stable")[:, : m - n], False, axis=1)
    mask = prune(layer, pattern, 1 - n / m)
    np.testing.assert_array_equal(mask.reshape(-1, m), expected)


def test_n_of_m_groups_lie_along_the_input_channels_of_a_convolution():
    torch.manual_seed(0)
    mask = prune(nn.Conv2d(8, 4, 3, bias=False), "2:4", 0.5)
    groups = mask.transpose(0, 2, 3, 1).reshape(-1, 4)
    assert (groups.sum(axis=1) == 2).all()


def test_a_gradual_n_of_m_prunes_whole_groups_with_nested_masks_and_exact_counts():
    torch.manual_seed(0)
    layer = nn.Linear(16, 10, bias=False)
    pruner = Pruner(layer, final_sparsity=0.5, start=0, end=10, pattern="2:4", schedule="linear")
    before = np.ones((10, 16), bool)
    for step in range(11):
        pruner.step(step)
        mask = pruner.masks["weight"].numpy().copy()
        zeros = 4 - mask.reshape(-1, 4).sum(axis=1)
        assert set(zeros) <= {0, 2}
        assert (zeros == 2).sum() == round(step / 10 * 40)
        assert not (mask & ~before).any()
        before = mask


def test_half_way_the_groups_whose_pruned_weights_are_smallest_come_first() -> None:
    layer = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        # By their sums the second group would be the smaller one.
        layer.weight.copy_(torch.tensor([[0.1, 0.1, 9.0, 9.0], [1.0, 1.0, 1.0, 1.0]]))
    Pruner(layer, final_sparsity=0.5, start=0, end=10, every=5, pattern="2:4", schedule="linear").step(5)
    assert (layer.weight == 0).tolist() == [[True, True, False, False], [False] * 4]


@settings(max_examples=40)
@given(
    size=st.sampled_from([(1, 4), (4, 1), (2, 2), (8, 2)]),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    sparsity=st.floats(0, 0.99),
    seed=st.integers(0, 999),
)
@pytest.mark.filterwarnings("ignore:.*every weight of")
def test_blocks_are_whole_and_the_smallest_go(size, grid, sparsity, seed):
    torch.manual_seed(seed)
    rows, columns = grid[0] * size[0], grid[1] * size[1]
    layer = nn.Linear(columns, rows, bias=False)
    blocks = layer.weight.detach().double().abs().numpy().reshape(grid[0], size[0], grid[1], size[1])
    scores = blocks.mean(axis=(1, 3)).ravel()
    count = round(sparsity * scores.size)
    expected = np.ones(scores.size, bool)
    expected[np.argsort(scores, kind="stable")[:count]] = False
    expected = expected.reshape(grid).repeat(size[0], axis=0).repeat(size[1], axis=1)
    np.testing.assert_array_equal(prune(layer, f"block:{size[0]}x{size[1]}", sparsity), expected)


def test_blocks_may_have_as_many_sizes_as_the_weight_has_dimensions():
    torch.manual_seed(0)
    mask = prune(nn.Conv2d(4, 6, 3, bias=False), "block:1x1x3x3", 0.5)
    kernels = mask.reshape(24, 9)
    assert (kernels.all(axis=1) | ~kernels.any(axis=1)).all()
    assert kernels.all(axis=1).sum() == 12


def test_blocks_are_ranked_together_over_layers():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight.fill_(2.0)
    pruner = Pruner(model, final_sparsity=0.25, start=0, end=0, pattern="block:2x2")
    pruner.step(0)
    assert pruner.masks["1.weight"].all()
    assert int(pruner.masks["0.weight"].sum()) == 32


def test_a_layer_that_the_pattern_does_not_fit_is_left_out_with_a_reason():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 4))
    pruner = Pruner(model, final_sparsity=0.5, start=0, end=0, pattern="2:4")
    assert list(pruner.masks) == ["2.weight"]
    assert "divisible by 4" in pruner.skipped["0.weight"]


def test_a_layer_named_for_a_pattern_that_does_not_fit_is_refused():
    with pytest.raises(CompressionError, match=r"Pruner\.pattern: 0\.weight of shape \[4, 3\].*divisible by 4"):
        Pruner(nn.Sequential(nn.Linear(3, 4)), final_sparsity=0.5, start=0, end=0, pattern="2:4", targets=["0"])


def test_a_model_that_the_pattern_does_not_fit_at_all_is_refused():
    with pytest.raises(CompressionError, match=r"nothing is left to prune in this model\. weight: blocks of 3×3"):
        Pruner(nn.Linear(4, 4), final_sparsity=0.5, start=0, end=0, pattern="block:3x3")


def test_n_of_m_with_another_sparsity_is_refused():
    with pytest.raises(CompressionError, match=r"final_sparsity: expected 0\.5, the sparsity that pattern '2:4'"):
        Pruner(nn.Linear(4, 4), final_sparsity=0.8, start=0, end=0, pattern="2:4")


def test_n_of_m_with_erk_is_refused():
    with pytest.raises(CompressionError, match=r"distribution: expected 'uniform' or 'global' with pattern '2:4'"):
        Pruner(nn.Linear(4, 4), final_sparsity=0.5, start=0, end=0, pattern="2:4", distribution="erk")


def test_one_layer_may_have_its_own_pattern():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    pruner = Pruner(
        model, final_sparsity=0.9, start=0, end=0, overrides={"1": {"pattern": "2:4", "final_sparsity": 0.5}}
    )
    pruner.step(0)
    assert pruner.patterns == {"0.weight": "unstructured", "1.weight": "2:4"}
    assert (pruner.masks["1.weight"].reshape(-1, 4).sum(dim=1) == 2).all()
    assert int(pruner.masks["0.weight"].sum()) == 64 - round(0.9 * 64)


@pytest.mark.parametrize("text", ["", "2/4", "4:4", "0:4", "block:4", "block:0x4", "block:1x4x", "chanel", 4])
def test_other_patterns_are_refused(text):
    with pytest.raises(CompressionError, match=r"demo\.pattern: expected"):
        parse_pattern(text, "demo.pattern")
