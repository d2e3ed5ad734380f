from __future__ import annotations

import pytest
from networks import Mlp

from lightning_compress.pruning import Pruner


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
def test_the_target_of_the_whole_is_the_schedule_s(distribution: str) -> None:
    pruner = Pruner(Mlp(), final_sparsity=0.8, start=0, end=4, schedule="linear", distribution=distribution)
    targets = [pruner.sparsity_target()]
    for step in (1, 2, 4):
        pruner.step(step)
        targets.append(pruner.sparsity_target())
    assert targets == pytest.approx([0, 0.2, 0.4, 0.8], abs=1e-9)


def test_layers_with_a_sparsity_of_their_own_weigh_in_the_target() -> None:
    model = Mlp(inputs=16, hidden=16, classes=16)
    pruner = Pruner(model, final_sparsity=0.5, start=0, end=1, overrides={"5": {"final_sparsity": 0.75}})
    pruner.step(1)
    assert pruner.sparsity_target() == pytest.approx((0.5 + 0.5 + 0.75) / 3)


def test_a_frozen_model_s_target_is_what_it_has() -> None:
    model = Mlp()
    Pruner(model, final_sparsity=0.6, start=0, end=1).step(1)
    frozen = Pruner(model, freeze=True, keep_zeros=True)
    assert frozen.sparsity_target() == frozen.sparsity()
