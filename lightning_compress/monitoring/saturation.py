"""What activation quantizers cut off in one batch, counted as it passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_compress.quantization import Quantization
    from lightning_compress.quantization.quantizers.activation import ActivationQuantizer


@dataclass(frozen=True)
class Saturation:
    """One activation tensor in one batch.

    Attributes:
        share: Share of its values beyond the ends of the integer grid, from 0 to 1.
        constant: Whether all its values are equal: nothing passes through it any more.
    """

    share: float
    constant: bool


class SaturationWatch:
    """Looks at what the activation quantizers of a model see, from its making until ``close``.

    Args:
        quantization: The model's quantizers.

    Example:
        >>> from lightning_compress import quantization
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> _ = quantization.prepare(net, example_inputs=torch.zeros(1, 4))
        >>> x = torch.linspace(-1, 1, 64).reshape(16, 4)
        >>> _ = net(x)
        >>> watch = SaturationWatch(quantization.find(net))
        >>> _ = net(3 * x)
        >>> max(seen.share for seen in watch.close().values()) > 0.5
        True
    """

    def __init__(self, quantization: Quantization) -> None:
        self._quantizers = list(quantization.activations.values())
        self._seen: dict[str, list[Tensor]] = {}
        for quantizer in self._quantizers:
            quantizer.watch = self._see

    def close(self) -> dict[str, Saturation]:
        """Stop looking; activation → what was seen of it. A GPU is waited for once."""
        for quantizer in self._quantizers:
            quantizer.watch = None
        if not self._seen:
            return {}
        means = torch.stack([torch.stack(parts).mean(0) for parts in self._seen.values()]).tolist()
        return {
            name: Saturation(share, constant == 1) for name, (share, constant) in zip(self._seen, means, strict=True)
        }

    @torch.no_grad()
    def _see(self, quantizer: ActivationQuantizer, x: Tensor) -> None:
        if not quantizer.observed or not x.numel():
            return
        x = x.detach()
        # Half a step beyond the last integer still rounds to it.
        low = (quantizer.qmin - 0.5 - quantizer.zero_point) * quantizer.scale
        high = (quantizer.qmax + 0.5 - quantizer.zero_point) * quantizer.scale
        share = ((x < low) | (x > high)).float().mean()
        constant = (x.amin() == x.amax()).float()
        self._seen.setdefault(quantizer.name, []).append(torch.stack([share, constant]))
