"""Quantizers on a live model: forward hooks alone, so Parameters, classes and ``state_dict`` keys stay as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.device_operators import dense, served
from lightning_compress.quantization.candidates import Weight
from lightning_compress.quantization.fake_quantize import functional as kernels
from lightning_compress.quantization.fake_quantize.gpu import autograd as device
from lightning_compress.quantization.fake_quantize.gpu import operators
from lightning_compress.quantization.fake_quantize.integers import quantize_weight_integers
from lightning_compress.quantization.fake_quantize.transforms import look, transformed
from lightning_compress.quantization.quantizers.weight_group import Ready, WeightGroup, connected
from lightning_compress.quantization.ranges import observers
from lightning_compress.quantization.settings import ActivationSpec, WeightSpec

# Observations of other methods in the time of one squared-error search, which reads its sample 88 times.
_SEARCH_EVERY = 10


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
        """Ranges are learned from training batches alone: never in validation, never once frozen.

        Nor from a forward that runs again inside a backward pass (activation checkpointing): it saw that batch.
        """
        if not self.root.training or self.frozen:
            return False
        return torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1


class WeightQuantizer:
    """Fake-quantizes one weight while the module that uses it runs.

    Attributes:
        name: The weight's full name.
        uses: Where it is read.
        spec: Bits and granularity.
        channel_axis: Dimension of the output channels.
        axis: The same where each has a scale of its own, ``None`` with a single scale.
        fixed_scale: Scale to use instead of the one that the weight's own range gives (loaded artifacts).
        group: The weights that are quantized together on accelerators.
    """

    def __init__(self, weight: Weight, spec: WeightSpec) -> None:
        self.name = weight.name
        self.uses = weight.uses
        self.spec = spec
        self.channel_axis = weight.axis
        self.axis = None if spec.granularity == "tensor" else weight.axis
        self.fixed_scale: torch.Tensor | None = None
        self.group = WeightGroup()

    @property
    def weight(self) -> nn.Parameter:
        """The float weight."""
        first = self.uses[0]
        parameter = first.owner._parameters[first.attribute]
        if parameter is None:
            raise CompressionError(f"{self.name} is gone: its module dropped the parameter after prepare().")
        return parameter

    @property
    def biases(self) -> list[nn.Parameter]:
        """The biases that are added to its products."""
        found = (use.owner._parameters.get(use.bias) for use in self.uses if use.bias is not None)
        return [bias for bias in found if bias is not None]

    def scale(self) -> torch.Tensor:
        """The scale now: float32, ``[C]`` along ``axis``, ``[]`` without; grouped ``[C, groups]``."""
        if self.fixed_scale is not None:
            return self.fixed_scale.to(self.weight.device)
        return observers.weight_scale(
            self.weight.detach(), self.axis, self.spec.qmax, self.spec.range, group_size=self.spec.group_size
        )

    def fake_quantize(self) -> torch.Tensor:
        """The weight on its integer grid, as float; gradients pass to the parameter."""
        if (value := self.group.take(self)) is not None:
            return value
        return kernels.fake_quantize_weight(
            self.weight,
            self.scale(),
            self.axis,
            -self.spec.qmax,
            self.spec.qmax,
            group_size=self.spec.group_size,
            clips=self.spec.range != "minmax",
        )

    @property
    def grouped(self) -> bool:
        """Whether its values can be made together with those of others of its class."""
        return self.fixed_scale is None

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """``()``, ``(C,)`` or ``(C, groups)``."""
        if self.axis is None:
            return ()
        channels, group = self.weight.shape[self.axis], self.spec.group_size
        return (channels,) if group is None else (channels, -(-(self.weight.numel() // channels) // group))

    @property
    def scale_count(self) -> int:
        """How many scales it has."""
        return math.prod(self.scale_shape)

    @classmethod
    def begin(cls, quantizers: Sequence[Any]) -> None:
        """Find what is found once in many forwards."""

    @classmethod
    def factors(cls, quantizers: Sequence[Any]) -> tuple[torch.Tensor | None, bool]:
        """What min-max scales are multiplied by, or the scales (true), in a row: float32; ``None`` for neither."""
        return None, False

    def place(self, ready: Ready) -> torch.Tensor:
        """Connect values on the grid with the parameter."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return ready.value
        return connected(self.weight, ready)

    def change(self, spec: WeightSpec) -> None:
        """Go on with other bits."""
        self.spec = spec

    def state_dict(self) -> dict[str, Any]:
        """What the weight itself does not tell: tensors and primitives."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""

    def integers(self) -> torch.Tensor:
        """The integers that an export stores: int8, the weight's shape."""
        grid = (self.scale(), self.axis, -self.spec.qmax, self.spec.qmax)
        return quantize_weight_integers(self.weight.detach(), *grid, group_size=self.spec.group_size)


