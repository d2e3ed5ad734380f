"""Taylor: weights whose removal changes the loss least, to first order, are pruned (Molchanov et al. 2017)."""

from __future__ import annotations

from torch import Tensor

from lightning_compress.pruning.criteria.base import Criterion, Entries


class Taylor(Criterion):
    """|w · ∂L/∂w|."""

    needs_gradient = True

    def score(self, entries: Entries) -> Tensor:
        """See :meth:`.Criterion.score`."""
        return (entries.weight * self.gradient_of(entries, "criterion='taylor'")).abs()
