"""A criterion that a user gives as a function."""

from __future__ import annotations

from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.criteria.base import Criterion, CriterionFunction, Entries


def name_of(choice: object) -> str:
    """A name for a setting that may be a callable.

    Example:
        >>> name_of("magnitude"), name_of(max)
        ('magnitude', 'builtins.max')
    """
    if isinstance(choice, str):
        return choice
    return f"{getattr(choice, '__module__', '')}.{getattr(choice, '__qualname__', type(choice).__qualname__)}"


class Function(Criterion):
    """Scores from a callable, checked.

    Args:
        field: Name of the pruner, for messages.
        seed: Unused.
        function: The callable.
    """

    needs_gradient = True

    def __init__(self, field: str, seed: int, function: CriterionFunction) -> None:
        super().__init__(field, seed)
        self._function = function

    def score(self, entries: Entries) -> Tensor:
        """See :meth:`.Criterion.score`.

        Raises:
            CompressionError: It returned something other than a floating point tensor of the weight's shape.
        """
        scores = self._function(entries.weight, entries.gradient)
        shape = entries.weight.shape
        if not isinstance(scores, Tensor) or scores.shape != shape or not scores.is_floating_point():
            got = f"{scores.dtype} {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise CompressionError(
                f"{self.field}.criterion: {name_of(self._function)} must return a floating point tensor of the "
                f"weight's shape {list(shape)} for {entries.name}, got {got}."
            )
        return scores.detach()
