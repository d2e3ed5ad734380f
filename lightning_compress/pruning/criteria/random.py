"""Random: the control of every other criterion."""

from __future__ import annotations

from torch import Tensor

from lightning_compress.pruning.criteria.base import Criterion, Entries
from lightning_compress.pruning.criteria.draws import uniform


class Random(Criterion):
    """Uniform random numbers, drawn again at each update."""

    def score(self, entries: Entries) -> Tensor:
        """See :meth:`.Criterion.score`."""
        whole = uniform(entries.shape, entries.name, self.seed, entries.step)
        return entries.shards.rows(whole).to(entries.weight.device)
