"""Attach quantization to a model and take it off again: the plain-loop interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.candidates import Use, weights
from lightning_compress.quantization.layers import (
    ActivationHook,
    ActivationQuantizer,
    Switch,
    WeightHook,
    WeightQuantizer,
)
from lightning_compress.quantization.learned_quantizers import (
    LearnedActivationQuantizer,
    LearnedWeightQuantizer,
)
from lightning_compress.quantization.placement import Placement, Site, place
from lightning_compress.quantization.recording import Tape, recording
from lightning_compress.quantization.spec import QuantizationSettings
from lightning_compress.targets import select

_ATTRIBUTE = "_lightning_compress_quantization"


class Quantization:
    """All quantizers of one model.

    Attributes:
        settings: What was asked for.
        layers: Weight's full name → its quantizer.
        activations: Site name → its quantizer; empty until the model was recorded.
        placement: Where the activation quantizers sit; ``None`` until the model was recorded.
    """

    def __init__(self, model: nn.Module, settings: QuantizationSettings) -> None:
        self.settings = settings
        self.layers: dict[str, WeightQuantizer] = {}
        self.activations: dict[str, ActivationQuantizer] = {}
        self.placement: Placement | None = None
        self._model = model
        self._switch = Switch(model)
        self._switch.momentum = settings.momentum
        self._switch.observe_every = settings.observe_every
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._input_bits: dict[str, int | None] = {}
        self._attach_weights()

    @property
    def root(self) -> nn.Module:
        """The module that was prepared: all names are relative to it."""
        return self._model

    def names_in(self, model: nn.Module) -> dict[str, str]:
        """Weight's name here → its name in a module that holds the root, or that is a part of it."""
        relative = {id(parameter): name for name, parameter in model.named_parameters()}
        return {
            name: relative[id(quantizer.weight)]
            for name, quantizer in self.layers.items()
            if id(quantizer.weight) in relative
        }

    @property
    def enabled(self) -> bool:
        """Whether the quantizers act; when not, the model runs in float."""
        return self._switch.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._switch.enabled = enabled

    @property
    def frozen(self) -> bool:
        """Whether the ranges of activations are kept as they are."""
        return self._switch.frozen

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        self._switch.frozen = frozen

    @property
    def layer_input(self) -> Mapping[str, str]:
        """Weight's full name → site of the quantizer that its layer's input passes."""
        return self.placement.layer_input if self.placement else {}

    @property
    def unreached(self) -> list[str]:
        """What stays float although the backend could run it in integers, with the reason."""
        return list(self.placement.unreached) if self.placement else []

    @property
    def needs_recording(self) -> bool:
        """Whether activations are asked for and the model was not recorded yet."""
        return self.placement is None and any(bits is not None for bits in self._input_bits.values())

    def record(self, example_inputs: Any) -> None:
        """Place the activation quantizers by one forward in eval mode.

        Args:
            example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments.
        """
        args, kwargs = call_arguments(example_inputs)
        enabled, self.enabled = self.enabled, False
        training = {module: module.training for module in self._model.modules()}
        self._model.eval()
        try:
            with torch.no_grad(), recording(self._model) as tape:
                self._model(*args, **kwargs)
        finally:
            for module, mode in training.items():
                module.training = mode
            self.enabled = enabled
        self.place(tape)

    def place(self, tape: Tape) -> None:
        """Place the activation quantizers by a forward that was recorded already."""
        self._attach_activations(
            place(
                tape,
                self._model,
                layer_bits=self._input_bits,
                bits=self.settings.activation_bits,
                backend=self.settings.backend,
            )
        )

    def _attach_weights(self) -> None:
        settings = self.settings
        selected = select(
            weights(self._model),
            targets=settings.targets,
            ignore=settings.ignore,
            overrides=settings.overrides,
            field=settings.field,
        )
        if not selected:
            raise CompressionError(
                f"{settings.field}: nothing to quantize: {type(self._model).__name__} has no Conv or Linear layer that "
                f"the targets select."
            )
        reads: dict[nn.Module, list[tuple[WeightQuantizer, Use]]] = {}
        for selection in selected:
            weight = selection.value
            spec = settings.weight_spec(selection.overrides)
            self._input_bits[weight.name] = selection.overrides.get("activation_bits", settings.activation_bits)
            if spec is None:
                continue
            learned = spec.range == "learned"
            quantizer = LearnedWeightQuantizer(weight, spec, self._switch) if learned else WeightQuantizer(weight, spec)
            self.layers[weight.name] = quantizer
            for use in weight.uses:
                reads.setdefault(use.host, []).append((quantizer, use))
        for host, uses in reads.items():
            host.__dict__[_ATTRIBUTE] = self
            hook = WeightHook(uses, self._switch)
            self._handles.append(host.register_forward_pre_hook(hook.enter))
            self._handles.append(host.register_forward_hook(hook.leave, always_call=True))

    def _attach_activations(self, placement: Placement) -> None:
        if self.placement is not None:
            raise CompressionError("The model was recorded already: strip(model) before preparing it again.")
        modules = dict(self._model.named_modules())
        self.placement = placement
        for site in placement.sites:
            kind = LearnedActivationQuantizer if self.settings.range == "learned" else ActivationQuantizer
            quantizer = kind(site.name, self.settings.activation_spec(site.bits), self._switch)
            self.activations[site.name] = quantizer
            self._hook(site, quantizer, modules)

    def _hook(self, site: Site, quantizer: ActivationQuantizer, modules: dict[str, nn.Module]) -> None:
        for boundary in site.boundaries:
            if boundary.module not in modules:
                raise CompressionError(
                    f"The activation quantizer {site.name!r} belongs to module {boundary.module!r}, which this model "
                    f"does not have. Load it into the architecture that it was trained with."
                )
            module = modules[boundary.module]
            module.__dict__[_ATTRIBUTE] = self
            hook = ActivationHook(quantizer, boundary, self._switch)
            if boundary.side == "input":
                self._handles.append(module.register_forward_pre_hook(hook.enter, with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(hook.leave))

    def parameters(self) -> list[nn.Parameter]:
        """Learned scales and offsets, for an optimizer of their own; empty unless ``range="learned"``."""
        return [
            parameter
            for quantizer in (*self.layers.values(), *self.activations.values())
            if isinstance(quantizer, LearnedWeightQuantizer | LearnedActivationQuantizer)
            for parameter in quantizer.parameters()
        ]

    def synchronize(self) -> None:
        """Bring every ``scale`` and ``zero_point`` to what an optimizer made of ``parameters()``."""
        for quantizer in self.activations.values():
            if isinstance(quantizer, LearnedActivationQuantizer) and quantizer.observed:
                quantizer.synchronize()

    def detach(self) -> None:
        """Remove every hook and mark."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module in self._model.modules():
            module.__dict__.pop(_ATTRIBUTE, None)

    def state_dict(self) -> dict[str, Any]:
        """Settings, placement, ranges and scales: tensors and primitives only."""
        return {
            "settings": self.settings.as_dict(),
            "enabled": self.enabled,
            "frozen": self.frozen,
            "placement": None if self.placement is None else self.placement.as_dict(),
            "activations": {name: q.state_dict() for name, q in self.activations.items()},
            "weight_scales": {name: q.scale().cpu().clone() for name, q in self.layers.items()},
            "weight_steps": {
                name: q.state_dict() for name, q in self.layers.items() if isinstance(q, LearnedWeightQuantizer)
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over placement, ranges and phase from ``state_dict``; weights find their own scales again.

        Raises:
            CompressionError: The state is of other settings, or of another model.
        """
        ours = self.settings.as_dict()
        differences = [
            f"{key} was {state['settings'].get(key)!r}, is {value!r}"
            for key, value in ours.items()
            if state["settings"].get(key) != value
        ]
        if differences:
            raise CompressionError(
                f"{self.settings.field}: the saved quantization was made with other settings: "
                f"{'; '.join(differences)}. Resume with the settings that the run was started with."
            )
        if state["placement"] is not None and self.placement is None:
            self._attach_activations(Placement.from_dict(state["placement"]))
        for name, quantizer in self.activations.items():
            quantizer.load_state_dict(state["activations"][name])
        for name, layer in self.layers.items():
            if isinstance(layer, LearnedWeightQuantizer) and name in state.get("weight_steps", {}):
                layer.load_state_dict(state["weight_steps"][name])
        self.enabled = state["enabled"]
        self.frozen = state["frozen"]


def prepare(model: nn.Module, *, example_inputs: Any = None, **settings: Any) -> nn.Module:
    """Attach quantization-aware training to a model, in place.

    From here on every training forward fake-quantizes weights and activations and learns the ranges; the model's
    class, Parameters and ``state_dict`` keys stay as they are. ``find(model)`` gives the quantizers.

    Args:
        model: The model.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments for one forward, which is
            recorded to place the activation quantizers. Needed unless ``activation_bits`` is ``None``.
        **settings: The fields of ``QuantizationSettings``.

    Returns:
        The same model.

    Raises:
        CompressionError: A setting is not allowed, nothing can be quantized, or the model is prepared already.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> net = prepare(net, weight_bits=8, activation_bits=8, example_inputs=torch.randn(1, 4))
        >>> sorted(find(net).activations)
        ['0:input[0]', '1:output']
    """
    quantization = install(model, QuantizationSettings(**settings))
    if example_inputs is not None:
        try:
            quantization.record(example_inputs)
        except BaseException:
            strip(model)
            raise
    elif quantization.needs_recording:
        strip(model)
        raise CompressionError.field(
            f"{quantization.settings.field}.example_inputs",
            expected="inputs for one forward, to find where activations are quantized",
            got=None,
            fix="Give example_inputs=..., or activation_bits=None to quantize weights alone.",
        )
    return model


def install(model: nn.Module, settings: QuantizationSettings) -> Quantization:
    """Attach the weight quantizers; activations follow with ``record``, ``place`` or ``load_state_dict``."""
    if find(model) is not None:
        raise CompressionError(
            f"{settings.field}: {type(model).__name__} is quantized already: strip(model) before preparing it again."
        )
    quantization = Quantization(model, settings)
    model.__dict__[_ATTRIBUTE] = quantization
    return quantization


def attach(model: nn.Module, state: Mapping[str, Any]) -> Quantization:
    """Attach the quantization that ``Quantization.state_dict`` described, with its weight scales fixed.

    For weights that lie on their grid already (loaded artifacts): quantizing again changes nothing.
    """
    settings = QuantizationSettings(**state["settings"])
    quantization = install(model, settings)
    quantization.load_state_dict(state)
    for name, scale in state["weight_scales"].items():
        quantization.layers[name].fixed_scale = scale
    return quantization


def find(model: nn.Module) -> Quantization | None:
    """The quantization attached to a model, to one of its submodules, or to what it is a part of, if any."""
    for module in model.modules():
        if _ATTRIBUTE in module.__dict__:
            return module.__dict__[_ATTRIBUTE]
    return None


def strip(model: nn.Module) -> nn.Module:
    """Remove every trace of quantization, in place; the weights stay the float ones.

    Returns:
        The same model.
    """
    while (quantization := find(model)) is not None:
        quantization.detach()
    return model


def call_arguments(example_inputs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Split example inputs into positional and keyword arguments.

    Example:
        >>> call_arguments({"x": 1})
        ((), {'x': 1})
    """
    if isinstance(example_inputs, dict):
        return (), example_inputs
    if isinstance(example_inputs, tuple | list):
        if len(example_inputs) and isinstance(example_inputs[-1], dict):
            return tuple(example_inputs[:-1]), example_inputs[-1]
        return tuple(example_inputs), {}
    return (example_inputs,), {}
