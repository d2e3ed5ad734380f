"""Movement: weights that move towards zero are pruned (Sanh et al. 2020, eq. 6)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.criteria.base import Criterion, Entries


class Movement(Criterion):
    """Sum of -w · ∂L/∂w over the training steps, positive for weights that move away from zero; one float a weight."""

    needs_gradient = True
    sums_steps = True

    def __init__(self, field: str, seed: int) -> None:
        super().__init__(field, seed)
        self._sums: dict[str, Tensor] = {}

    def observe(self, name: str, weight: Tensor, gradient: Tensor, finite: Tensor) -> None:
        """See :meth:`.Criterion.observe`."""
        share = torch.where(finite.to(weight.device), -(weight * gradient), 0.0)
        self._sums[name] = self._sums[name].add_(share) if name in self._sums else share

    def score(self, entries: Entries) -> Tensor:
        """See :meth:`.Criterion.score`."""
        if entries.name not in self._sums:
            raise CompressionError(
                f"{self.field}.criterion: 'movement' has seen no gradient of {entries.name}. Call observe() after "
                "every backward pass and before optimizer.step(), or ignore this layer if it is not trained."
            )
        return self._sums[entries.name]

    def state_dict(self) -> dict[str, Tensor]:
        """See :meth:`.Criterion.state_dict`."""
        return {name: total.clone() for name, total in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See :meth:`.Criterion.load_state_dict`."""
        self._sums = dict(state)
