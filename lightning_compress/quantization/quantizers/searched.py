"""Weight quantizer with percentile or MSE clipping; the clipping ratio is re-estimated every 100 steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_compress.quantization.candidates import Weight
from lightning_compress.quantization.quantizers.switch import Switch
from lightning_compress.quantization.quantizers.weight import WeightQuantizer
from lightning_compress.quantization.quantizers.weight_group import searched_together
from lightning_compress.quantization.ranges import observers
from lightning_compress.quantization.settings import WeightSpec

# Training forwards between two searches. One squared-error search reads the weight 88 times.
_EVERY = 100


class SearchedWeightQuantizer(WeightQuantizer):
    """A weight quantizer with a percentile or squared-error range.

    The scale is the min-max scale, found again at every forward, times a ratio that is searched for at the first
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
        if (value := self.group.take(self)) is not None:
            return value
        if self.fixed_scale is None:
            self.begin([self])
        return super().fake_quantize()

    @property
    def grouped(self) -> bool:
        """Whether its values can be made together with those of others of its class."""
        return super().grouped and (self.ratio is not None or self.switch.learning)

    @classmethod
    def begin(cls, quantizers: Sequence[SearchedWeightQuantizer]) -> None:
        """Search for the ratios that are due, all at once where an operator does."""
        for one in quantizers:
            if one.ratio is not None and one.ratio.device != one.weight.device:
                one.ratio = one.ratio.to(one.weight.device)
        learning = [one for one in quantizers if one.switch.learning]
        due = [one for one in learning if one.ratio is None or one._forwards == _EVERY]
        if due:
            with torch.inference_mode(False), torch.no_grad():
                cls.search(due)
        if not torch.compiler.is_compiling():
            for one in learning:
                one._forwards += 1

    @classmethod
    def search(cls, quantizers: Sequence[SearchedWeightQuantizer]) -> None:
        """Search for the ratios of all, and keep them."""
        found = searched_together(quantizers) if quantizers[0].spec.range == "mse" else None
        for i, one in enumerate(quantizers):
            scale, largest = (super(cls, one).scale(), one._largest()) if found is None else found[i]
            one._forwards = 0
            if one.ratio is None:
                one.ratio = scale / largest
            else:
                one.ratio.copy_(scale / largest)

    @classmethod
    def factors(cls, quantizers: Sequence[SearchedWeightQuantizer]) -> tuple[torch.Tensor, bool]:
        """The ratios in a row."""
        ratios = [one.ratio for one in quantizers if one.ratio is not None]
        return torch.cat([ratio if ratio.ndim == 1 else ratio.reshape(-1) for ratio in ratios]), False

    def change(self, spec: WeightSpec) -> None:
        """Go on with other bits, of which the range is searched for again."""
        super().change(spec)
        self.ratio = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives."""
        return {"ratio": None if self.ratio is None else self.ratio.cpu().clone(), "forwards": self._forwards}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.ratio = None if state["ratio"] is None else state["ratio"].clone()
        self._forwards = int(state["forwards"])

    def _largest(self) -> torch.Tensor:
        return observers.weight_scale(
            self.weight.detach(), self.axis, self.spec.qmax, "minmax", group_size=self.spec.group_size
        )
