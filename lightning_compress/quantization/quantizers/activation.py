"""Quantizer of one activation tensor: observes its range and fake-quantizes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightning_compress.foundation.device_operators import dense, served
from lightning_compress.quantization.fake_quantize import functional as kernels
from lightning_compress.quantization.fake_quantize.gpu import autograd as device
from lightning_compress.quantization.fake_quantize.gpu import operators
from lightning_compress.quantization.fake_quantize.transforms import look, transformed
from lightning_compress.quantization.quantizers.switch import Switch
from lightning_compress.quantization.ranges import observers
from lightning_compress.quantization.settings import ActivationSpec

# A squared-error search reads its sample 88 times, so it observes once where other methods observe ten times.
_SEARCH_EVERY = 10


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
        if torch.compiler.is_compiling():
            return True  # A graph that counted would be compiled again for each count.
        due = self._calls == 0 or self._observed is False
        self._calls = (self._calls + 1) % (
            self.switch.observe_every * (_SEARCH_EVERY if self.spec.range == "mse" else 1)
        )
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
