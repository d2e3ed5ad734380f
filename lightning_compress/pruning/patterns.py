"""The shapes in which weights are pruned: single entries, n of m, blocks, whole channels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError, closest

_GRAMMAR = "'unstructured', 'channel', 'n:m' such as '2:4', or 'block:' with sizes such as 'block:1x4'"


@dataclass(frozen=True)
class Pattern:
    """A pattern: every single entry is a unit; other patterns refine this.

    A *unit* is what is kept or pruned as one. Scores rank units; unit masks expand to weight masks.

    Attributes:
        text: The pattern as the user writes it.
    """

    text: str = "unstructured"

    def refusal(self, shape: Sequence[int]) -> str | None:
        """Say why a weight of this shape cannot have this pattern; ``None`` if it can."""
        return None

    def units(self, shape: Sequence[int]) -> int:
        """Count the units in a weight."""
        return math.prod(shape)

    def prunable(self) -> float:
        """Share of a unit's entries that pruning the unit makes zero."""
        return 1.0

    def rows(self) -> int:
        """How many rows, along the first dimension, a unit reaches over."""
        return 1

    def unit_scores(self, scores: Tensor) -> Tensor:
        """Scores of the units, 1-D, from scores of the entries."""
        return scores.reshape(-1)

    def expand(self, kept: Tensor, scores: Tensor) -> Tensor:
        """Weight mask of ``scores``' shape from a 1-D mask over units; both ``bool``, ``True`` = kept."""
        return kept.reshape(scores.shape)


@dataclass(frozen=True)
class NOfM(Pattern):
    """At most ``n`` of every ``m`` neighbours along the input dimension ``dim`` are non-zero.

    A unit is one group of ``m``; pruning it removes its ``m - n`` smallest entries. During a gradual schedule a
    growing share of the groups is pruned; at the end every group is.

    Source: Mishra et al. 2021, Accelerating Sparse Deep Neural Networks.
    """

    n: int = 2
    m: int = 4
    dim: int = 1

    def refusal(self, shape: Sequence[int]) -> str | None:
        """See :meth:`Pattern.refusal`."""
        if len(shape) < 2 or shape[self.dim] % self.m:
            return f"pattern {self.text} needs an input dimension (dimension {self.dim}) divisible by {self.m}"
        return None

    def units(self, shape: Sequence[int]) -> int:
        """See :meth:`Pattern.units`."""
        return math.prod(shape) // self.m

    def prunable(self) -> float:
        """See :meth:`Pattern.prunable`."""
        return 1 - self.n / self.m

    def rows(self) -> int:
        """See :meth:`Pattern.rows`."""
        return self.m if self.dim == 0 else 1

    def _groups(self, scores: Tensor) -> Tensor:
        return scores.movedim(self.dim, -1).reshape(-1, self.m)

    def unit_scores(self, scores: Tensor) -> Tensor:
        """Sum of the entries that would go, 1-D over groups."""
        return self._groups(scores).sort(dim=1).values[:, : self.m - self.n].sum(dim=1)

    def expand(self, kept: Tensor, scores: Tensor) -> Tensor:
        """See :meth:`Pattern.expand`. Of equal entries in a group the first go first."""
        smallest = self._groups(scores).sort(dim=1, stable=True).indices[:, : self.m - self.n]
        groups = torch.ones(kept.numel(), self.m, dtype=torch.bool, device=kept.device)
        groups.scatter_(1, smallest, kept[:, None].expand(-1, self.m - self.n))
        moved = scores.movedim(self.dim, -1).shape
        return groups.reshape(moved).movedim(-1, self.dim)


@dataclass(frozen=True)
class Block(Pattern):
    """Whole blocks are kept or pruned, ranked by their mean score.

    With two sizes the weight is seen as a matrix ``[out, in · kernel]``, as matrix kernels see it; otherwise
    there must be as many sizes as the weight has dimensions.
    """

    sizes: tuple[int, ...] = (1, 4)

    def _view(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[0], math.prod(shape[1:])) if len(self.sizes) == 2 else tuple(shape)

    def refusal(self, shape: Sequence[int]) -> str | None:
        """See :meth:`Pattern.refusal`."""
        view = self._view(shape)
        if len(view) != len(self.sizes) or any(d % s for d, s in zip(view, self.sizes, strict=True)):
            return f"blocks of {'×'.join(map(str, self.sizes))} do not tile a weight seen as {list(view)}"
        return None

    def units(self, shape: Sequence[int]) -> int:
        """See :meth:`Pattern.units`."""
        return math.prod(shape) // math.prod(self.sizes)

    def rows(self) -> int:
        """See :meth:`Pattern.rows`."""
        return self.sizes[0]

    def unit_scores(self, scores: Tensor) -> Tensor:
        """Mean score of each block, 1-D in row-major order of the blocks."""
        split = [part for d, s in zip(self._view(scores.shape), self.sizes, strict=True) for part in (d // s, s)]
        return scores.reshape(split).mean(dim=tuple(range(1, len(split), 2))).reshape(-1)

    def expand(self, kept: Tensor, scores: Tensor) -> Tensor:
        """See :meth:`Pattern.expand`."""
        view = self._view(scores.shape)
        grid = kept.reshape([d // s for d, s in zip(view, self.sizes, strict=True)])
        for dim, size in enumerate(self.sizes):
            grid = grid.repeat_interleave(size, dim=dim)
        return grid.reshape(scores.shape)


@dataclass(frozen=True)
class Channel(Pattern):
    """Whole output channels along the network's dependency groups; see :mod:`.channels`."""


def parse_pattern(text: str, field: str) -> Pattern:
    """Parse a pattern.

    Raises:
        CompressionError: It is none of the patterns there are.

    Example:
        >>> parse_pattern("2:4", "pattern").prunable()
        0.5
    """
    if not isinstance(text, str):
        raise CompressionError.field(field, expected=_GRAMMAR, got=text)
    if text == "unstructured":
        return Pattern()
    if text == "channel":
        return Channel(text)
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        n, m = int(match[1]), int(match[2])
        if not 0 < n < m:
            raise CompressionError.field(
                field, expected="n:m with 0 < n < m (n of every m are kept)", got=text, fix="Write '2:4'."
            )
        return NOfM(text, n, m)
    if match := re.fullmatch(r"block:(\d+(?:x\d+)+)", text):
        sizes = tuple(int(size) for size in match[1].split("x"))
        if all(sizes):
            return Block(text, sizes)
    raise CompressionError.field(
        field, expected=_GRAMMAR, got=text, fix=closest(text, ["unstructured", "channel", "2:4", "block:1x4"])
    )
