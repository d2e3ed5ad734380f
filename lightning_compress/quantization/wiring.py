"""Quantizers by their settings, and the hooks and marks through which they act on a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.boundary import Boundary
from lightning_compress.foundation.function_calls import CallHandle, on_call
from lightning_compress.quantization.candidates import Use, Weight
from lightning_compress.quantization.placement.sites import Site
from lightning_compress.quantization.quantizers.activation import ActivationQuantizer
from lightning_compress.quantization.quantizers.attention import SeparateProjections
from lightning_compress.quantization.quantizers.bias import BiasShadow, fits
from lightning_compress.quantization.quantizers.computed import ComputedWeight
from lightning_compress.quantization.quantizers.hooks import ActivationHook, ClipForward, Unnested
from lightning_compress.quantization.quantizers.learned import LearnedActivationQuantizer, LearnedWeightQuantizer
from lightning_compress.quantization.quantizers.searched import SearchedWeightQuantizer
from lightning_compress.quantization.quantizers.switch import Switch
from lightning_compress.quantization.quantizers.weight import WeightQuantizer, WeightShadows
from lightning_compress.quantization.settings import ActivationSpec, WeightSpec

ATTRIBUTE = "_lightning_compress_quantization"
"""Under this key of its ``__dict__`` a module holds what is attached to it."""

Handle = torch.utils.hooks.RemovableHandle | CallHandle | ClipForward | SeparateProjections | Unnested


def weight_quantizer(weight: Weight, spec: WeightSpec, switch: Switch) -> WeightQuantizer:
    """The quantizer of a weight by how its range is found."""
    if spec.range == "learned":
        return LearnedWeightQuantizer(weight, spec, switch)
    if spec.range == "minmax":
        return WeightQuantizer(weight, spec)
    return SearchedWeightQuantizer(weight, spec, switch)


def activation_quantizer(
    name: str, spec: ActivationSpec, switch: Switch, device: torch.device | None = None
) -> ActivationQuantizer:
    """The quantizer of an activation by how its range is found, on a device; it moves to its first tensor."""
    kind = LearnedActivationQuantizer if spec.range == "learned" else ActivationQuantizer
    return kind(name, spec, switch, device)


def bias_shadows(
    weight: WeightQuantizer, activation: ActivationQuantizer, norm: nn.Module | None, switch: Switch
) -> Iterator[BiasShadow]:
    """What lets the biases of an integer layer be in evaluation what they are in a file.

    Args:
        weight: Quantizer of the layer's weight.
        activation: Quantizer of its input.
        norm: The batch norm that is folded into the layer.
        switch: What the model's quantizers share.
    """
    if weight.spec.group_size is not None:
        return
    scales = None if weight.axis is None else weight.weight.shape[weight.axis]
    for use in weight.uses:
        bias = use.owner._parameters.get(use.bias) if use.bias is not None else None
        if norm is not None or (bias is not None and fits(bias, scales)):
            yield BiasShadow(weight, activation, use, norm, switch)


class Wiring:
    """The hooks of one model's quantizers, and a mark on each module that has one.

    Args:
        model: The model.
        switch: What its quantizers share.
        owner: What a marked module holds.
    """

    def __init__(self, model: nn.Module, switch: Switch, owner: object) -> None:
        self._model, self._switch, self._owner = model, switch, owner
        self._handles: list[Handle] = []
        self._shadows: list[WeightShadows] = []

    def keep(self, handles: Iterable[Handle]) -> None:
        """Keep what is to be removed with the quantizers."""
        self._handles += handles

    def weights(self, reads: Sequence[tuple[WeightQuantizer, Use]]) -> None:
        """Show each module the quantized weights that its forward reads."""
        by_host: dict[nn.Module, list[tuple[WeightQuantizer, Use]]] = {}
        for quantizer, use in reads:
            by_host.setdefault(use.host, []).append((quantizer, use))
        for host, uses in by_host.items():
            self._mark(host)
            if isinstance(host, nn.MultiheadAttention) and SeparateProjections.serves(host):
                self.keep([SeparateProjections(host)])
            self._shadows.append(WeightShadows(uses, self._switch))
            self.keep(self._shadows[-1].attach(host))

    def release(self, quantizer: WeightQuantizer) -> None:
        """Let modules read the float weight of a quantizer again."""
        for shadows in self._shadows:
            shadows.release(quantizer)

    def computed(self, weight: ComputedWeight) -> None:
        """Quantize a computed weight where its module hands it to a function."""
        self._mark(weight.module)
        self.keep([on_call(weight.module, weight.hook())])

    def unnest(self) -> None:
        """Keep transformer encoders from nested tensors, which no quantizer takes."""
        self.keep(Unnested(module) for module in self._model.modules() if isinstance(module, nn.TransformerEncoder))

    def activations(
        self, sites: Iterable[Site], quantizers: Mapping[str, ActivationQuantizer], *, functions: bool
    ) -> None:
        """Let activation quantizers act at their sites.

        Args:
            sites: The sites.
            quantizers: Site's name → its quantizer.
            functions: Whether to serve the places at functions that modules call, or those at modules.

        Raises:
            CompressionError: The model has no module of that name.
        """
        modules = dict(self._model.named_modules())
        for site in sites:
            for at, paths in site.places.items():
                if at.module not in modules:
                    raise CompressionError(
                        f"The activation quantizer {site.name!r} belongs to module {at.module!r}, which this model "
                        f"does not have. Load it into the architecture that it was trained with."
                    )
                if bool(at.function) == functions:
                    self._mark(modules[at.module])
                    hook = ActivationHook(quantizers[site.name], paths, self._switch)
                    self.keep(_hooked(modules[at.module], at, hook))

    def bias(self, shadow: BiasShadow) -> None:
        """Let the bias of an integer layer be rounded in evaluation."""
        self._mark(shadow.host)
        self.keep(shadow.attach(shadow.host))

    def remove(self) -> None:
        """Remove every hook and mark."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module in self._model.modules():
            module.__dict__.pop(ATTRIBUTE, None)

    def _mark(self, module: nn.Module) -> None:
        module.__dict__[ATTRIBUTE] = self._owner


def _hooked(module: nn.Module, place: Boundary, hook: ActivationHook) -> Iterator[Handle]:
    """Let a quantizer act at a boundary of a module; gives what takes it off again."""
    if place.function:
        yield on_call(module, hook.at_call(place))
    elif place.side == "input":
        yield module.register_forward_pre_hook(hook.enter, with_kwargs=True)
    else:
        yield module.register_forward_hook(hook.leave)
        if ClipForward.serves(module):
            yield ClipForward(module, hook)
