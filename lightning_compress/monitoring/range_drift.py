"""How wide the ranges of activations are, and how often one was left as it was since a batch was not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning_compress.quantization import Quantization


@dataclass(frozen=True)
class Ranges:
    """The ranges of a model's activations at one moment.

    Attributes:
        widths: Activation → distance between the ends of its integer grid, in the units of the tensor.
        nonfinite: Activation → observations since its making that held NaN or infinity and changed nothing.
    """

    widths: Mapping[str, float]
    nonfinite: Mapping[str, int]


def read_ranges(quantization: Quantization) -> Ranges:
    """Read the ranges of all activations that have one. A GPU is waited for once.

    Args:
        quantization: The model's quantizers.

    Example:
        >>> from lightning_compress import quantization
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> _ = quantization.prepare(net, example_inputs=torch.zeros(1, 4))
        >>> _ = net(torch.tensor([[-1.0, 0.0, 0.0, 2.0]]))
        >>> read_ranges(quantization.find(net))
        Ranges(widths={'0:input[0]': 3.0}, nonfinite={'0:input[0]': 0})
    """
    quantization.synchronize()
    observed = {name: quantizer for name, quantizer in quantization.activations.items() if quantizer.observed}
    if not observed:
        return Ranges({}, {})
    device = next(iter(observed.values())).scale.device
    parts = [
        torch.stack([q.scale * (q.qmax - q.qmin), q.nonfinite.to(q.scale.dtype)]).to(device) for q in observed.values()
    ]
    found = dict(zip(observed, torch.stack(parts).tolist(), strict=True))
    return Ranges(
        {name: width for name, (width, _) in found.items()}, {name: int(count) for name, (_, count) in found.items()}
    )


def drifts(before: Mapping[str, float], now: Mapping[str, float]) -> list[float]:
    """How far each range has moved, in powers of two: 0 where it has not, 1 where its width doubled or halved.

    Widths are compared, not scales, so that other bits over the same range are no drift.

    Example:
        >>> drifts({"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 3.0, "new": 5.0})
        [1.0, 0.0]
    """
    return [abs(math.log2(width / before[name])) for name, width in now.items() if name in before]
