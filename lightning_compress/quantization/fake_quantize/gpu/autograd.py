"""Autograd over the operators.

Tensors that need no gradient stand outside of the arguments that autograd looks at, which costs time for each.
Gradients of learned scales are added to ``.grad`` by the kernel that computes them, as fused gradient accumulation
does elsewhere; ``torch.autograd.grad`` with respect to them is not served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.device_operators import dense
from lightning_compress.quantization.fake_quantize.gpu import operators

Clip = tuple[float, float]


@dataclass(frozen=True, eq=False)
class State:
    """What an activation quantizer holds on its device.

    Attributes:
        range_: float32, ``[2]``; NaN until something was observed.
        scale: float32, ``[]``.
        zero: float32, ``[]``.
        nonfinite: int64, ``[]``.
        qmin: Smallest integer.
        qmax: Largest integer.
        clip: Ends that values are clipped to first.
    """

    range_: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    nonfinite: torch.Tensor
    qmin: int
    qmax: int
    clip: Clip | None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As operators take them, the ends of the clip last."""
        tensors = (self.range_, self.scale, self.zero, self.nonfinite)
        return *tensors, self.qmin, self.qmax, *(self.clip or (None, None))


def fake_quantize(
    x: torch.Tensor, state: State, momentum: float | None = None, *, in_place: bool = False
) -> torch.Tensor:
    """``functional.fake_quantize``, and the update of the range if ``momentum`` is given.

    Args:
        x: The activation.
        state: Its quantizer's.
        momentum: Weight of the observation, which acts from the next call on.
        in_place: Whether ``x`` is not read any more, by autograd either.
    """
    if (filled := dense(x)) is not x:
        x, in_place = filled, True
    gradient = torch.is_grad_enabled() and x.requires_grad
    if in_place and not x.is_leaf:
        with torch.no_grad():
            words = operators.fake_quantize_(x, *state.arguments, momentum, gradient)
        if gradient:
            stride = x.stride()
            x.register_hook(lambda grad: _pass(_aligned(grad, stride), words))
        return x
    if gradient:
        return _FakeQuantize.apply(x, (*state.arguments, momentum, True))
    return operators.fake_quantize(x, *state.arguments, momentum, False)[0]


def learned_activation(
    x: torch.Tensor,
    log_scale: torch.Tensor,
    shift: torch.Tensor | None,
    width: torch.Tensor,
    state: State,
    grad_scale: float,
) -> torch.Tensor:
    """``lsq.learned_activation`` for the scale ``exp(log_scale)`` and the offset ``shift * width``."""
    x = dense(x)
    if torch.is_grad_enabled():
        return _Learn.apply(x, log_scale, (shift, width, state, grad_scale))
    limits = (state.qmin, state.qmax, *(state.clip or (None, None)))
    return operators.learn(x, log_scale, shift, width, state.range_, *limits)[0]


def accumulates(ctx: Any, index: int) -> bool:
    """Whether the running backward pass is to add to ``.grad`` of an input, rather than return other gradients."""
    return bool(torch._C._will_engine_execute_node(ctx.next_functions[index][0]))


def _aligned(grad: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """The gradient in a given order of memory."""
    same = all(a == b for a, b, size in zip(grad.stride(), stride, grad.shape, strict=True) if size > 1)
    return grad if same else torch.empty_strided(grad.shape, stride, dtype=grad.dtype, device=grad.device).copy_(grad)


def _pass(grad: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled():
        return _PassInside.apply(grad, words)
    return operators.pass_inside(grad, words)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, arguments: tuple[Any, ...]) -> torch.Tensor:
        y, words = operators.fake_quantize(x, *arguments)
        ctx.save_for_backward(words)
        ctx.stride = y.stride()
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        (words,) = ctx.saved_tensors
        return None if grad is None else _pass(_aligned(grad, ctx.stride), words), None


class _PassInside(torch.autograd.Function):
    """A function of its own, so that gradients of gradients are right (they pass through the same mask)."""

    @staticmethod
    def forward(ctx: Any, grad: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(words)
        ctx.stride = grad.stride()
        return operators.pass_inside(grad, words)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (words,) = ctx.saved_tensors
        return _PassInside.apply(_aligned(grad, ctx.stride), words), None


class _Learn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, log_scale: torch.Tensor, rest: tuple[Any, ...]) -> torch.Tensor:
        shift, width, state, ctx.grad_scale = rest
        ctx.limits = state.qmin, state.qmax, *(state.clip or (None, None))
        y, codes, grid = operators.learn(x, log_scale, shift, width, state.range_, *ctx.limits)
        ctx.save_for_backward(codes, grid)
        ctx.parameters = log_scale, shift, width
        ctx.stride = y.stride()
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        if grad is None:
            return None, None, None
        if torch.is_grad_enabled():
            raise CompressionError(
                "range='learned' gives no gradients of gradients on an accelerator (create_graph=True): take "
                "range='minmax', 'percentile' or 'mse' for a loss that needs them."
            )
        codes, grid = ctx.saved_tensors
        log_scale, shift, width = ctx.parameters
        adds = log_scale.requires_grad and accumulates(ctx, 1)
        old = (log_scale.grad, None if shift is None else shift.grad) if adds else (None, None)
        out, new = operators.learned_pass(
            _aligned(grad, ctx.stride), codes, grid, shift, width, *old, ctx.grad_scale, *ctx.limits
        )
        if adds:
            missing = iter(new)
            for parameter, before in zip((log_scale, shift), old, strict=True):
                if parameter is not None and before is None:
                    parameter.grad = next(missing)
        return out if ctx.needs_input_grad[0] else None, None, None
