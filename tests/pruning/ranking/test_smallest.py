"""Exact selection against a NumPy reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.ranking import radix
from lightning_compress.pruning.ranking.smallest import prune_smallest

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def reference(scores, masks, count, absolute):
    """Sort by value, then pruned before kept, then position."""
    values = np.concatenate([score.double().numpy().ravel() for score in scores])
    values = np.abs(values) if absolute else values
    kept_before = np.concatenate([mask.numpy().ravel() for mask in masks])
    order = np.lexsort((np.arange(values.size), kept_before, values))
    kept = np.ones(values.size, dtype=bool)
    kept[order[:count]] = False
    return kept


@st.composite
def cases(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scores, masks = [], []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
        values = torch.randn(shape, generator=generator) * draw(st.sampled_from([1.0, 1e-40, 1e30, 0.0]))
        if draw(st.booleans()):
            values = values.round()
        scores.append(values.to(draw(st.sampled_from(DTYPES))))
        masks.append(torch.rand(shape, generator=generator) > 0.5)
    total = sum(score.numel() for score in scores)
    return scores, masks, draw(st.integers(0, total)), draw(st.booleans())


@settings(max_examples=150)
@given(cases())
def test_selection_equals_a_full_sort(case):
    scores, masks, count, absolute = case
    expected = reference(scores, masks, count, absolute)
    prune_smallest(scores, masks, count, absolute=absolute)
    found = np.concatenate([mask.numpy().ravel() for mask in masks])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("absolute", [True, False])
def test_selection_does_not_depend_on_the_chunk_size(monkeypatch, absolute):
    monkeypatch.setattr(radix, "CHUNK", 7)
    generator = torch.Generator().manual_seed(3)
    scores = [torch.randn(5, 9, generator=generator).mul(2).round(), torch.randn(40, generator=generator)]
    masks = [torch.rand(score.shape, generator=generator) > 0.3 for score in scores]
    expected = reference(scores, masks, 50, absolute)
    prune_smallest(scores, masks, 50, absolute=absolute)
    np.testing.assert_array_equal(np.concatenate([mask.numpy().ravel() for mask in masks]), expected)


def test_selection_leaves_scores_alone():
    scores = torch.randn(100, generator=torch.Generator().manual_seed(0))
    before = scores.clone()
    prune_smallest([scores], [torch.ones(100, dtype=torch.bool)], 40, absolute=True)
    assert torch.equal(scores, before)


def test_of_equal_scores_the_first_go():
    mask = torch.ones(6, dtype=torch.bool)
    prune_smallest([torch.ones(6)], [mask], 2)
    assert mask.tolist() == [False, False, True, True, True, True]


def test_of_equal_scores_those_already_pruned_go_first():
    mask = torch.tensor([True, True, False, True])
    prune_smallest([torch.zeros(4)], [mask], 2, absolute=True)
    assert mask.tolist() == [False, True, False, True]


def test_negative_and_positive_zero_are_equal():
    mask = torch.ones(3, dtype=torch.bool)
    prune_smallest([torch.tensor([0.0, -0.0, 1.0])], [mask], 1)
    assert mask.tolist() == [False, True, True]


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_refused_by_name(absolute, sign, dtype):
    scores = torch.tensor([1.0, sign * float("nan"), 2.0], dtype=dtype)
    with pytest.raises(CompressionError, match=r"fc\.weight: 1 of 3 scores are NaN"):
        prune_smallest(
            [torch.ones(2), scores],
            [torch.ones(2, dtype=torch.bool), torch.ones(3, dtype=torch.bool)],
            2,
            absolute=absolute,
            names=["a", "fc.weight"],
        )


def test_infinities_are_ranked_like_any_number():
    mask = torch.ones(4, dtype=torch.bool)
    prune_smallest([torch.tensor([float("inf"), 1.0, -float("inf"), 2.0])], [mask], 2, absolute=True)
    assert mask.tolist() == [True, False, True, False]


def test_a_count_beyond_the_scores_is_refused():
    with pytest.raises(CompressionError, match="from 0 to 3, got 4"):
        prune_smallest([torch.ones(3)], [torch.ones(3, dtype=torch.bool)], 4)
