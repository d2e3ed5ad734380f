"""Scores against NumPy, and continuing from sparse weights."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.pruning import Pruner


def smallest(scores, count):
    kept = np.ones(scores.size, bool)
    kept[np.argsort(scores.ravel(), kind="stable")[:count]] = False
    return kept.reshape(scores.shape)


def layer():
    torch.manual_seed(0)
    return nn.Linear(12, 10, bias=False)


def backward(model, seed):
    torch.manual_seed(seed)
    model.zero_grad()
    model(torch.randn(5, 12)).square().sum().backward()
    return model.weight.grad.numpy().copy()


def test_taylor_keeps_the_largest_weight_times_gradient():
    model = layer()
    gradient = backward(model, 1)
    expected = smallest(np.abs(model.weight.detach().numpy() * gradient), 60)
    pruner = Pruner(model, final_sparsity=0.5, start=1, end=1, criterion="taylor")
    pruner.step(1)
    np.testing.assert_array_equal(pruner.masks["weight"].numpy(), expected)


def test_movement_sums_minus_weight_times_gradient_over_the_steps():
    model = layer()
    pruner = Pruner(model, final_sparsity=0.5, start=3, end=3, criterion="movement")
    total = np.zeros((10, 12), np.float32)
    for step in (1, 2, 3):
        gradient = backward(model, step)
        total += -(model.weight.detach().numpy() * gradient)
        pruner.observe(step)
        with torch.no_grad():
            model.weight -= 0.01 * torch.from_numpy(gradient)
        pruner.step(step)
    np.testing.assert_array_equal(pruner.masks["weight"].numpy(), smallest(total, 60))


def test_movement_without_observed_gradients_is_refused():
    pruner = Pruner(layer(), final_sparsity=0.5, start=1, end=1, criterion="movement")
    with pytest.raises(CompressionError, match=r"'movement' has seen no gradient of weight\. Call observe"):
        pruner.step(1)


@pytest.mark.parametrize("criterion", ["taylor", "movement"])
def test_criteria_with_gradients_cannot_prune_before_the_first_step(criterion):
    with pytest.raises(CompressionError, match=r"Pruner\.(start|initial_sparsity): "):
        Pruner(layer(), final_sparsity=0.5, start=0, end=0, criterion=criterion)
    with pytest.raises(CompressionError, match=r"Pruner\.(start|initial_sparsity): "):
        Pruner(layer(), final_sparsity=0.5, initial_sparsity=0.2, start=0, end=5, criterion=criterion)


def test_taylor_without_gradients_is_refused():
    with pytest.raises(CompressionError, match="criterion='taylor' needs the gradient of weight"):
        Pruner(layer(), final_sparsity=0.5, start=1, end=1, criterion="taylor").step(1)


def test_random_depends_on_the_seed_alone():
    def mask(seed, state):
        model = layer()
        torch.manual_seed(state)
        pruner = Pruner(model, final_sparsity=0.5, start=0, end=0, criterion="random", seed=seed)
        pruner.step(0)
        assert int(pruner.masks["weight"].sum()) == 60
        return pruner.masks["weight"]

    assert torch.equal(mask(0, 1), mask(0, 2))
    assert not torch.equal(mask(0, 1), mask(1, 1))


def test_random_pruning_leaves_the_global_generator_alone():
    pruner = Pruner(layer(), final_sparsity=0.5, start=0, end=0, criterion="random")
    before = torch.get_rng_state()
    pruner.step(0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("criterion", ["random", "taylor", "movement"])
def test_masks_are_nested_whatever_the_criterion(criterion):
    model = layer()
    pruner = Pruner(model, final_sparsity=0.8, start=0, end=6, criterion=criterion)
    before = torch.ones(10, 12, dtype=torch.bool)
    for step in range(1, 7):
        gradient = torch.from_numpy(backward(model, step))
        pruner.observe(step)
        with torch.no_grad():
            model.weight -= 0.1 * gradient
        pruner.step(step)
        assert not (pruner.masks["weight"] & ~before).any()
        before = pruner.masks["weight"].clone()
    assert int(before.sum()) == 24


def test_a_callable_gets_weight_and_gradient():
    model = layer()
    gradient = backward(model, 1)
    pruner = Pruner(model, final_sparsity=0.5, start=0, end=0, criterion=lambda weight, gradient: gradient)
    pruner.step(0)
    np.testing.assert_array_equal(pruner.masks["weight"].numpy(), smallest(gradient, 60))


@pytest.mark.parametrize("result", [3.0, torch.ones(3), torch.ones(10, 12, dtype=torch.int64)])
def test_a_callable_that_returns_no_scores_is_refused(result):
    pruner = Pruner(layer(), final_sparsity=0.5, start=0, end=0, criterion=lambda weight, gradient: result)
    with pytest.raises(CompressionError, match=r"must return a floating point tensor .* \[10, 12\] for weight"):
        pruner.step(0)


def test_nan_weights_are_refused_under_any_criterion():
    model = layer()
    with torch.no_grad():
        model.weight[1, 1] = float("nan")
    with pytest.raises(CompressionError, match="weight: weights are NaN"):
        Pruner(model, final_sparsity=0.5, start=0, end=0, criterion="random").step(0)


def sparse():
    model = layer()
    with torch.no_grad():
        model.weight[:, :6] = 0.0
    return model


def test_pruning_continues_from_a_sparse_model():
    model = sparse()
    pruner = Pruner(model, final_sparsity=0.8, start=5, end=10, schedule="linear", keep_zeros=True)
    with torch.no_grad():
        model.weight.add_(1.0)
    pruner.step(1)
    assert pruner.sparsity() == 0.5
    pruner.step(10)
    assert pruner.sparsity() == pytest.approx(0.8)
    assert not pruner.masks["weight"][:, :6].any()


def test_a_model_sparser_than_asked_is_not_filled_up():
    pruner = Pruner(sparse(), final_sparsity=0.3, start=0, end=0, keep_zeros=True)
    assert not pruner.step(0)
    assert pruner.sparsity() == 0.5


def test_without_keep_zeros_a_sparse_model_may_fill_up():
    model = sparse()
    pruner = Pruner(model, final_sparsity=0.8, start=5, end=10)
    with torch.no_grad():
        model.weight.add_(1.0)
    pruner.step(1)
    assert pruner.sparsity() == 0


def test_freeze_keeps_the_zeros_there_are():
    model = sparse()
    pruner = Pruner(model, freeze=True)
    for step in range(5):
        with torch.no_grad():
            model.weight.add_(1.0)
        assert not pruner.step(step)
        assert pruner.sparsity() == 0.5
        assert not model.weight[:, :6].any()


def test_freeze_and_a_sparsity_together_are_refused():
    with pytest.raises(CompressionError, match=r"Pruner\.final_sparsity: expected no other sparsity setting with"):
        Pruner(sparse(), final_sparsity=0.5, freeze=True)
