"""What a pruning criterion is: one object per pruner that scores weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.shards import WHOLE, Shards

CriterionFunction = Callable[[Tensor, Tensor | None], Tensor]
"""A user's criterion: ``(weight, gradient or None) → scores``, higher for what is kept."""


@dataclass(frozen=True)
class Entries:
    """The weight to score.

    Attributes:
        name: The parameter's full name.
        weight: Its values; under FSDP2 the rows that this process holds.
        gradient: Its gradient of the step just done, of the same shape; ``None`` where there is none.
        step: Optimizer steps done.
        shape: Shape of the whole parameter.
        shards: The processes that hold its rows.
    """

    name: str
    weight: Tensor
    gradient: Tensor | None
    step: int
    shape: tuple[int, ...]
    shards: Shards = WHOLE


class Criterion(ABC):
    """How much each entry of a weight matters. Higher scores are kept.

    A new criterion is a module in this folder and a line in ``CRITERIA``.

    Attributes:
        needs_gradient: Whether scores are made from gradients, which then must be there at a mask update.
        sums_steps: Whether ``observe`` is called at every step.
        signed: Whether scores rank by their absolute value, so that ``score`` may return the weight itself.

    Args:
        field: Name of the pruner, for messages.
        seed: For random numbers.
    """

    needs_gradient: ClassVar[bool] = False
    sums_steps: ClassVar[bool] = False
    signed: ClassVar[bool] = False

    def __init__(self, field: str, seed: int) -> None:
        self.field, self.seed = field, seed

    def observe(self, name: str, weight: Tensor, gradient: Tensor, finite: Tensor) -> None:  # noqa: B027 - most criteria need none
        """See a step that is about to be done.

        Args:
            name: The parameter's full name.
            weight: Its values.
            gradient: Its gradient, dense.
            finite: Whether the gradients of all weights are finite, or the step is about to be skipped: bool, ``[]``.
        """

    @abstractmethod
    def score(self, entries: Entries) -> Tensor:
        """Scores of the weight's shape, floating point.

        Raises:
            CompressionError: What they are made from is not there.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What observing has summed up: parameter name → tensor of the weight's shape."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - most criteria have none
        """Undo :meth:`state_dict`."""

    def gradient_of(self, entries: Entries, asked_by: str) -> Tensor:
        """The gradient of a weight.

        Raises:
            CompressionError: There is none.
        """
        if entries.gradient is None:
            raise CompressionError(
                f"{self.field}: {asked_by} needs the gradient of {entries.name} at a mask update, and there is none. "
                "Call step() before zero_grad(), let start be at least 1, or ignore layers that are not trained."
            )
        return entries.gradient
