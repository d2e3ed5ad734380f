"""Fake quantization under ``torch.func``: operations that ``grad``, ``vmap``, ``jacrev`` and ``jvp`` can transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def transformed() -> bool:
    """Whether a transform of ``torch.func`` is active, which no compiled kernel takes part in.

    Example:
        >>> transformed(), torch.func.grad(lambda x: x * transformed())(torch.tensor(2.0))
        (False, tensor(1.))
    """
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def straight_through(x: torch.Tensor, value: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
    """``value`` with the gradient of ``x``, exactly 0 but for where ``inside``.

    Example:
        >>> x = torch.tensor([0.4, 9.0], requires_grad=True)
        >>> y = straight_through(x, torch.tensor([0.0, 1.0]), torch.tensor([True, False]))
        >>> y.sum().backward()
        >>> y.detach(), x.grad
        (tensor([0., 1.]), tensor([1., 0.]))
    """
    passed = x if inside is None else torch.where(inside, x, torch.zeros((), dtype=x.dtype, device=x.device))
    return value.detach() + (passed - passed.detach())


def learned(x: torch.Tensor, scale: torch.Tensor, low: Any, high: Any, factor: float) -> torch.Tensor:
    """A value on the grid of a learned scale, with LSQ's gradients by the chain rule.

    Args:
        x: Float tensor.
        scale: Positive; broadcasts with ``x``.
        low: Smallest integer of the grid, counted from 0.0.
        high: Largest one.
        factor: Of the scale's gradient.
    """
    scale = scale * factor + (scale - scale * factor).detach()
    steps = x / scale
    # No gradient passes at the ends themselves, where that of clamp would.
    ends = torch.where(steps <= low, torch.as_tensor(low, device=x.device), torch.as_tensor(high, device=x.device))
    steps = torch.where((steps > low) & (steps < high), steps, ends.to(steps.dtype))
    return (steps + (steps.round() - steps).detach()) * scale


class _Look(torch.autograd.Function):
    """Its forward is given the tensor itself, whatever transforms there are around it."""

    @staticmethod
    def forward(x: torch.Tensor, see: Callable[[torch.Tensor], None]) -> torch.Tensor:
        see(x.detach())
        return torch.zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: torch.Tensor, see: Callable[[torch.Tensor], None]) -> Any:
        return _Look.apply(x, see), None

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None]:
        return None, None


def look(x: torch.Tensor, see: Callable[[torch.Tensor], None]) -> None:
    """Let a function see the values behind a transformed tensor, all samples of a ``vmap`` at once.

    Example:
        >>> _ = torch.func.vmap(lambda row: look(row, lambda x: print(x.shape)) or row)(torch.ones(3, 2))
        torch.Size([3, 2])
    """
    _Look.apply(x, see)
