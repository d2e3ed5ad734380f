"""The optimizer of learned ranges, separate from the user's own, which does not change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


class RangeOptimizer:
    """Adam (Kingma & Ba 2015) on the logarithms of scales: one rate means the same relative change everywhere.

    Args:
        lr: Learning rate; 0.001 moves a scale by at most about a thousandth a step.

    Example:
        >>> p = nn.Parameter(torch.zeros(()))
        >>> ranges = RangeOptimizer(lr=0.5)
        >>> ranges.track([p])
        >>> p.grad = torch.ones(())
        >>> ranges.step()
        >>> round(float(p), 3)
        -0.5
    """

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self._nonfinite = torch.zeros((), dtype=torch.int64)
        self._adam: torch.optim.Adam | None = None
        self._saved: dict[str, Any] | None = None
        self._parameters: list[nn.Parameter] = []
        self._highest: dict[int, float] = {}

    def track(self, parameters: list[nn.Parameter]) -> None:
        """Train these parameters from now on; the state of those that were trained already stays."""
        known = {id(parameter) for parameter in self._parameters}
        new = [parameter for parameter in parameters if id(parameter) not in known]
        if not new:
            return
        self._parameters += new
        if self._adam is None:
            # One kernel a tensor: so many small ones take longer to call for than to compute.
            self._adam = torch.optim.Adam(new, lr=self.lr, fused=True)
        else:
            self._adam.add_param_group({"params": new})
        if self._saved is not None and len(self._saved["state"]) <= len(self._parameters):
            groups = [{**group} for group in self._adam.state_dict()["param_groups"]]
            self._adam.load_state_dict({"state": self._saved["state"], "param_groups": groups})
            self._saved = None

    def step(self, factor: float = 1.0, average: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        """Take one step and forget the gradients.

        A gradient that is not finite, as in a step that loss scaling skips, counts as zero. All stays on the
        parameters' device, so that no GPU is waited for.

        Args:
            factor: Share of the learning rate, to follow the user's schedule.
            average: Averages a tensor over the ranks of a distributed run.
        """
        if self._adam is None:
            return
        self._gather(average)
        for group in self._adam.param_groups:
            group["lr"] = self.lr * factor
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def forget_rates(self) -> None:
        """Start over with the highest learning rates, as after a search for one."""
        self._highest.clear()

    def share(self, optimizer: int, group: Mapping[str, Any]) -> float:
        """The part of its highest learning rate that an optimizer of the user's has now.

        Args:
            optimizer: Its number.
            group: Its parameter group; where a scheduler names the rate it starts from or rises to, that counts.
        """
        rates = (float(group.get(key, 0.0)) for key in ("lr", "initial_lr", "max_lr"))
        highest = self._highest[optimizer] = max(self._highest.get(optimizer, 0.0), *rates)
        return float(group["lr"]) / highest if highest else 1.0

    @property
    def nonfinite(self) -> int:
        """Steps so far in which a gradient was not finite. A GPU is waited for."""
        return int(self._nonfinite)

    @torch.no_grad()
    def _gather(self, average: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        """Average the gradients, zero what is not finite, and count it; all those of a device at once."""
        devices: dict[torch.device, list[nn.Parameter]] = {}
        for parameter in self._parameters:
            if parameter.grad is not None:
                devices.setdefault(parameter.device, []).append(parameter)
        spoiled = []
        for parameters in devices.values():
            flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
            if average is not None:
                flat = average(flat)
            finite = flat.isfinite()
            spoiled.append(~finite.all())
            gradients = torch.where(finite, flat, 0.0).split([p.numel() for p in parameters])
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.reshape(parameter.shape)
        if spoiled:
            device = spoiled[0].device
            self._nonfinite = self._nonfinite.to(device) + torch.stack([flag.to(device) for flag in spoiled]).any()

    def state_dict(self) -> dict[str, Any]:
        """Adam's state: tensors and primitives."""
        state = {} if self._adam is None else self._adam.state_dict()["state"]
        return {"state": state, "nonfinite": self._nonfinite.cpu().clone(), "highest": dict(self._highest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state over; Adam's as soon as all its parameters are tracked."""
        self._saved = state
        self._nonfinite = state["nonfinite"].clone()
        self._highest = dict(state["highest"])
