"""Distributions, overrides and floors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.pruning import Pruner
from lightning_compress.pruning.distributions import erk_density, layer_sparsity

RESNET_LIKE = {"stem": (16, 3, 3, 3), "a": (16, 16, 3, 3), "b": (32, 16, 3, 3), "c": (64, 32, 1, 1), "fc": (10, 64)}


def published_erk(shapes, sparsity):
    """ERK by bisection on the factor, from the definition in the paper: min(1, ε · raw) summing to the budget."""
    n = {k: int(np.prod(s)) for k, s in shapes.items()}
    raw = {k: sum(s) / n[k] for k, s in shapes.items()}
    budget = (1 - sparsity) * sum(n.values())
    low, high = 0.0, max(n.values())
    for _ in range(200):
        middle = (low + high) / 2
        if sum(min(1.0, middle * raw[k]) * n[k] for k in shapes) < budget:
            low = middle
        else:
            high = middle
    return {k: min(1.0, high * raw[k]) for k in shapes}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.9, 0.98])
def test_erk_densities_are_the_published_ones(sparsity):
    found, expected = erk_density(RESNET_LIKE, sparsity), published_erk(RESNET_LIKE, sparsity)
    for name in RESNET_LIKE:
        assert found[name] == pytest.approx(expected[name], rel=1e-9), name


@settings(max_examples=50)
@given(
    shapes=st.lists(st.lists(st.integers(1, 20), min_size=2, max_size=4), min_size=1, max_size=6),
    sparsity=st.floats(0, 0.99),
)
def test_erk_spends_the_whole_budget_and_no_layer_is_over_full(shapes, sparsity):
    named = {str(i): shape for i, shape in enumerate(shapes)}
    densities = erk_density(named, sparsity)
    sizes = {name: int(np.prod(shape)) for name, shape in named.items()}
    assert all(0 <= d <= 1 for d in densities.values())
    kept = sum(densities[name] * size for name, size in sizes.items())
    assert kept == pytest.approx((1 - sparsity) * sum(sizes.values()), rel=1e-9)


def test_a_layer_of_no_weights_does_not_disturb_erk():
    assert layer_sparsity("erk", {"a": (4, 4), "none": (0, 4)}, 0.5)["a"] == pytest.approx(0.5)


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 30, bias=False), nn.Linear(30, 10, bias=False))


def pruned(pruner):
    return {name: mask.numel() - int(mask.sum()) for name, mask in pruner.masks.items()}


def test_erk_pruner_gives_each_layer_its_rounded_share():
    pruner = Pruner(mlp(), final_sparsity=0.9, start=0, end=0, distribution="erk")
    pruner.step(0)
    shares = published_erk({"0.weight": (30, 20), "1.weight": (10, 30)}, 0.9)
    assert pruned(pruner) == {
        "0.weight": round((1 - shares["0.weight"]) * 600),
        "1.weight": round((1 - shares["1.weight"]) * 300),
    }
    assert pruner.layer_sparsity_target()["0.weight"] == pytest.approx(1 - shares["0.weight"])


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
def test_a_layer_with_its_own_sparsity_leaves_the_common_pool(distribution):
    pruner = Pruner(
        mlp(),
        final_sparsity=0.9,
        start=0,
        end=0,
        distribution=distribution,
        overrides={"1": {"final_sparsity": 0.5}},
    )
    pruner.step(0)
    assert pruned(pruner) == {"0.weight": 540, "1.weight": 150}
    assert pruner.layer_sparsity_target()["1.weight"] == 0.5


def test_an_override_of_none_leaves_a_layer_out():
    assert list(Pruner(mlp(), final_sparsity=0.9, start=0, end=0, overrides={"1": None}).masks) == ["0.weight"]


def test_own_sparsity_follows_the_common_curve():
    pruner = Pruner(
        mlp(),
        final_sparsity=0.9,
        initial_sparsity=0.8,
        start=0,
        end=10,
        schedule="linear",
        overrides={"1": {"final_sparsity": 0.6, "initial_sparsity": 0.2}},
    )
    pruner.step(5)
    assert pruned(pruner) == {"0.weight": round(0.85 * 600), "1.weight": round(0.4 * 300)}


def test_an_override_below_the_common_start_is_not_exceeded():
    pruner = Pruner(
        mlp(), final_sparsity=0.9, initial_sparsity=0.8, start=0, end=10, overrides={"1": {"final_sparsity": 0.3}}
    )
    pruner.step(0)
    assert pruned(pruner)["1.weight"] == 90


def lopsided():
    """The first layer's weights are all smaller than the second's."""
    model = mlp()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    return model


def test_the_floor_keeps_a_layer_alive_and_the_total_stays_exact():
    model = lopsided()
    free = Pruner(lopsided(), final_sparsity=0.7, start=0, end=0, layer_floor=0)
    with pytest.warns(UserWarning, match=r"every weight of 0\.weight is pruned"):
        free.step(0)
    assert pruned(free) == {"0.weight": 600, "1.weight": 30}
    values = model[0].weight.detach().abs().flatten()
    pruner = Pruner(model, final_sparsity=0.7, start=0, end=0, layer_floor=0.1)
    pruner.step(0)
    assert pruned(pruner) == {"0.weight": 540, "1.weight": 90}
    kept = pruner.masks["0.weight"].flatten()
    assert values[kept].min() > values[~kept].max()


def test_the_floor_can_be_set_for_one_layer_that_stays_in_the_pool():
    pruner = Pruner(lopsided(), final_sparsity=0.7, start=0, end=0, overrides={"0": {"layer_floor": 0.25}})
    pruner.step(0)
    assert pruned(pruner) == {"0.weight": 450, "1.weight": 180}


def test_a_floor_that_leaves_too_little_is_refused():
    with pytest.raises(CompressionError, match=r"Pruner\.layer_floor: .*630 units.*only 450"):
        Pruner(mlp(), final_sparsity=0.7, start=0, end=0, layer_floor=0.5)
    with pytest.raises(CompressionError, match=r"Pruner\.layer_floor"):
        Pruner(mlp(), final_sparsity=0.7, start=0, end=0, distribution="uniform", layer_floor=0.5)


def test_a_floor_survives_a_gradual_schedule_with_nested_masks():
    pruner = Pruner(lopsided(), final_sparsity=0.8, start=0, end=10, layer_floor=0.15, schedule="linear")
    before = None
    for step in range(11):
        pruner.step(step)
        now = torch.cat([mask.flatten() for mask in pruner.masks.values()])
        assert int((~now).sum()) == round(0.08 * step * 900)
        assert int(pruner.masks["0.weight"].sum()) >= 90
        assert before is None or not (now & ~before).any()
        before = now


@pytest.mark.parametrize("sparsity", [0.7, 0.8, 0.95])
def test_by_default_no_layer_collapses_and_the_total_stays_exact(sparsity):
    pruner = Pruner(lopsided(), final_sparsity=sparsity, start=0, end=0)
    pruner.step(0)
    kept = {name: int(mask.sum()) for name, mask in pruner.masks.items()}
    assert kept["0.weight"] == math.ceil(round(0.1 * (1 - sparsity) * 600, 6))
    assert sum(kept.values()) == 900 - round(sparsity * 900)


@pytest.mark.parametrize("layers", [1, 3, 40])
def test_the_default_floor_never_stands_in_the_way_of_the_sparsity_asked_for(layers):
    net = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(layers)])
    pruner = Pruner(net, final_sparsity=0.8, start=0, end=0)
    pruner.step(0)
    assert sum(pruned(pruner).values()) == round(0.8 * layers)
