"""RigL and SET against an independent implementation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.shards import WHOLE
from lightning_compress.pruning import Pruner
from lightning_compress.pruning.patterns import Pattern, parse_pattern
from lightning_compress.pruning.prunable import Site
from lightning_compress.pruning.regrowth import drop_fraction_at, move_connections
from lightning_compress.pruning.schedule import CURVES, SparsitySchedule


def rigl(weight, mask, gradient, fraction):
    """One RigL update with full sorts: drop by |w|, then grow by |gradient| among all that is not kept."""
    w, m, g = np.abs(weight.ravel()), mask.ravel().copy(), np.abs(gradient.ravel())
    kept = m.sum()
    dropped = int(fraction * kept)
    active = np.flatnonzero(m)
    m[active[np.argsort(w[active], kind="stable")[:dropped]]] = False
    free = np.flatnonzero(~m)
    m[free[np.argsort(-g[free], kind="stable")[:dropped]]] = True
    return m.reshape(mask.shape)


@settings(max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    density=st.floats(0.05, 1.0),
    fraction=st.floats(0, 0.9),
    seed=st.integers(0, 9999),
)
def test_an_update_equals_an_independent_rigl(shape, density, fraction, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < density
    weight = torch.randn(shape, generator=generator) * mask
    gradient = torch.randn(shape, generator=generator)
    expected = rigl(weight.numpy(), mask.numpy(), gradient.numpy(), fraction)
    before = mask.clone()
    site = Site.of("w", nn.Parameter(weight), Pattern(), initial=0.0, final=0.9, floor=0.0, own=False)
    site.mask = mask
    moved = move_connections([site], [gradient.abs()], fraction, [int((~mask).sum())], WHOLE)
    np.testing.assert_array_equal(mask.numpy(), expected)
    assert moved == int((mask ^ before).sum())


def run(regrow, steps=12, seed=0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4))
    pruner = Pruner(
        model,
        final_sparsity=0.8,
        start=0,
        end=10,
        every=2,
        schedule="constant",
        distribution="erk",
        regrow=regrow,
        drop_fraction=0.4,
        seed=seed,
    )
    pruner.step(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        model(torch.randn(8, 10)).square().mean().backward()
        optimizer.step()
        yield step, model, pruner


def test_rigl_in_a_loop_moves_the_connections_the_paper_says():
    for step, _, pruner in run("gradient"):
        names = list(pruner.masks)
        if step % 2 or step >= 10:
            expected = {name: pruner.masks[name].numpy().copy() for name in names}
        else:
            fraction = 0.4 / 2 * (1 + math.cos(math.pi * step / 10))
            expected = {}
            for name in names:
                mask, parameter = pruner.masks[name], pruner.parameters[name]
                weight = parameter.detach().numpy() * mask.numpy()
                expected[name] = rigl(weight, mask.numpy(), parameter.grad.numpy(), fraction)
        pruner.step(step)
        for name in names:
            np.testing.assert_array_equal(pruner.masks[name].numpy(), expected[name], err_msg=f"{step} {name}")


@pytest.mark.parametrize("regrow", ["gradient", "random"])
def test_the_number_of_connections_stays(regrow):
    counts, changes = [], 0
    for step, _, pruner in run(regrow):
        changes += pruner.step(step)
        counts.append([int(mask.sum()) for mask in pruner.masks.values()])
    assert all(count == counts[0] for count in counts)
    # Updates fall on 2, 4, 6 and 8; at 8 the cosine has left less than one connection to move.
    assert changes == 3


def test_grown_connections_start_at_zero_and_then_learn():
    for step, _, pruner in run("random", steps=4):
        before = {name: mask.clone() for name, mask in pruner.masks.items()}
        pruner.step(step)
        grown = [mask & ~before[name] for name, mask in pruner.masks.items()]
        if step == 2:
            assert sum(int(g.sum()) for g in grown) > 0
            for g, parameter in zip(grown, pruner.parameters.values(), strict=True):
                assert not parameter.detach()[g].any()
            kept = grown
        if step == 3:
            weights = list(pruner.parameters.values())
            assert any(weight.detach()[g].any() for g, weight in zip(kept, weights, strict=True))


def test_set_depends_on_the_seed_alone():
    def masks(seed):
        for step, _, pruner in run("random", steps=6, seed=seed):
            pruner.step(step)
        return torch.cat([mask.flatten() for mask in pruner.masks.values()])

    assert torch.equal(masks(0), masks(0))
    assert not torch.equal(masks(0), masks(1))


def test_no_dense_gradient_is_kept_between_updates():
    for step, _, pruner in run("gradient"):
        pruner.observe(step)
        pruner.step(step)
        assert not pruner._scores._gradients


def test_rigl_without_gradients_is_refused():
    pruner = Pruner(nn.Linear(8, 8), final_sparsity=0.5, start=0, end=10, schedule="constant", regrow="gradient")
    pruner.step(0)
    with pytest.raises(CompressionError, match="regrow='gradient' needs the gradient of weight"):
        pruner.step(1)


def test_regrowth_with_another_pattern_is_refused():
    with pytest.raises(CompressionError, match=r"Pruner\.regrow: expected None with a pattern other than"):
        Pruner(nn.Linear(8, 8), final_sparsity=0.5, start=0, end=1, pattern="2:4", regrow="random")


def test_regrowth_with_another_pattern_of_one_layer_is_refused():
    overrides = {"1": {"pattern": "block:1x4"}}
    with pytest.raises(CompressionError, match=r"Pruner\.overrides\['1'\]\.pattern: expected 'unstructured' with"):
        Pruner(
            nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),
            final_sparsity=0.5,
            start=0,
            end=1,
            regrow="random",
            overrides=overrides,
        )


def test_churn_is_known_to_a_resumed_run():
    settings = {"final_sparsity": 0.5, "start": 0, "end": 10, "every": 2}
    first = Pruner(nn.Linear(8, 8), **settings)
    first.step(4)
    resumed = Pruner(nn.Linear(8, 8), **settings)
    resumed.load_state_dict(first.state_dict())
    assert resumed.churn == first.churn > 0


def test_churn_is_the_share_of_masks_that_changed():
    for step, _, pruner in run("random", steps=4):
        before = torch.cat([mask.flatten() for mask in pruner.masks.values()])
        if pruner.step(step):
            now = torch.cat([mask.flatten() for mask in pruner.masks.values()])
            assert pruner.churn == pytest.approx(float((now ^ before).double().mean()))
            return
    pytest.fail("no update changed a mask")


def test_the_weakest_connections_are_dropped_whatever_their_sign():
    layer = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-5.0, 0.1, 3.0, -0.2, 0.0, 0.0]]))
    pattern = parse_pattern("unstructured", "pattern")
    site = Site.of("weight", layer.weight, pattern, initial=0.0, final=0.3, floor=0.0, own=False)
    site.infer_mask()
    growth = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 2.0]])
    assert move_connections([site], [growth], 0.5, [2], WHOLE) == 4
    assert site.mask.tolist() == [[True, False, True, False, True, True]]


def test_the_share_that_moves_falls_from_the_start_of_the_schedule():
    schedule = SparsitySchedule(0.9, 0.9, 20, 120, 10, CURVES["constant"])
    assert drop_fraction_at(70, schedule, 0.3) == pytest.approx(0.15)
    assert drop_fraction_at(21, schedule, 0.3) == pytest.approx(0.3, abs=1e-3)
