"""All quantizers of one model: made from settings, placed by a recorded forward, saved and restored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.example_inputs import call_arguments, evaluating
from lightning_compress.foundation.recorded_forward import Tape, recording
from lightning_compress.foundation.settings_diff import differences
from lightning_compress.quantization import wiring
from lightning_compress.quantization.late_layers import LateLayers, addition, merged, ran
from lightning_compress.quantization.layer_bits import LayerBits
from lightning_compress.quantization.placement.first_last import recorded_ends
from lightning_compress.quantization.placement.place import place
from lightning_compress.quantization.placement.sites import Placement
from lightning_compress.quantization.quantized_weights import QuantizedWeights
from lightning_compress.quantization.quantizers.activation import ActivationQuantizer
from lightning_compress.quantization.quantizers.bias import BiasShadow
from lightning_compress.quantization.quantizers.learned import LearnedActivationQuantizer, LearnedWeightQuantizer
from lightning_compress.quantization.quantizers.switch import Switch
from lightning_compress.quantization.quantizers.weight import WeightQuantizer
from lightning_compress.quantization.settings import QuantizationSettings
from lightning_compress.quantization.wiring import Wiring


class Quantization:
    """All quantizers of one model; ``prepare`` makes it.

    Args:
        model: The model, changed in place.
        settings: What is quantized, and how.

    Attributes:
        settings: What was asked for.
        weights: The quantizers of weights.
        layers: Weight's full name → its quantizer.
        activations: Site name → its quantizer; empty until the model was recorded.
        biases: What rounds the biases of integer layers in evaluation; empty until the model was recorded.
        placement: Where the activation quantizers sit; ``None`` until the model was recorded.
        settled: Whether these are the final bit widths of the run.
    """

    def __init__(self, model: nn.Module, settings: QuantizationSettings) -> None:
        self.settings = settings
        self.activations: dict[str, ActivationQuantizer] = {}
        self.biases: list[BiasShadow] = []
        self.placement: Placement | None = None
        self._model = model
        self._switch = Switch(model)
        self._switch.momentum = settings.momentum
        self._switch.observe_every = settings.observe_every
        self._wiring = Wiring(model, self._switch, self)
        self._bits = LayerBits(settings)
        self.weights = QuantizedWeights(model, settings, self._bits, self._switch, self._wiring)
        self.layers: Mapping[str, WeightQuantizer] = self.weights.quantizers
        self.settled = True
        self._late = LateLayers(model, ())

    @property
    def root(self) -> nn.Module:
        """The module that was prepared: all names are relative to it."""
        return self._model

    @property
    def weight_bits(self) -> int | None:
        """Bits of weights now, of layers that ask for no others."""
        return self._bits.weights

    @property
    def activation_bits(self) -> int | None:
        """Bits of activations now, likewise."""
        return self._bits.activations

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
        return [
            *self.weights.unquantizable,
            *(self.placement.unreached if self.placement else ()),
            *self._unobserved(),
        ]

    def _unobserved(self) -> list[str]:
        """What no training batch has reached, once one has reached others: each name with the reason."""
        names = [name for name, quantizer in self.activations.items() if not quantizer.observed]
        if len(names) == len(self.activations):
            names = []
        lines = [f"{name}: no training batch passed here, so that its range is unknown" for name in names]
        return [*lines, *(f"{name}: no training batch ran it while ranges were learned" for name in self._waiting())]

    def _waiting(self) -> list[str]:
        """Layers whose inputs would be quantized, had a training batch run them."""
        if self.placement is None:
            return []
        wanted = {name.rpartition(".")[0] for name, bits in self._bits.inputs().items() if bits is not None}
        return sorted(self._late.waiting & wanted)

    @property
    def needs_recording(self) -> bool:
        """Whether activations are asked for and the model was not recorded yet."""
        return self.placement is None and any(bits is not None for bits in self._bits.inputs().values())

    @property
    def gains_by_recording(self) -> bool:
        """Whether no recording was made, which places activation quantizers and finds weights that functions read."""
        return self.placement is None

    def record(self, example_inputs: Any) -> None:
        """Place the activation quantizers by one forward in eval mode.

        Args:
            example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments.
        """
        args, kwargs = call_arguments(example_inputs, self._model.forward)
        enabled, self.enabled = self.enabled, False
        try:
            with evaluating(self._model), torch.no_grad(), recording(self._model) as tape:
                self._model(*args, **kwargs)
        finally:
            self.enabled = enabled
        self.place(tape)

    def place(self, tape: Tape) -> None:
        """Quantize what only a recorded forward shows: weights that functions read, and activations.

        Args:
            tape: The recorded forward.
        """
        self.weights.take_recorded(tape)
        self._set_ends(recorded_ends(tape, self._bits.overrides))
        self._attach_activations(self._placed(tape))
        self._wait_for(set(self.weights.owners) - ran(tape, self._model, self.layers.values()))

    def place_late(self) -> bool:
        """Place the activation quantizers of layers that ran for the first time since; call it between two steps.

        Each part that ran is run again, in eval mode and without gradients, on the inputs of its first call: once to
        be recorded, and once for its ranges. Its bits are those of the layers between the ends of the network.

        Returns:
            Whether anything was placed.
        """
        placed = False
        for part, (args, kwargs) in self._late.take() if not self.frozen else ():
            enabled, self.enabled = self.enabled, False
            with evaluating(part), torch.no_grad(), torch.random.fork_rng(devices=[]):
                try:
                    with recording(self._model) as tape:
                        part(*args, **kwargs)
                finally:
                    self.enabled = enabled
                self.weights.mark(tape)
                self._attach_more(self._placed(tape))
                part(*args, **kwargs)
            self._late.ran(tape)
            placed = True
        return placed

    def _wait_for(self, layers: Collection[str]) -> None:
        self._late = LateLayers(self._model, layers)
        self._wiring.keep(self._late.watch(self.weights.owners))

    def _placed(self, tape: Tape) -> Placement:
        return place(
            tape,
            self._model,
            layer_bits=self._bits.inputs(),
            bits=self.activation_bits,
            backend=self.settings.backend,
            own=self._bits.own_inputs(),
        )

    def set_bits(self, weight_bits: int | None, activation_bits: int | None) -> None:
        """Go on with other bits, but for layers that have bits of their own by an override.

        Ranges of activations stay; those of weights are found again. Learned scales start over from the range of least
        squared error, as a stage of a chain from many bits to few does (Li et al., APoT, 2020).

        Args:
            weight_bits: Bits of weights, 2 to 8; ``None`` only where they are float already.
            activation_bits: Bits of activations, likewise.
        """
        self._bits.change(weight_bits, activation_bits)
        self._renew_specs()

    def _set_ends(self, ends: set[str]) -> None:
        self._bits.ends = ends
        self._renew_specs()

    def _renew_specs(self) -> None:
        """Bring all quantizers to the bits of now."""
        self.weights.renew()
        for site in self.placement.sites if self.placement else ():
            activation = self.activations[site.name]
            if (wanted := self._bits.activation_spec(site)) != activation.spec:
                activation.change(wanted)

    def _attach_activations(self, placement: Placement) -> None:
        if self.placement is not None:
            raise CompressionError("The model was recorded already: strip(model) before preparing it again.")
        self.placement = Placement()
        self._wiring.unnest()
        self._attach_more(placement)

    def _attach_more(self, found: Placement) -> None:
        """Attach what of a placement is not there yet."""
        modules = dict(self._model.named_modules())
        known = self.placement or Placement()
        placement = addition(known, found)
        self.placement = merged(known, placement)
        device = next((parameter.device for parameter in self._model.parameters()), None)
        for site in placement.sites:
            spec = self._bits.activation_spec(site)
            self.activations[site.name] = wiring.activation_quantizer(site.name, spec, self._switch, device)
        self._wiring.activations(placement.sites, self.activations, functions=False)
        for name, site_name in placement.layer_input.items():
            if (computed := self.weights.computed.get(name)) is not None:
                computed.activation = self.activations[site_name]
            if (weight := self.layers.get(name)) is not None:
                norm = placement.folds.get(name.rpartition(".")[0])
                for shadow in wiring.bias_shadows(
                    weight, self.activations[site_name], None if norm is None else modules[norm], self._switch
                ):
                    self.biases.append(shadow)
                    self._wiring.bias(shadow)
        # Last, so that the functions that the other hooks call are not counted.
        self._wiring.activations(placement.sites, self.activations, functions=True)

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
        self._wiring.remove()

    def state_dict(self) -> dict[str, Any]:
        """Settings, placement, ranges and scales: tensors and primitives only."""
        return {
            "settings": self.settings.as_dict(),
            "enabled": self.enabled,
            "frozen": self.frozen,
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "ends": sorted(self._bits.ends),
            **self.weights.recorded(),
            "placement": None if self.placement is None else self.placement.as_dict(),
            "waiting": sorted(self._late.waiting),
            "activations": {name: q.state_dict() for name, q in self.activations.items()},
            "weight_scales": {name: q.scale().cpu().clone() for name, q in self.layers.items()},
            "weight_steps": {name: state for name, q in self.layers.items() if (state := q.state_dict())},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over placement, ranges and phase from ``state_dict``; weights find their own scales again.

        Args:
            state: What ``state_dict`` returned.

        Raises:
            CompressionError: The state is of other settings, or of another model.
        """
        if found := differences(state["settings"], self.settings.as_dict()):
            raise CompressionError(
                f"{self.settings.field}: the saved quantization was made with other settings: "
                f"{'; '.join(found)}. Resume with the settings that the run was started with."
            )
        self._bits.change(state["weight_bits"], state["activation_bits"])
        if state["placement"] is not None and self.placement is None:
            self.weights.take_over(state)
        self._set_ends(set(state["ends"]))
        if state["placement"] is not None and self.placement is None:
            self._attach_activations(Placement.from_dict(state["placement"]))
            self._wait_for(state.get("waiting", ()))
        for name, quantizer in self.activations.items():
            quantizer.load_state_dict(state["activations"][name])
        for name, layer in self.layers.items():
            if name in state.get("weight_steps", {}):
                layer.load_state_dict(state["weight_steps"][name])
        self.enabled = state["enabled"]
        self.frozen = state["frozen"]
