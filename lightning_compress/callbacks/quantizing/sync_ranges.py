"""Keeps the quantizers of all ranks equal."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import torch
from torch import Tensor

from lightning_compress.quantization import Quantization


def mean_over_ranks(trainer: L.Trainer) -> Callable[[Tensor], Tensor]:
    """The reduction that every rank has to take part in."""

    def average(tensor: Tensor) -> Tensor:
        mean: Tensor = trainer.strategy.reduce(tensor, reduce_op="mean")
        return mean

    return average


def average_ranges(quantization: Quantization, average: Callable[[Tensor], Tensor]) -> None:
    """Each rank saw other batches: the mean of their ranges keeps all ranks equal, by one reduction."""
    quantizers = list(quantization.activations.values())
    if quantizers:
        # A branch that a rank did not take has no range there, and yet every rank must take part.
        ranges = torch.stack([q.range for q in quantizers])
        known = ~ranges.isnan()
        total, share = average(torch.stack([ranges.where(known, 0.0), known.to(ranges.dtype)]))
        for quantizer, mean in zip(quantizers, total / share, strict=True):
            if not mean.isnan().any():
                quantizer.range.copy_(mean)
                quantizer.update_scale()
                quantizer.observed = True
    learned = quantization.parameters()
    if learned:
        flat = average(torch.cat([p.detach().flatten() for p in learned]))
        for parameter, mean in zip(learned, flat.split([p.numel() for p in learned]), strict=True):
            parameter.data.copy_(mean.reshape(parameter.shape))
