"""Quantizers on a live model: forward hooks alone, so Parameters, classes and ``state_dict`` keys stay as they are.

While a layer runs, its weight attribute is shadowed by the fake-quantized weight: an entry in the instance's
``__dict__`` is found before ``Module.__getattr__`` looks among the parameters. Any ``forward`` that reads
``self.weight`` works, subclasses' own included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.quantization import kernels, observers
from lightning_compress.quantization.recording import Boundary
from lightning_compress.quantization.spec import ActivationSpec, WeightSpec
from lightning_compress.quantization.structure import replaced


class Switch:
    """What all quantizers of a model share: whether they act, and whether they learn ranges."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.enabled = True
        self.frozen = False
        self.momentum = 0.1
        self.observe_every = 1

    @property
    def learning(self) -> bool:
        """Ranges are learned from training batches alone: never in validation, never once frozen."""
        return self.root.training and not self.frozen


class WeightQuantizer:
    """Fake-quantizes one weight while the module that uses it runs.

    Attributes:
        name: The weight's full name.
        spec: Bits and granularity.
        channel_axis: Dimension of the output channels.
        axis: The same where each has a scale of its own, ``None`` with a single scale.
        fixed_scale: Scale to use instead of the one that the weight's own range gives (loaded artifacts).
    """

    def __init__(self, name: str, owner: nn.Module, attribute: str, axis: int, spec: WeightSpec) -> None:
        self.name = name
        self.spec = spec
        self.channel_axis = axis
        self.axis = None if spec.granularity == "tensor" else axis
        self.fixed_scale: torch.Tensor | None = None
        self._owner = owner
        self._attribute = attribute

    @property
    def weight(self) -> nn.Parameter:
        """The float weight."""
        parameter = self._owner._parameters[self._attribute]
        if parameter is None:
            raise CompressionError(f"{self.name} is gone: its module dropped the parameter after prepare().")
        return parameter

    def scale(self) -> torch.Tensor:
        """The scale now: float32, ``[C]`` along ``axis``, ``[]`` without; grouped ``[C, groups]``."""
        if self.fixed_scale is not None:
            return self.fixed_scale.to(self.weight.device)
        return observers.weight_scale(
            self.weight.detach(), self.axis, self.spec.qmax, self.spec.range, group_size=self.spec.group_size
        )

    def fake_quantize(self) -> torch.Tensor:
        """The weight on its integer grid, as float; gradients pass to the parameter."""
        return kernels.fake_quantize_weight(
            self.weight,
            self.scale(),
            self.axis,
            -self.spec.qmax,
            self.spec.qmax,
            group_size=self.spec.group_size,
            clips=self.spec.range != "minmax",
        )

    def integers(self) -> torch.Tensor:
        """The integers that an export stores: int8, the weight's shape."""
        return kernels.quantize_weight_integers(
            self.weight.detach(),
            self.scale(),
            self.axis,
            -self.spec.qmax,
            self.spec.qmax,
            group_size=self.spec.group_size,
        )

    def shadow(self) -> None:
        """Put the fake-quantized weight in front of the parameter."""
        self._owner.__dict__[self._attribute] = self.fake_quantize()

    def unshadow(self) -> None:
        """Let the parameter be seen again."""
        self._owner.__dict__.pop(self._attribute, None)


