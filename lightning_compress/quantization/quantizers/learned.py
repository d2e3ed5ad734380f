"""Quantizers whose scales are trained: LSQ (Esser et al. 2020), with LSQ+'s offset (Bhalgat et al. 2020).

Scales are held as logarithms, offsets in widths of the first range: one learning rate then means the same relative
change for every tensor and bit width, and no scale can leave the positive numbers (as in TQT, Jain et al. 2020). The
gradients are LSQ's, by the chain rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lightning_compress.foundation.device_operators import served
from lightning_compress.quantization.candidates import Weight
from lightning_compress.quantization.fake_quantize import functional as kernels
from lightning_compress.quantization.fake_quantize.gpu import autograd as device
from lightning_compress.quantization.fake_quantize.lsq import (
    gradient_scale,
    learned_activation,
    learned_fake_quantize,
    learned_zero_point,
)
from lightning_compress.quantization.fake_quantize.step_memory import StepMemory
from lightning_compress.quantization.fake_quantize.transforms import look, transformed
from lightning_compress.quantization.quantizers.activation import ActivationQuantizer
from lightning_compress.quantization.quantizers.switch import Switch
from lightning_compress.quantization.quantizers.weight import WeightQuantizer
from lightning_compress.quantization.quantizers.weight_group import Ready, connected_learned, searched_together
from lightning_compress.quantization.ranges import observers
from lightning_compress.quantization.settings import ActivationSpec, WeightSpec


class LearnedWeightQuantizer(WeightQuantizer):
    """A weight whose scales are trained, from the range of least squared error at its first training forward.

    Attributes:
        log_scale: Natural logarithm of the scale: float32, ``[]`` or ``[C]``.
        started: Whether it holds a scale yet.
    """

    def __init__(self, weight: Weight, spec: WeightSpec, switch: Switch) -> None:
        super().__init__(weight, spec)
        self.switch = switch
        self.started = False
        with torch.inference_mode(False):
            shape = () if self.axis is None else (self.weight.shape[self.axis],)
            self.log_scale = nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=self.weight.device))

    def scale(self) -> torch.Tensor:
        """The scale now: float32, ``[C]`` along ``axis``, ``[]`` without."""
        if self.fixed_scale is not None:
            return self.fixed_scale.to(self.weight.device)
        if not self.started:
            return observers.weight_scale(self.weight.detach(), self.axis, self.spec.qmax, "mse")
        return self.log_scale.detach().exp()

    def fake_quantize(self) -> torch.Tensor:
        """The weight on its integer grid, as float; gradients pass to the parameter and to ``log_scale``."""
        if (value := self.group.take(self)) is not None:
            return value
        if self.fixed_scale is not None or not (self.started or self.switch.learning):
            return super().fake_quantize()
        self._follow()
        if not self.started and transformed():
            look(self.weight, self._start)
        else:
            self.begin([self])
        qmax, log_scale = self.spec.qmax, self.log_scale if self.switch.learning else self.log_scale.detach()
        return learned_fake_quantize(self.weight, log_scale.exp(), -qmax, qmax, self._factor, axis=self.axis or 0)

    def _follow(self) -> None:
        """Move the scales to where the weight is."""
        if self.log_scale.device != self.weight.device:
            self.log_scale.data = self.log_scale.data.to(self.weight.device)

    @property
    def _factor(self) -> float:
        return gradient_scale(self.weight.numel() // self.log_scale.numel(), self.spec.qmax)

    @property
    def grouped(self) -> bool:
        """Whether its values can be made together with those of others of its class."""
        return super().grouped and (self.started or self.switch.learning)

    @classmethod
    def begin(cls, quantizers: Sequence[LearnedWeightQuantizer]) -> None:
        """Give those without scales the ones of least squared error, all at once where an operator does."""
        for one in quantizers:
            one._follow()
        new = [one for one in quantizers if not one.started]
        if not new:
            return
        found = searched_together(new)
        for i, one in enumerate(new):
            one.log_scale.data.copy_((one.scale() if found is None else found[i][0]).log())
            one.started = True

    @classmethod
    def factors(cls, quantizers: Sequence[LearnedWeightQuantizer]) -> tuple[torch.Tensor, bool]:
        """The scales in a row."""
        logs = [one.log_scale if one.log_scale.ndim else one.log_scale.reshape(1) for one in quantizers]
        return torch.cat(logs).exp_(), True

    def place(self, ready: Ready) -> torch.Tensor:
        """Connect values on the grid with the parameter and, while ranges are learned, with ``log_scale``."""
        if not torch.is_grad_enabled():
            return ready.value
        log_scale = self.log_scale if self.switch.learning else self.log_scale.detach()
        axis = -1 if self.axis is None else self.axis % self.weight.ndim
        return connected_learned(self.weight, log_scale, ready, axis, self.spec.qmax, self._factor)

    def _start(self, weight: torch.Tensor) -> None:
        self.log_scale.data.copy_(observers.weight_scale(weight, self.axis, self.spec.qmax, "mse").log())
        self.started = True

    def change(self, spec: WeightSpec) -> None:
        """Go on with other bits, from the range of least squared error at them."""
        super().change(spec)
        self.started = False

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer trains."""
        return [self.log_scale]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives."""
        return {"log_scale": self.log_scale.detach().cpu().clone(), "started": self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.log_scale.data.copy_(state["log_scale"])
        self.started = bool(state["started"])


class LearnedActivationQuantizer(ActivationQuantizer):
    """An activation whose scale and, where affine, offset are trained, from the range of its first batch.

    Attributes:
        log_scale: Natural logarithm of the scale: float32, ``[]``.
        shift: Smallest value of the range, in widths of the first range: float32, ``[]``.
        width: Width of the first range: float32, ``[]``.
        restarts: Whether the next training batch sets the range again, since the bits changed.
    """

    def __init__(self, name: str, spec: ActivationSpec, switch: Switch, device: torch.device | None = None) -> None:
        with torch.inference_mode(False):
            self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float32, device=device))
            self.shift = nn.Parameter(torch.zeros((), dtype=torch.float32, device=device))
            self.width = torch.ones((), dtype=torch.float32, device=device)
        self.restarts = False
        self._memory = StepMemory()
        super().__init__(name, spec, switch, device)

    def __call__(
        self, x: torch.Tensor, clip: kernels.Clip | None = None, scratch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Fake-quantize ``x`` with gradients for scale and offset; the first training batch sets them."""
        if not x.is_floating_point() or (self._observed is False and not self.switch.learning):
            return super().__call__(x, clip, scratch)
        if self.log_scale.device != x.device:
            self.to(x.device)
        if served(x):
            return self._on_accelerator(x, clip, in_place=scratch is x)
        if (self.restarts or not self.observed) and self._learns_from(x):
            seen = x if clip is None else x.clamp(*clip)
            if transformed():
                look(seen, self._start)
            else:
                self._start(seen.detach())
        if not self.observed:
            return x if clip is None else x.clamp(*clip)
        if not self.switch.learning:
            if not transformed():
                self.synchronize()
            grid = (*self._learned(), self.qmin, self.qmax)
            return kernels.fake_quantize(x, *grid, clip=clip, scratch=scratch)
        scale, offset = self.log_scale.exp(), None if self.symmetric else self.shift * self.width
        memory = None if torch.compiler.is_compiling() else self._memory
        return learned_activation(
            x, scale, offset, self.qmin, self.qmax, self._factor(x), clip=clip, scratch=scratch, memory=memory
        )

    def _factor(self, x: torch.Tensor) -> float:
        return gradient_scale(math.prod(x.shape[1:]), self.qmax)

    def _on_accelerator(self, x: torch.Tensor, clip: kernels.Clip | None, *, in_place: bool) -> torch.Tensor:
        """The same, without a look at the range.

        A first batch that is not finite leaves values unquantized until ``observed`` was read, as an evaluation or
        a checkpoint does; the next training batch then sets the range.
        """
        state = self._state(clip)
        if (self.restarts or self._observed is False) and self._learns_from(x):
            self._observe(x, state, "mse")
            self._take_range()
        if self._observed is False:
            return x if clip is None else x.clamp(*clip)
        if not self.switch.learning:
            self.synchronize()
            return device.fake_quantize(x, state, in_place=in_place)
        shift = None if self.symmetric else self.shift
        return device.learned_activation(x, self.log_scale, shift, self.width, state, self._factor(x))

    def change(self, spec: ActivationSpec) -> None:
        """Go on with other bits: over the same range, until the next training batch gives the range to start from."""
        levels = self.qmax - self.qmin
        self.spec = spec
        if self.observed:
            with torch.no_grad():
                self.log_scale.data.add_(math.log(levels / (self.qmax - self.qmin)))
            self.synchronize()
            self.restarts = True

    def _start(self, seen: torch.Tensor) -> None:
        with torch.no_grad():
            self._learn(observers.observe(seen, "mse", self.bits, symmetric=self.symmetric))
            if self.observed:
                self._take_range()

    def _take_range(self) -> None:
        """Set the parameters to what the range says."""
        with torch.no_grad():
            self.restarts = False
            self.log_scale.data.copy_(self.scale.log())
            self.width.copy_(self.scale * (self.qmax - self.qmin))
            self.shift.data.copy_((self.qmin - self.zero_point) * self.scale / self.width)

    def synchronize(self) -> None:
        """Bring ``scale`` and ``zero_point`` to what the parameters say."""
        scale, zero_point = self._learned()
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    @torch.no_grad()
    def _learned(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point by the parameters."""
        scale = self.log_scale.exp()
        if self.symmetric:
            return scale, torch.zeros_like(scale)
        return scale, learned_zero_point(self.shift * self.width, scale, self.qmin, self.qmax)

    def update_scale(self) -> None:
        """Scale and zero point come from the parameters, not from the range."""
        self.synchronize()

    def to(self, device: torch.device) -> None:
        """Move the state."""
        super().to(device)
        with torch.inference_mode(False):
            self.log_scale.data = self.log_scale.data.to(device)
            self.shift.data = self.shift.data.to(device)
            self.width = self.width.to(device)

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer trains."""
        return [self.log_scale] if self.symmetric else [self.log_scale, self.shift]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives."""
        if self.observed:
            self.synchronize()
        learned = {name: getattr(self, name).detach().cpu().clone() for name in ("log_scale", "shift", "width")}
        return {**super().state_dict(), **learned, "restarts": self.restarts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        super().load_state_dict(state)
        self.restarts = bool(state["restarts"])
        with torch.inference_mode(False):
            self.log_scale.data.copy_(state["log_scale"])
            self.shift.data.copy_(state["shift"])
            self.width = state["width"].clone().to(self.scale.device)
