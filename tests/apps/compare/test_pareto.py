from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_compress.apps.compare.pareto import front

# Few values, so that ties and equal points are frequent.
value = st.sampled_from([0.0, 1.0, 2.0, 3.0, None, math.nan])


@settings(max_examples=150, derandomize=True)
@given(st.lists(st.tuples(value, value, value), max_size=30), st.tuples(*[st.booleans()] * 3))
def test_the_front_is_what_no_point_dominates_by_all_pairs_in_numpy(
    points: list[tuple[float | None, ...]], maximize: tuple[bool, ...]
) -> None:
    costs = np.array([[np.nan if x is None else x for x in point] for point in points], dtype=float).reshape(-1, 3)
    costs = np.where(maximize, -costs, costs)
    costs[np.isnan(costs)] = np.inf
    at_least_as_good = (costs[:, None] <= costs[None]).all(-1)
    better = (costs[:, None] < costs[None]).any(-1)
    expected = np.flatnonzero(~(at_least_as_good & better).any(0))
    assert front(points, maximize) == expected.tolist()


def test_equal_points_are_all_on_the_front() -> None:
    assert front([(1.0, 2.0), (1.0, 2.0)], maximize=[True, False]) == [0, 1]


def test_a_point_without_latency_is_beaten_by_an_equal_one_with_it() -> None:
    assert front([(0.9, 10, None), (0.9, 10, 5.0)], maximize=[True, False, False]) == [1]
