"""Magnitude: weights with the smallest absolute values are pruned (Han et al. 2015)."""

from __future__ import annotations

from torch import Tensor

from lightning_compress.pruning.criteria.base import Criterion, Entries


class Magnitude(Criterion):
    """Absolute value |w|."""

    signed = True

    def score(self, entries: Entries) -> Tensor:
        """The weight, ranked by its absolute value."""
        return entries.weight
