"""Pruning criteria, which score weights: one module and one line here per criterion."""

from __future__ import annotations

from lightning_compress.pruning.criteria.base import Criterion, CriterionFunction
from lightning_compress.pruning.criteria.function import Function, name_of
from lightning_compress.pruning.criteria.magnitude import Magnitude
from lightning_compress.pruning.criteria.movement import Movement
from lightning_compress.pruning.criteria.random import Random
from lightning_compress.pruning.criteria.taylor import Taylor

CRITERIA: dict[str, type[Criterion]] = {
    "magnitude": Magnitude,
    "movement": Movement,
    "taylor": Taylor,
    "random": Random,
}

__all__ = ["CRITERIA", "Criterion", "CriterionFunction", "Function", "kind_of", "make", "name_of"]


def kind_of(criterion: str | CriterionFunction) -> type[Criterion]:
    """The class of a criterion that is a name or a callable."""
    return CRITERIA[criterion] if isinstance(criterion, str) else Function


def make(criterion: str | CriterionFunction, field: str, seed: int) -> Criterion:
    """A criterion for one pruner.

    Example:
        >>> make("magnitude", "demo", seed=0).needs_gradient
        False
    """
    if isinstance(criterion, str):
        return CRITERIA[criterion](field, seed)
    return Function(field, seed, criterion)
