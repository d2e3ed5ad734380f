"""Multiply-accumulates of one forward, by weight."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lightning_compress.foundation.example_inputs import call_arguments, evaluating
from lightning_compress.foundation.nested import mapped
from lightning_compress.quantization import find


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward.

    Attributes:
        layers: Weight's full name → multiply-accumulates in which it takes part.
        products: Those between two activations, as in attention.
    """

    layers: Mapping[str, int]
    products: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.layers.values()) + self.products


def count_macs(model: nn.Module, example_inputs: Any) -> Macs:
    """Count multiply-accumulates by one forward in eval mode, in float, without gradients.

    Convolutions (transposed ones too), linear layers, recurrent layers, the projections of
    ``nn.MultiheadAttention``, matrix products and scaled dot-product attention are seen, however they are called,
    since they are counted below the modules: PyTorch's own formulas (``torch.utils.flop_counter``) on the operators
    that really run, told apart by the memory of the weight that they read. Zero weights are counted like others.

    Args:
        model: The model; its quantizers are switched off for the count.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments. Give one sample to get
            multiply-accumulates per sample.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 32, 32)).layers
        {'weight': 221184}
    """
    counter = _Counter(model)
    args, kwargs = call_arguments(_like(model, example_inputs), model.forward)
    with _plain(model), torch.inference_mode(False), torch.no_grad(), counter:
        model(*args, **kwargs)
    return Macs(dict(counter.layers), counter.products)


class _Counter(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers: Counter[str] = Counter()
        self.products = 0
        parameters = sorted((p.data_ptr(), name, p) for name, p in model.named_parameters() if p.ndim >= 2)
        self._starts = [start for start, _, _ in parameters]
        self._ends = [start + p.numel() * p.element_size() for start, _, p in parameters]
        self._names = [name for _, name, _ in parameters]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            # The only attention kernel for which PyTorch registers no formula.
            query, key, value = args[:3]
            self.products += query.numel() * key.shape[-2] + query.shape[:-1].numel() * value.shape[-2:].numel()
        elif packet in flop_registry:
            self._add(args, flop_registry[packet](*args, **kwargs, out_val=result) // 2)
        return result

    def _add(self, args: tuple[Any, ...], macs: int) -> None:
        for operand in args:
            if isinstance(operand, Tensor) and operand.ndim >= 2 and (name := self._parameter(operand)) is not None:
                self.layers[name] += macs
                return
        self.products += macs

    def _parameter(self, operand: Tensor) -> str | None:
        """The parameter in whose memory a tensor lies: transposed and sliced weights are views of it."""
        index = bisect_right(self._starts, operand.data_ptr()) - 1
        return self._names[index] if index >= 0 and operand.data_ptr() < self._ends[index] else None


@contextmanager
def _plain(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode and float, without the fused kernels that hide what they compute."""
    quantization = find(model)
    enabled = quantization is not None and quantization.enabled
    fastpath = torch.backends.mha.get_fastpath_enabled()
    backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    libraries = [(backend, backend.enabled) for backend in backends]
    if quantization is not None:
        quantization.enabled = False
    torch.backends.mha.set_fastpath_enabled(False)
    for library, _ in libraries:
        library.enabled = False
    try:
        with evaluating(model):
            yield
    finally:
        for library, was_enabled in libraries:
            library.enabled = was_enabled
        torch.backends.mha.set_fastpath_enabled(fastpath)
        if quantization is not None:
            quantization.enabled = enabled


def _like(model: nn.Module, example_inputs: Any) -> Any:
    """Bring inputs to the device and the precision of the model."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return example_inputs
    device, dtype = parameter.device, parameter.dtype
    return mapped(example_inputs, lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype))
