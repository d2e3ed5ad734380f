"""Differences between outputs, some of which may be infinite."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_compress.foundation import pytree


def differences(actual: Tensor, expected: Tensor) -> Tensor:
    """Absolute differences: float64, none where both have the same infinity or both no number.

    Args:
        actual: A tensor of numbers.
        expected: Another of the same shape.

    Example:
        >>> import torch
        >>> differences(torch.tensor([-math.inf, 1.0, math.nan]), torch.tensor([-math.inf, 3.0, 0.0]))
        tensor([0., 2., inf], dtype=torch.float64)
    """
    actual, expected = actual.double(), expected.double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    return (actual - expected).abs().nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(same, 0.0)


def sizes(values: Tensor) -> Tensor:
    """Absolute values: float64, 0 for what is not finite.

    Example:
        >>> import torch
        >>> sizes(torch.tensor([-math.inf, -3.0]))
        tensor([0., 3.], dtype=torch.float64)
    """
    return values.double().nan_to_num(0.0, 0.0, 0.0).abs()


_TOLERANCE = 0.05
"""Mean difference of outputs, relative to their mean size, that rounding may make."""


def same_outputs(actual: Any, expected: Any, *, least: float = 0.0) -> bool:
    """Whether floating outputs are the same but for single values on a neighbouring step of a quantizer.

    Runtimes multiply by the inverse of the scale where we divide, which rounds otherwise at ties.

    Args:
        actual: Outputs in any structure.
        expected: As many, in any structure.
        least: Mean difference that always counts as none.
    """
    pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True)
    return all(
        bool(differences(a, b).mean() <= _TOLERANCE * sizes(b).mean() + least)
        for a, b in pairs
        if isinstance(b, torch.Tensor) and b.is_floating_point()
    )
