"""The Pareto front: the jobs that no other job beats in every respect."""

from __future__ import annotations

import math
from collections.abc import Sequence


def front(points: Sequence[Sequence[float | None]], maximize: Sequence[bool]) -> list[int]:
    """Indices of the points that no other point dominates.

    A point dominates another if it is at least as good in every objective and better in one. Equal points do not
    dominate each other. An objective that was not measured counts as the worst.

    Args:
        points: One row of objectives for each point; ``None`` or NaN was not measured.
        maximize: For each objective, whether more is better.

    Returns:
        The indices, ascending.

    Example:
        >>> accuracy_bytes = [(0.99, 900), (0.98, 300), (0.97, 400), (0.98, 300)]
        >>> front(accuracy_bytes, maximize=[True, False])
        [0, 1, 3]
    """
    costs = [tuple(_cost(value, more) for value, more in zip(point, maximize, strict=True)) for point in points]
    kept: list[int] = []
    # In lexicographic order only an earlier point can dominate a later one, and dominance is transitive, so the
    # points that are kept already are all that must be looked at.
    for index in sorted(range(len(costs)), key=lambda i: costs[i]):
        if not any(dominates(costs[other], costs[index]) for other in kept):
            kept.append(index)
    return sorted(kept)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether ``one`` is nowhere worse and somewhere better, where less is better everywhere.

    Example:
        >>> dominates((1, 2), (1, 3)), dominates((1, 2), (1, 2)), dominates((1, 3), (2, 2))
        (True, False, False)
    """
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def _cost(value: float | None, more_is_better: bool) -> float:
    if value is None or math.isnan(value):
        return math.inf
    return -value if more_is_better else value
