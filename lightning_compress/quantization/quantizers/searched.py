"""Weights whose range is searched for: now and then, since its part of the largest weight hardly moves between."""

from __future__ import annotations

from typing import Any

import torch

from lightning_compress.quantization.candidates import Weight
from lightning_compress.quantization.quantizers.base import Switch, WeightQuantizer
from lightning_compress.quantization.ranges import observers
from lightning_compress.quantization.settings import WeightSpec

# Training forwards between two searches. One squared-error search reads the weight 88 times.
_EVERY = 100


class SearchedWeightQuantizer(WeightQuantizer):
    """A weight with a percentile or squared-error range.

    The scale is the min-max scale, found anew at every forward, times a ratio that is searched for at the first
    training forward and every hundredth after it, while ranges are learned. Before the first it is searched for at
    each use. A compiled graph keeps the ratio of its first forward.

    Attributes:
        ratio: Part of the min-max scale: float32, of the scale's shape; ``None`` before the first search.
    """

    def __init__(self, weight: Weight, spec: WeightSpec, switch: Switch) -> None:
        super().__init__(weight, spec)
        self.switch = switch
        self.ratio: torch.Tensor | None = None
        self._forwards = 0

    def scale(self) -> torch.Tensor:
        """The scale now: float32, ``[C]`` along ``axis``, ``[]`` without; grouped ``[C, groups]``."""
        if self.fixed_scale is not None or self.ratio is None:
            return super().scale()
        ratio = self.ratio.to(self.weight.device)
        return self._largest() * ratio

    def fake_quantize(self) -> torch.Tensor:
        """The weight on its integer grid, as float; gradients pass to the parameter."""
        if self.fixed_scale is None and self.switch.learning:
            if self.ratio is None or self._forwards == _EVERY:
                with torch.inference_mode(False), torch.no_grad():
                    self.ratio = super().scale() / self._largest()
                self._forwards = 0
            if not torch.compiler.is_compiling():
                self._forwards += 1
        return super().fake_quantize()

    def change(self, spec: WeightSpec) -> None:
        """Go on with other bits, of which the range is searched for anew."""
        super().change(spec)
        self.ratio = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives."""
        return {"ratio": None if self.ratio is None else self.ratio.cpu().clone(), "forwards": self._forwards}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.ratio = state["ratio"]
        self._forwards = int(state["forwards"])

    def _largest(self) -> torch.Tensor:
        return observers.weight_scale(
            self.weight.detach(), self.axis, self.spec.qmax, "minmax", group_size=self.spec.group_size
        )
