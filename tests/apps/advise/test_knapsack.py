from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_compress.apps.advise.knapsack import Allocation, Use, allocate


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[float]], list[Use]]:
    """Few layers with few settings, costs over many orders of magnitude, one or two limits that often just fit."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    cost = st.one_of(st.integers(0, 5).map(float), st.floats(1e-4, 10.0))
    costs = [[draw(cost) for _ in range(size)] for size in sizes]
    uses = []
    for _ in range(draw(st.integers(0, 2))):
        amounts = [[float(draw(st.integers(0, 20))) for _ in range(size)] for size in sizes]
        picked = [options[draw(st.integers(0, len(options) - 1))] for options in amounts]
        uses.append(Use(amounts, sum(picked) + draw(st.integers(-3, 3))))
    return costs, uses


def by_hand(costs: list[list[float]], uses: list[Use]) -> float | None:
    """The least cost over all combinations."""
    best = None
    for chosen in itertools.product(*(range(len(options)) for options in costs)):
        if all(sum(use.amounts[i][k] for i, k in enumerate(chosen)) <= use.most for use in uses):
            total = sum(costs[i][k] for i, k in enumerate(chosen))
            best = total if best is None else min(best, total)
    return best


@settings(max_examples=120, derandomize=True)
@given(problems())
def test_the_cost_is_the_least_of_all_combinations_within_the_limits(
    problem: tuple[list[list[float]], list[Use]],
) -> None:
    costs, uses = problem
    expected, found = by_hand(costs, uses), allocate(costs, uses)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found.cost == pytest.approx(expected, rel=1e-6, abs=1e-7)
        assert found.cost == pytest.approx(sum(costs[i][k] for i, k in enumerate(found.chosen)))
        assert all(use.of(found.chosen) <= use.most for use in uses)
        assert found.gap <= 1e-9


def test_of_equal_costs_the_smaller_is_taken() -> None:
    found = allocate([[1.0, 1.0, 1.0]], [Use([[30, 10, 20]], most=100)])
    assert found is not None
    assert found.chosen == (1,)


def test_the_least_use_is_known_where_nothing_fits() -> None:
    use = Use([[5, 3], [8, 9]], most=10)
    assert allocate([[0, 1], [0, 1]], [use]) is None
    assert use.least == 11


def test_a_limit_is_kept_exactly_at_the_scale_of_large_models() -> None:
    amounts = [[1e10 + k for k in range(5)] for _ in range(3)]
    use = Use(amounts, most=3e10 + 3)
    found = allocate([[4.0, 3.0, 2.0, 1.0, 0.0]] * 3, [use])
    assert found is not None
    assert use.of(found.chosen) <= use.most


def test_the_gap_is_the_distance_to_what_cannot_be_beaten() -> None:
    assert Allocation((0,), cost=2.0, bound=1.5).gap == 0.25
    assert Allocation((0,), cost=0.0, bound=0.0).gap == 0.0
    assert math.isinf(Allocation((0,), cost=1.0, bound=-math.inf).gap)


def test_hundreds_of_layers_are_allocated_to_the_optimum() -> None:
    # Costs that fall with the square of the size: the Lagrangian bound is the yardstick.
    layers = [[(1 + i % 7) * (40 - k) ** 2 / 1e4 for k in range(0, 40, 4)] for i in range(120)]
    sizes = [[float((5 + i % 11) * (k + 1)) for k in range(0, 40, 4)] for i in range(120)]
    use = Use(sizes, most=0.4 * sum(max(options) for options in sizes))
    found = allocate(layers, [use])
    assert found is not None
    bound = max(
        sum(min(c + price * a for c, a in zip(*pair, strict=True)) for pair in zip(layers, sizes, strict=True))
        - price * use.most
        for price in (0.0001 * 1.05**n for n in range(200))
    )
    assert bound <= found.cost <= 1.01 * bound
