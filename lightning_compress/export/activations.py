"""Activations of a model at every activation quantizer, in execution order, as one side of a comparison."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.foundation.boundary import watch
from lightning_compress.foundation.nested import tensors
from lightning_compress.quantization import find


@dataclass(frozen=True)
class Activation:
    """A tensor that an activation quantizer has rounded.

    Attributes:
        name: Name of the quantizer, or of the tensor in a file.
        value: The tensor, dequantized.
        grid: Scale and zero point.
        layers: Layers that made it from the activations before it, where that is known.
        channels_last: Whether the kernels may have put its channels last.
    """

    name: str
    value: Tensor
    grid: tuple[float, int]
    layers: tuple[str, ...] = ()
    channels_last: bool = False


@dataclass(frozen=True)
class Activations:
    """All of one call.

    Attributes:
        quantized: What the activation quantizers gave.
        outputs: Tensors among the results.
        last: Layers that made the outputs from the last quantized activations, where that is known.
    """

    quantized: list[Activation]
    outputs: list[Tensor]
    last: tuple[str, ...] = ()


def activations_of(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Activations:
    """Run a model, and keep what its activation quantizers give."""
    seen: list[Activation] = []
    with _watched(model, seen), torch.no_grad():
        outputs = model(*copy.deepcopy(tuple(args)), **copy.deepcopy(kwargs))
    return Activations(seen, [tensor for _, tensor in tensors(outputs)])


@contextmanager
def _watched(model: nn.Module, seen: list[Activation]) -> Iterator[None]:
    """Note what leaves every activation quantizer; hooks added now come after the quantizers' own."""
    quantization = find(model)
    placement = None if quantization is None else quantization.placement
    handles = []
    if quantization is not None and placement is not None and quantization.enabled:
        modules = dict(quantization.root.named_modules())
        for site in placement.sites:
            quantizer = quantization.activations[site.name]
            grid = (float(quantizer.scale), int(quantizer.zero_point))
            for boundary in site.boundaries:
                note = _Note(site.name, grid, seen)
                # Inside of attention one function stands for the weights: this one takes the quantizer's place there.
                step = note if boundary.side != "weights" else _Both(quantizer, note)
                handles.append(watch(modules[boundary.module], boundary, [boundary.path], step))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Note:
    name: str
    grid: tuple[float, int]
    seen: list[Activation]

    def __call__(self, value: Tensor) -> Tensor:
        if value.is_floating_point():
            # Operations after the quantizer may work in place.
            self.seen.append(Activation(self.name, value.detach().clone(), self.grid))
        return value


@dataclass(frozen=True)
class _Both:
    first: Callable[[Tensor], Tensor]
    then: Callable[[Tensor], Tensor]

    def __call__(self, value: Tensor) -> Tensor:
        return self.then(self.first(value))
