"""One row per parameter of a model: as monitor, report and command line show it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_compress.metrics.macs import Macs, count_macs
from lightning_compress.pruning.candidates import candidates
from lightning_compress.quantization import Quantization, find
from lightning_compress.quantization.fake_quantize import reference as eager
from lightning_compress.quantization.fake_quantize.scale_shapes import spread_scale
from lightning_compress.quantization.quantizers.weight import WeightQuantizer

if TYPE_CHECKING:
    from lightning_compress.pruning import Pruner

_SAMPLE = 65_536
_SYMBOLS = 512


@dataclass(frozen=True)
class LayerRow:
    """One parameter.

    Attributes:
        name: Full name.
        module_type: Class of the module that holds it.
        shape: Its shape.
        numel: Number of entries.
        zeros: How many of them are zero now.
        sparsity_target: Share of zeros that the pruner asks for now; ``None`` if it is not pruned.
        weight_bits: Bits of one entry; those of its floating-point type unless quantizers act on it.
        activation_bits: Bits of the input of its layer; 32 if float.
        macs: Multiply-accumulates of one forward in which it takes part; ``None`` if they were not counted.
        pattern: Pattern of the pruning; ``"none"`` if it is not pruned.
        weight: Whether it is the weight of a layer, in contrast to biases, norms and embeddings.
        entropy: Bits that one entry of a layer's weight takes when entropy coded, zeros included; else ``None``.
        dead_channels: Output channels without any weight left, of those that are pruned.
    """

    name: str
    module_type: str
    shape: tuple[int, ...]
    numel: int
    zeros: int
    sparsity_target: float | None = None
    weight_bits: int = 32
    activation_bits: int = 32
    macs: int | None = None
    pattern: str = "none"
    weight: bool = True
    entropy: float | None = None
    dead_channels: int = 0

    @property
    def sparsity(self) -> float:
        """Share of zeros, from 0 to 1."""
        return self.zeros / self.numel if self.numel else 0.0


def describe(
    model: nn.Module, *, pruner: Pruner | None = None, example_inputs: Any = None, macs: Macs | None = None
) -> list[LayerRow]:
    """Describe every parameter with at least one dimension, tied ones once.

    Zeros are counted where the weights lie and fetched together, so a GPU is waited for once.

    Args:
        model: The model, quantized or not.
        pruner: Its pruner, for targets and patterns.
        example_inputs: Inputs of one forward, to count multiply-accumulates; they are left out without.
        macs: Multiply-accumulates counted before, instead of ``example_inputs``.

    Example:
        >>> [(row.name, row.numel, row.weight) for row in describe(nn.Linear(4, 2))]
        [('weight', 8, True), ('bias', 2, False)]
    """
    if macs is None and example_inputs is not None:
        macs = count_macs(model, example_inputs)
    quantization = find(model)
    if quantization is not None and not quantization.enabled:
        quantization = None
    names = {} if quantization is None else quantization.weights.names_in(model)
    quantizers = {} if quantization is None else {new: quantization.layers[old] for old, new in names.items()}
    inputs = {} if quantization is None else _input_bits(quantization, names)
    targets = {} if pruner is None else pruner.layer_sparsity_target()
    patterns = {} if pruner is None else pruner.patterns
    dead = {} if pruner is None else pruner.dead_channels()
    layer_weights = {candidate.names[0] for candidate in candidates(model) if candidate.default}
    modules = dict(model.named_modules())
    parameters = {name: p for name, p in model.named_parameters() if p.ndim >= 1}
    zeros = count_zeros(list(parameters.values()))
    coded = entropies(
        {name: p for name, p in parameters.items() if name in layer_weights},
        quantizers,
    )
    return [
        LayerRow(
            name=name,
            module_type=type(modules[name.rpartition(".")[0]]).__name__,
            shape=tuple(parameter.shape),
            numel=parameter.numel(),
            zeros=zeros[index],
            sparsity_target=targets.get(name),
            weight_bits=quantizers[name].spec.bits if name in quantizers else parameter.element_size() * 8,
            activation_bits=inputs.get(name, 32),
            macs=None if macs is None else macs.layers.get(name, 0),
            pattern=patterns.get(name, "none"),
            weight=name in layer_weights or name in targets,
            entropy=coded.get(name),
            dead_channels=dead.get(name, 0),
        )
        for index, (name, parameter) in enumerate(parameters.items())
    ]


def count_zeros(tensors: list[Tensor]) -> list[int]:
    """How many entries of each tensor are zero, fetched from the device in one transfer.

    Example:
        >>> count_zeros([torch.tensor([0.0, 1.0, -0.0]), torch.ones(2)])
        [2, 0]
    """
    if not tensors:
        return []
    nonzeros = [torch.count_nonzero(tensor.detach()) for tensor in tensors]
    counts = torch.stack([count.to(nonzeros[0].device, non_blocking=True) for count in nonzeros]).tolist()
    return [tensor.numel() - count for tensor, count in zip(tensors, counts, strict=True)]


def entropies(weights: Mapping[str, Tensor], quantizers: Mapping[str, WeightQuantizer]) -> dict[str, float]:
    """What one entry of each weight takes, in bits, when it is entropy coded by itself (Shannon 1948).

    A quantized weight takes the entropy of its integers, and its share of the float32 scales. A float takes that of its
    sign and exponent, which training leaves far from uniform, and its mantissa unless it is zero. Of large weights a
    part is looked at.

    Args:
        weights: Name → weight.
        quantizers: Name → quantizer, for those that are quantized.
    """
    if not weights:
        return {}
    histograms = [
        _integer_histogram(quantizers[name]) if name in quantizers else _float_histogram(weight)
        for name, weight in weights.items()
    ]
    counts = torch.stack([histogram.to(histograms[0].device) for histogram in histograms]).cpu().double()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    found = torch.special.entr(shares).sum(1) / math.log(2)
    zeros = shares[:, 0].tolist()
    return {
        name: bits + (_scale_bits(quantizers[name]) if name in quantizers else _mantissa_bits(weight) * (1 - zero))
        for (name, weight), bits, zero in zip(weights.items(), found.tolist(), zeros, strict=True)
    }


def _integer_histogram(quantizer: WeightQuantizer) -> Tensor:
    """How often each integer from -127 to 127 occurs: int64, ``[512]``; integer i at i mod 256."""
    weight, scale, axis = quantizer.weight.detach(), quantizer.scale(), quantizer.channel_axis
    channels = weight.shape[axis]
    chosen = torch.arange(0, channels, max(1, min(channels, weight.numel() // _SAMPLE)), device=weight.device)
    if quantizer.axis is not None:
        scale = scale.index_select(0, chosen)
    sample = weight.index_select(axis, chosen)
    wide = spread_scale(scale, sample.shape, quantizer.axis, quantizer.spec.group_size)
    # Diverged weights are the loss's to report: here NaN counts as zero.
    qmax = quantizer.spec.qmax
    integers = eager.integers(sample.nan_to_num(), wide, None, -qmax, qmax)
    return torch.bincount(integers.flatten().long() & 0xFF, minlength=_SYMBOLS)


def _float_histogram(weight: Tensor) -> Tensor:
    """How often each sign with each exponent occurs: int64, ``[512]``; zeros and what is next to them at 0."""
    flat = weight.detach().reshape(-1)
    step = max(1, flat.numel() // _SAMPLE)
    # No divisor of a row or a kernel, of which the same place would be read every time.
    while math.gcd(step, flat.numel()) > 1:
        step += 1
    # Adding zero leaves one of the two zeros.
    sample = flat[::step].to(torch.float32, copy=True) + 0.0
    return torch.bincount((sample.view(torch.int32) >> 23).long() & 0x1FF, minlength=_SYMBOLS)


def _scale_bits(quantizer: WeightQuantizer) -> float:
    weight, group = quantizer.weight, quantizer.spec.group_size
    channels = 1 if quantizer.axis is None else weight.shape[quantizer.axis]
    groups = 1 if group is None else math.ceil(weight.numel() / channels / group)
    return 32 * channels * groups / weight.numel()


def _mantissa_bits(weight: Tensor) -> int:
    return -round(math.log2(torch.finfo(weight.dtype).eps))


def _input_bits(quantization: Quantization, names: Mapping[str, str]) -> dict[str, int]:
    """Weight's name in the described model → bits of its layer's input."""
    return {
        names[name]: quantization.activations[site].bits
        for name, site in quantization.layer_input.items()
        if name in names
    }
