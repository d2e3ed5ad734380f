"""How far outputs are apart, where some may be infinite."""

from __future__ import annotations

import math

from torch import Tensor


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
