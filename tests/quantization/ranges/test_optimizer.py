"""The optimizer of learned ranges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_compress.quantization.ranges.optimizer import RangeOptimizer


def stepped(ranges: RangeOptimizer, parameters: list[nn.Parameter], gradients: list[float]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.full_like(parameter, gradient)
    ranges.step()


def test_a_gradient_that_is_not_finite_counts_as_zero_and_the_step_is_counted() -> None:
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    plain = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    ranges, adam = RangeOptimizer(lr=0.1), torch.optim.Adam(plain, lr=0.1, fused=False)
    ranges.track(parameters)
    for gradients in ([1.0, 2.0], [math.nan, 1.0], [0.5, -math.inf], [math.inf, math.nan], [1.0, 1.0]):
        stepped(ranges, parameters, gradients)
        for parameter, gradient in zip(plain, gradients, strict=True):
            parameter.grad = torch.full((2,), gradient if math.isfinite(gradient) else 0.0)
        adam.step()
    torch.testing.assert_close(parameters, plain, rtol=1e-6, atol=1e-7)
    assert ranges.nonfinite == 3
    again = RangeOptimizer(lr=0.1)
    again.load_state_dict(ranges.state_dict())
    assert again.nonfinite == 3


class NothingRead(TorchDispatchMode):
    """Fails where a value of a tensor is read, for which a GPU would be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_reads_no_value_from_the_device() -> None:
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    ranges = RangeOptimizer(lr=0.1)
    ranges.track(parameters)
    with NothingRead():
        stepped(ranges, parameters, [1.0, 1.0])
        with pytest.raises(AssertionError):
            parameters[0][0].item()
    assert all(float(p[0]) < 0 for p in parameters)


def test_a_resumed_optimizer_remembers_the_highest_rate_of_the_run() -> None:
    # Without a scheduler that names its first rate, only the past knows that 0.1 is half of the highest.
    ranges = RangeOptimizer(lr=0.1)
    assert ranges.share(0, {"lr": 0.2}) == 1.0
    again = RangeOptimizer(lr=0.1)
    again.load_state_dict(ranges.state_dict())
    assert again.share(0, {"lr": 0.1}) == 0.5
    again.forget_rates()
    assert again.share(0, {"lr": 0.1}) == 1.0


def test_gradients_are_averaged_over_ranks_before_a_step() -> None:
    parameters, alone = ([nn.Parameter(torch.zeros(2)) for _ in range(2)] for _ in range(2))
    ranges, adam = RangeOptimizer(lr=0.1), torch.optim.Adam(alone, lr=0.1, fused=False)
    ranges.track(parameters)
    others = torch.tensor([3.0, 3.0, -4.0, -4.0])
    for gradients in ([1.0, 2.0], [-2.0, 0.5]):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.full((2,), gradient)
        ranges.step(average=lambda flat: (flat + others) / 2)
        for parameter, gradient, other in zip(alone, gradients, others[::2], strict=True):
            parameter.grad = torch.full((2,), (gradient + float(other)) / 2)
        adam.step()
    torch.testing.assert_close(parameters, alone, rtol=1e-6, atol=1e-7)
