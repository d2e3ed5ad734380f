"""The weights that a plan may compress, and what compressing one of them does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.metrics.layer_table import entropies
from lightning_compress.pruning.candidates import choose
from lightning_compress.pruning.masks import apply_masks
from lightning_compress.pruning.patterns import Channel, NOfM, Pattern
from lightning_compress.pruning.prunable import Site
from lightning_compress.pruning.ranking.together import Job, prune_together
from lightning_compress.pruning.settings import Settings
from lightning_compress.quantization.candidates import Weight, weights
from lightning_compress.quantization.quantizers.weight import WeightQuantizer
from lightning_compress.quantization.settings import QuantizationSettings, WeightSpec
from lightning_compress.targets import select


@dataclass(frozen=True)
class Place:
    """A weight, and the settings among which one is chosen.

    Attributes:
        name: Full name of the parameter.
        parameter: The parameter.
        pattern: What is pruned as one.
        sparsities: Shares of zeros to choose from.
        weight: What to quantize; ``None`` if it stays float.
        spec: How, but for the bits.
        bits: Bit widths to choose from; ``None`` is float.
    """

    name: str
    parameter: nn.Parameter
    pattern: Pattern
    sparsities: tuple[float, ...]
    weight: Weight | None
    spec: WeightSpec | None
    bits: tuple[int | None, ...]


@dataclass(frozen=True)
class Change:
    """What compressing a weight does.

    Attributes:
        bytes: What the packed file takes for it, from the entropy of its integers or floats, and its scales.
        distance: Squared Euclidean distance that it moves.
    """

    bytes: float
    distance: float


def places(
    model: nn.Module,
    pruning: Settings | None,
    quantization: QuantizationSettings | None,
    sparsities: Sequence[float],
    bits: Sequence[int],
) -> list[Place]:
    """The weights that the settings would compress, in the model's order.

    A layer that the settings' ``overrides`` give a sparsity or bits of its own keeps them.

    Args:
        model: The model.
        pruning: Settings of the pruning; ``None`` prunes nothing.
        quantization: Settings of the quantization; ``None`` quantizes nothing.
        sparsities: Shares of zeros to choose from.
        bits: Bit widths to choose from.

    Raises:
        CompressionError: The settings name what is not there, or a pattern for which no sparsity can be chosen.
    """
    pruned: dict[nn.Parameter, tuple[str, Pattern, tuple[float, ...]]] = {}
    if pruning is not None:
        for selected in choose(model, pruning):
            pattern: Pattern = selected.overrides.get("pattern", pruning.pattern)
            if isinstance(pattern, Channel | NOfM):
                raise CompressionError.field(
                    f"{pruning.field}.pattern",
                    expected="'unstructured' or blocks, whose sparsity advise can choose",
                    got=pattern.text,
                    fix="Add pruning=none to choose bits alone.",
                )
            own = selected.overrides.get("final_sparsity")
            fits = pattern.refusal(selected.value.shape) is None
            options = (own,) if own is not None else tuple(sparsities) if fits else (0.0,)
            pruned[selected.value] = (selected.name, pattern, options)
    quantized: dict[nn.Parameter, tuple[Weight, WeightSpec, tuple[int | None, ...]]] = {}
    if quantization is not None:
        for chosen in select(
            weights(model),
            targets=quantization.targets,
            ignore=quantization.ignore,
            overrides=quantization.overrides,
            field=quantization.field,
        ):
            spec = quantization.weight_spec(chosen.overrides)
            if spec is not None:
                own_bits = (spec.bits,) if "weight_bits" in chosen.overrides else tuple(bits)
                use = chosen.value.uses[0]
                quantized[getattr(use.owner, use.attribute)] = (chosen.value, spec, own_bits)
    found = []
    for name, parameter in model.named_parameters():
        if parameter in pruned or parameter in quantized:
            _, pattern, shares = pruned.get(parameter, (name, Pattern(), (0.0,)))
            weight, how, widths = quantized.get(parameter, (None, None, (None,)))
            found.append(Place(name, parameter, pattern, shares, weight, how, widths))
    return found


@contextlib.contextmanager
def compressed(place: Place, sparsity: float, bits: int | None) -> Iterator[Change]:
    """Compress one weight in place, and restore it to the bit.

    It is pruned by magnitude and quantized with the range that its settings name, as in training.

    Args:
        place: The weight.
        sparsity: Share of zeros.
        bits: Bits of its integers; ``None`` leaves it float.
    """
    weight = place.parameter.detach()
    kept = weight.clone()
    try:
        with torch.no_grad():
            _prune(place, sparsity)
            quantizer = None if bits is None else quantizer_of(place, bits)
            per_entry = entropies({place.name: weight}, {} if quantizer is None else {place.name: quantizer})
            if quantizer is not None:
                weight.copy_(quantizer.fake_quantize())
            distance = float((weight.double() - kept.double()).square().sum())
        yield Change(per_entry[place.name] * weight.numel() / 8, distance)
    finally:
        weight.copy_(kept)


@contextlib.contextmanager
def all_compressed(
    chosen: Mapping[str, tuple[float, int | None]], among: Sequence[Place]
) -> Iterator[dict[str, Change]]:
    """Compress several weights together; see ``compressed``.

    Args:
        chosen: Weight's name → its sparsity and bits.
        among: Where the weights are.
    """
    with contextlib.ExitStack() as stack:
        yield {p.name: stack.enter_context(compressed(p, *chosen[p.name])) for p in among if p.name in chosen}


def quantizer_of(place: Place, bits: int) -> WeightQuantizer:
    """A quantizer of the weight as it is."""
    if place.weight is None or place.spec is None:
        raise CompressionError.field(f"advise: bits of {place.name}", expected="None, as it stays float", got=bits)
    # LSQ starts from the range of least squared error.
    how = "mse" if place.spec.range == "learned" else place.spec.range
    return WeightQuantizer(place.weight, WeightSpec(bits, place.spec.granularity, how))


def _prune(place: Place, sparsity: float) -> None:
    if not sparsity:
        return
    site = Site.of(place.name, place.parameter, place.pattern, initial=0.0, final=sparsity, floor=0.0, own=True)
    scores = place.parameter.detach().abs()
    prune_together([Job([site], [scores], round(sparsity * site.units))], "advise")
    apply_masks([place.parameter.detach()], [site.mask])