class ActivationQuantizer:
    """Observes and fake-quantizes one activation tensor.

    Attributes:
        name: Name of its site.
        spec: Bits and scheme.
        range: Smallest and largest value: float32, ``[2]``; NaN until something was observed.
        scale: float32, ``[]``.
        zero_point: float32 holding an integer, ``[]``.
        nonfinite: Observations left out since they were not finite: int64, ``[]``.
    """

    def __init__(self, name: str, spec: ActivationSpec, switch: Switch) -> None:
        self.name = name
        self.spec = spec
        self.switch = switch
        # Made outside of inference mode, or the first sanity check would poison training.
        with torch.inference_mode(False):
            self.range = torch.full((2,), torch.nan)
            self.scale = torch.ones(())
            self.zero_point = torch.zeros(())
            self.nonfinite = torch.zeros((), dtype=torch.int64)
        self.observed = False
        self._calls = 0

    @property
    def bits(self) -> int:
        """Bit width."""
        return self.spec.bits

    @property
    def qmin(self) -> int:
        """Smallest integer."""
        return self.spec.qmin

    @property
    def qmax(self) -> int:
        """Largest integer."""
        return self.spec.qmax

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Fake-quantize ``x``; learn its range first when training."""
        if not x.is_floating_point():
            return x
        if self.scale.device != x.device:
            self.to(x.device)
        if self.switch.learning:
            self._observe(x)
        if not self.observed:
            return x
        return kernels.fake_quantize(x, self.scale, self.zero_point, self.qmin, self.qmax)

    def to(self, device: torch.device) -> None:
        """Move the state."""
        with torch.inference_mode(False):
            self.range = self.range.to(device)
            self.scale = self.scale.to(device)
            self.zero_point = self.zero_point.to(device)
            self.nonfinite = self.nonfinite.to(device)

    def _observe(self, x: torch.Tensor) -> None:
        due = self._calls % self.switch.observe_every == 0
        self._calls += 1
        if not due:
            return
        with torch.no_grad():
            symmetric = self.spec.scheme == "symmetric"
            observed = observers.observe(x.detach(), self.spec.range, self.bits, symmetric=symmetric)
            observers.ema_(self.range, observed, self.switch.momentum, self.nonfinite)
        self.observed = True
        self.update_scale()

    def update_scale(self) -> None:
        """Recompute scale and zero point from the range, in place."""
        with torch.no_grad():
            if self.spec.scheme == "affine":
                scale, zero_point = observers.affine_qparams(self.range[0], self.range[1], self.bits)
            else:
                scale, zero_point = observers.symmetric_qparams(self.range[0], self.range[1], self.bits)
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives."""
        return {
            "range": self.range.cpu().clone(),
            "scale": self.scale.cpu().clone(),
            "zero_point": self.zero_point.cpu().clone(),
            "nonfinite": self.nonfinite.cpu().clone(),
            "observed": self.observed,
            "calls": self._calls,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        device = self.scale.device
        with torch.inference_mode(False):
            self.range = state["range"].clone().to(device)
            self.scale = state["scale"].clone().to(device)
            self.zero_point = state["zero_point"].clone().to(device)
            self.nonfinite = state["nonfinite"].clone().to(device)
        self.observed = bool(state["observed"])
        self._calls = int(state["calls"])


class WeightHook:
    """Shadows weights while their module runs. Registered as both the pre-hook and the (always called) hook."""

    def __init__(self, quantizers: list[WeightQuantizer], switch: Switch) -> None:
        self.quantizers = quantizers
        self.switch = switch

    def enter(self, module: nn.Module, args: Any) -> None:
        """Before the module's forward."""
        if self.switch.enabled:
            for quantizer in self.quantizers:
                quantizer.shadow()

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the module's forward, also when it raised."""
        for quantizer in self.quantizers:
            quantizer.unshadow()


class ActivationHook:
    """Quantizes a tensor at a module's boundary."""

    def __init__(self, quantizer: ActivationQuantizer, boundary: Boundary, switch: Switch) -> None:
        self.quantizer = quantizer
        self.path = boundary.path
        self.switch = switch

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the module's forward: quantize an argument."""
        if not self.switch.enabled:
            return None
        if isinstance(self.path[0], str):
            return args, replaced(dict(kwargs), self.path, self.quantizer)
        return replaced(args, self.path, self.quantizer), kwargs

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """After the module's forward: quantize its result."""
        return replaced(output, self.path, self.quantizer) if self.switch.enabled else None
