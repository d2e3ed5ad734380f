"""Quantized weights in the place of a module's own, while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_compress.quantization.candidates import Use
from lightning_compress.quantization.quantizers.base import Switch, WeightQuantizer
from lightning_compress.quantization.quantizers.substitute import Shadow, Shadows


class WeightShadows(Shadows):
    """Shows a module the quantized weights that its forward reads.

    Args:
        reads: Each quantizer with the attribute through which the module reads its weight.
        switch: What the model's quantizers share.
    """

    def __init__(self, reads: Sequence[tuple[WeightQuantizer, Use]], switch: Switch) -> None:
        super().__init__([Shadow(use.owner, use.attribute, quantizer.fake_quantize) for quantizer, use in reads])
        self._quantizers = [quantizer for quantizer, _ in reads]
        self._switch = switch

    def active(self, module: nn.Module) -> bool:
        """While the quantizers act."""
        return self._switch.enabled

    def release(self, quantizer: WeightQuantizer) -> None:
        """Let the module read the float weight of a quantizer again."""
        kept = [pair for pair in zip(self.shadows, self._quantizers, strict=True) if pair[1] is not quantizer]
        self.shadows, self._quantizers = [shadow for shadow, _ in kept], [other for _, other in kept]
