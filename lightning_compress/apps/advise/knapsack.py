"""One setting for each layer: the multiple-choice knapsack problem, solved to a known distance from the optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

SECONDS = 60.0
"""After which the best allocation found so far is taken, with its gap."""


@dataclass(frozen=True)
class Use:
    """What each setting uses of a limited resource.

    Attributes:
        amounts: For each layer, what each of its settings takes; at least 0.
        most: What there is for all layers together.
    """

    amounts: Sequence[Sequence[float]]
    most: float

    @property
    def least(self) -> float:
        """The least that all layers together can take."""
        return sum(min(options) for options in self.amounts)

    def of(self, chosen: Sequence[int]) -> float:
        """What an allocation takes."""
        return sum(options[index] for options, index in zip(self.amounts, chosen, strict=True))


@dataclass(frozen=True)
class Allocation:
    """A setting for each layer.

    Attributes:
        chosen: For each layer, the index of its setting.
        cost: Sum of the costs.
        bound: No allocation within the limits costs less than this.
    """

    chosen: tuple[int, ...]
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How much the cost may lie above the optimum, as a share of the cost; 0 if it is the optimum."""
        return max(0.0, self.cost - self.bound) / abs(self.cost) if self.cost else 0.0


def allocate(costs: Sequence[Sequence[float]], uses: Sequence[Use]) -> Allocation | None:
    """Choose one setting for each layer, so that the sum of the costs is least within all limits.

    The integer program of HAWQ-V3 (Yao et al. 2021, equation 10), solved by branch and cut (HiGHS, Huangfu and Hall
    2018, through SciPy). Among allocations of equal cost the one that takes less is preferred.

    Args:
        costs: For each layer, the cost of each of its settings; finite.
        uses: What the settings take, and what there is of it.

    Returns:
        The allocation, or ``None`` if there is none within the limits.

    Example:
        >>> size = Use([[8, 4], [80, 40]], most=50)
        >>> allocate([[0.0, 3.0], [0.0, 1.0]], [size])
        Allocation(chosen=(0, 1), cost=1.0, bound=1.0)
    """
    # From the least that each layer can take: of small differences between large amounts nothing is lost then.
    extra = [[[a - min(options) for a in options] for options in use.amounts] for use in uses]
    limits = [use.most - use.least for use in uses]
    while True:
        found = _solve(costs, extra, limits)
        if found is None:
            return None
        over = [use.of(found.chosen) - use.most for use in uses]
        if all(amount <= 0 for amount in over):
            return replace(found, chosen=_smaller(costs, uses, found.chosen))
        # The solver keeps limits to about one part in ten million: ask again for a little less.
        limits = [
            limit - (2 * amount + 1e-9 * abs(limit) if amount > 0 else 0.0)
            for limit, amount in zip(limits, over, strict=True)
        ]


def _smaller(costs: Sequence[Sequence[float]], uses: Sequence[Use], chosen: Sequence[int]) -> tuple[int, ...]:
    """For each layer the setting that costs no more and takes least, but of nothing more than the chosen one."""
    found = []
    for layer, index in enumerate(chosen):
        amounts = [[use.amounts[layer][k] for use in uses] for k in range(len(costs[layer]))]
        found.append(
            min(
                (
                    k
                    for k, taken in enumerate(amounts)
                    if costs[layer][k] <= costs[layer][index]
                    and all(a <= b for a, b in zip(taken, amounts[index], strict=True))
                ),
                key=lambda k: (amounts[k], k != index),
            )
        )
    return tuple(found)


def _solve(
    costs: Sequence[Sequence[float]], uses: Sequence[Sequence[Sequence[float]]], limits: Sequence[float]
) -> Allocation | None:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    sizes = [len(options) for options in costs]
    starts = np.cumsum([0, *sizes])
    flat = np.concatenate([np.asarray(options, np.float64) for options in costs])
    one_each = csr_array(
        (np.ones(len(flat)), (np.repeat(np.arange(len(sizes)), sizes), np.arange(len(flat)))),
        shape=(len(sizes), len(flat)),
    )
    constraints = [LinearConstraint(one_each, 1, 1)]
    for amounts, limit in zip(uses, limits, strict=True):
        row = np.concatenate([np.asarray(options, np.float64) for options in amounts])
        unit = max(float(row.max()), 1e-300)
        constraints.append(LinearConstraint(csr_array((row / unit)[None, :]), -np.inf, limit / unit))
    scale = max(float(np.abs(flat).max()), 1e-300)
    result = milp(
        flat / scale,
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0, "time_limit": SECONDS},
    )
    if result.x is None:
        return None
    chosen = tuple(int(np.argmax(result.x[first:last])) for first, last in pairwise(starts))
    cost = float(sum(options[index] for options, index in zip(costs, chosen, strict=True)))
    # Status 0 is a proof of optimality, to the solver's tolerance.
    bound = cost if result.status == 0 else min(cost, _bound(result.mip_dual_bound) * scale)
    return Allocation(chosen, cost, bound)


def _bound(found: float | None) -> float:
    return -math.inf if found is None else float(found)