class ActivationQuantizer:
    """Observes and fake-quantizes one activation tensor.

    Attributes:
        name: Name of its site.
        spec: Bits and scheme.
        range: Smallest and largest value: float32, ``[2]``; NaN until something was observed.
        scale: float32, ``[]``.
        zero_point: float32 holding an integer, ``[]``.
        nonfinite: Observations left out since they were not finite: int64, ``[]``.
        watch: Called with every tensor that comes, while a monitor looks.
    """

    def __init__(self, name: str, spec: ActivationSpec, switch: Switch, device: torch.device | None = None) -> None:
        self.name = name
        self.spec = spec
        self.switch = switch
        # Made outside of inference mode, or the first sanity check would poison training. The type is named, as
        # Lightning's true half precision changes torch's default type inside a step.
        with torch.inference_mode(False):
            self.range = torch.full((2,), torch.nan, dtype=torch.float32, device=device)
            self.scale = torch.ones((), dtype=torch.float32, device=device)
            self.zero_point = torch.zeros((), dtype=torch.float32, device=device)
            self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        # None: something was observed, and whether it was finite is known to the device alone.
        self._observed: bool | None = False
        self.watch: Callable[[ActivationQuantizer, torch.Tensor], None] | None = None
        self._calls = 0

    @property
    def observed(self) -> bool:
        """Whether there is a range: read once from an accelerator, which waits for it; assumed in a compiled graph."""
        if self._observed is None and not torch.compiler.is_compiling():
            self._observed = bool(self.range.isfinite().all())
        return self._observed is not False

    @observed.setter
    def observed(self, observed: bool | None) -> None:
        self._observed = observed

    @property
    def bits(self) -> int:
        """Bit width."""
        return self.spec.bits

    @property
    def symmetric(self) -> bool:
        """Whether the integers are signed and the zero point is 0."""
        return self.spec.scheme == "symmetric"

    @property
    def qmin(self) -> int:
        """Smallest integer."""
        return self.spec.qmin

    @property
    def qmax(self) -> int:
        """Largest integer."""
        return self.spec.qmax

    def __call__(
        self, x: torch.Tensor, clip: kernels.Clip | None = None, scratch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Fake-quantize ``x``, and learn its range when training.

        A minmax range is observed in the same pass over ``x`` and counts from the next call on; only the first
        batch, and other range methods, look at ``x`` beforehand.

        Args:
            x: The tensor.
            clip: Ends to clip ``x`` to first: the activation function that would have run before.
            scratch: As in ``kernels.fake_quantize``.
        """
        if not x.is_floating_point():
            return x
        if self.scale.device != x.device:
            self.to(x.device)
        if self.watch is not None:
            self.watch(self, x if clip is None else x.clamp(*clip))
        if served(x):
            return self._on_accelerator(x, clip, in_place=scratch is x)
        grid = (self.scale, self.zero_point, self.qmin, self.qmax)
        if self._learns_from(x) and self._due():
            if transformed():
                look(x if clip is None else x.clamp(*clip), self._learn_behind)
            elif self.observed and self.spec.range == "minmax":
                y, observed = kernels.fake_quantize_and_observe(x, *grid, clip=clip, scratch=scratch)
                self._learn(observed)
                return y
            else:
                self._learn_behind(x.detach() if clip is None else x.detach().clamp(*clip))
        if not self.observed:
            return x if clip is None else x.clamp(*clip)
        return kernels.fake_quantize(x, *grid, clip=clip, scratch=scratch)

    def _on_accelerator(self, x: torch.Tensor, clip: kernels.Clip | None, *, in_place: bool) -> torch.Tensor:
        """The same, without a look at the range: while it is NaN the kernels let values pass.

        After a first batch that was not finite, the next one is observed and passes, too.
        """
        state, momentum = self._state(clip), None
        if self._learns_from(x) and self._due():
            if self._observed is not False and self.spec.range == "minmax":
                momentum = self.switch.momentum
            else:
                self._observe(x, state)
        if self._observed is False:
            return x if clip is None else x.clamp(*clip)
        return device.fake_quantize(x, state, momentum, in_place=in_place)

    def _state(self, clip: kernels.Clip | None) -> device.State:
        tensors = (self.range, self.scale, self.zero_point, self.nonfinite)
        return device.State(*tensors, self.qmin, self.qmax, clip)

    @torch.no_grad()
    def _observe(self, x: torch.Tensor, state: device.State, method: str | None = None) -> None:
        """Update the range from a tensor, on its device."""
        x, momentum, method = dense(x), self.switch.momentum, method or self.spec.range
        if method == "minmax":
            operators.observe_minmax_(x, *state.arguments, momentum)
        elif method == "percentile":
            operators.observe_percentile_(x, *state.arguments, momentum, observers.PERCENTILE, observers.SAMPLE)
        else:
            full = operators.minmax(x, *state.arguments[-2:])
            search = (observers.FRACTIONS, observers.SEARCH_SAMPLE)
            operators.observe_least_error_(x, full, *state.arguments, momentum, *search)
        if self._observed is False:
            self._observed = None

    def to(self, device: torch.device) -> None:
        """Move the state."""
        with torch.inference_mode(False):
            self.range = self.range.to(device)
            self.scale = self.scale.to(device)
            self.zero_point = self.zero_point.to(device)
            self.nonfinite = self.nonfinite.to(device)

    def _learns_from(self, x: torch.Tensor) -> bool:
        """Whether to look at a tensor: one without values, as of an expert without tokens, has no range."""
        if not self.switch.learning:
            return False
        if torch.compiler.is_compiling():
            # A size that depends on data would break the graph. Not loaded before it is needed, as that takes a second.
            from torch.fx.experimental.symbolic_shapes import guard_or_true

            return guard_or_true(x.numel() > 0)
        return x.numel() > 0

    def _due(self) -> bool:
        due = self._calls == 0 or self._observed is False
        every = self.switch.observe_every * (_SEARCH_EVERY if self.spec.range == "mse" else 1)
        # Not a count of all calls: a compiled graph is made anew for each value that it finds here.
        self._calls = (self._calls + 1) % every
        return due

    def _learn_behind(self, seen: torch.Tensor) -> None:
        """Learn from a tensor beforehand."""
        self._learn(observers.observe(seen, self.spec.range, self.bits, symmetric=self.symmetric))

    def _learn(self, observed: torch.Tensor) -> None:
        observers.update_(
            self.range, observed, self.switch.momentum, self.nonfinite, self.scale, self.zero_point, self.bits,
            symmetric=self.symmetric,
        )  # fmt: skip
        if not self.observed:
            # A first batch with NaN or infinity gives no range. Read once, but not where that would break a graph.
            self.observed = torch.compiler.is_compiling() or bool(self.range.isfinite().all())

    def change(self, spec: ActivationSpec) -> None:
        """Go on with other bits, over the same range."""
        self.spec = spec
        if self.observed:
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
