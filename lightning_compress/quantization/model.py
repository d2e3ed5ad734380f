"""All quantizers of one model: made from settings, placed by a recorded forward, saved and restored."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.example_inputs import call_arguments, evaluating
from lightning_compress.foundation.function_calls import on_call
from lightning_compress.foundation.recorded_forward import Tape, recording
from lightning_compress.foundation.settings_diff import differences
from lightning_compress.quantization import selection, wiring
from lightning_compress.quantization.candidates import (
    FunctionalUse,
    Use,
    Weight,
    functional_uses,
    outside_uses,
)
from lightning_compress.quantization.computed_weights import ComputedUse, computed_uses, mark, read_itself
from lightning_compress.quantization.late_layers import LateLayers, addition, merged, ran
from lightning_compress.quantization.placement.first_last import recorded_ends, registered_ends
from lightning_compress.quantization.placement.place import place
from lightning_compress.quantization.placement.sites import Placement
from lightning_compress.quantization.quantizers.attention import SeparateProjections
from lightning_compress.quantization.quantizers.base import ActivationQuantizer, Switch, WeightQuantizer
from lightning_compress.quantization.quantizers.bias import BiasShadow
from lightning_compress.quantization.quantizers.computed import ComputedWeight
from lightning_compress.quantization.quantizers.hooks import Unnested
from lightning_compress.quantization.quantizers.learned import LearnedActivationQuantizer, LearnedWeightQuantizer
from lightning_compress.quantization.quantizers.weight_group import WeightGroup
from lightning_compress.quantization.quantizers.weight_shadows import WeightShadows
from lightning_compress.quantization.settings import QuantizationSettings, check_change

# Where a module keeps what is attached to it.
ATTRIBUTE = "_lightning_compress_quantization"


class Quantization:
    """All quantizers of one model.

    Attributes:
        root: The module that was prepared: all names are relative to it.
        settings: What was asked for.
        layers: Weight's full name → its quantizer.
        activations: Site name → its quantizer; empty until the model was recorded.
        computed: Name of a weight that a forward computes → its quantizer; empty until the model was recorded.
        biases: What rounds the biases of integer layers in evaluation; empty until the model was recorded.
        placement: Where the activation quantizers sit; ``None`` until the model was recorded.
        weight_bits: Bits of weights now, of layers that ask for no others.
        activation_bits: Likewise of activations.
        settled: Whether these are the last bits that the run comes to.
    """

    def __init__(self, model: nn.Module, settings: QuantizationSettings) -> None:
        self.root, self.settings = model, settings
        self.layers: dict[str, WeightQuantizer] = {}
        self.activations: dict[str, ActivationQuantizer] = {}
        self.computed: dict[str, ComputedWeight] = {}
        self.biases: list[BiasShadow] = []
        self.placement: Placement | None = None
        self._switch = Switch(model)
        self._group = WeightGroup()
        self._switch.momentum = settings.momentum
        self._switch.observe_every = settings.observe_every
        self._handles: list[wiring.Handle] = []
        self._shadows: list[WeightShadows] = []
        self._released: list[str] = []
        self._overrides: dict[str, Mapping[str, Any]] = {}
        self._ends: set[str] = set()
        self._loose: dict[str, Mapping[str, Any]] = {}
        self._wrapped: dict[str, Mapping[str, Any]] = {}
        self._unquantizable: dict[str, str] = {}
        self._functional: list[FunctionalUse] = []
        self.weight_bits = settings.weight_bits
        self.activation_bits = settings.activation_bits
        self.settled = True
        self._late = LateLayers(model, ())
        self._attach_weights()

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
        lines = [f"{name}: {reason}" for name, reason in self._unquantizable.items()]
        return [*lines, *(self.placement.unreached if self.placement else ()), *self._unobserved()]

    def _unobserved(self) -> list[str]:
        """What no training batch has reached, once one has reached others: each name with the reason."""
        names = [name for name, quantizer in self.activations.items() if not quantizer.observed]
        names = [] if len(names) == len(self.activations) else names
        lines = [f"{name}: no training batch came by here, so that its range is unknown" for name in names]
        return [*lines, *(f"{name}: no training batch ran it while ranges were learned" for name in self._waiting())]

    def _waiting(self) -> list[str]:
        """Layers whose inputs would be quantized, had a training batch run them."""
        wanted = {name.rpartition(".")[0] for name, bits in self._input_bits().items() if bits is not None}
        return sorted(self._late.waiting & wanted) if self.placement is not None else []

    @property
    def needs_recording(self) -> bool:
        """Whether activations are asked for and the model was not recorded yet."""
        bits = [*self._input_bits().values(), *(self.activation_bits for _ in self._wrapped)]
        return self.placement is None and any(each is not None for each in bits)

    @property
    def gains_by_recording(self) -> bool:
        """Whether no recording was made, which places activation quantizers and finds weights that functions read."""
        return self.placement is None

    def record(self, example_inputs: Any) -> None:
        """Place the activation quantizers by one forward in eval mode.

        Args:
            example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments.
        """
        args, kwargs = call_arguments(example_inputs, self.root.forward)
        enabled, self.enabled = self.enabled, False
        try:
            with evaluating(self.root), torch.no_grad(), recording(self.root) as tape:
                self.root(*args, **kwargs)
        finally:
            self.enabled = enabled
        self.place(tape)

    def place(self, tape: Tape) -> None:
        """Quantize what only a recorded forward shows: weights that functions read, and activations."""
        reads, computed = functional_uses(tape, self.root), computed_uses(tape)
        parts = {name for use in computed for name in use.made_of}
        selection.refuse_unread(self.settings, self._loose, {read.weight for read in reads} | parts)
        seen = {(read.weight, read.host) for read in reads}
        outside = [read for read in outside_uses(tape, self.root) if (read.weight, read.host) not in seen]
        self._attach_functional([*reads, *outside])
        self._attach_computed(computed, [name for name in self.layers if name in parts and not read_itself(tape, name)])
        mark(tape, self.computed)
        self._set_ends(recorded_ends(tape, self._overrides))
        self._attach_activations(self._placed(tape))
        self._wait_for(set(self._owners()) - ran(tape, self.root, self.layers.values()))

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
                    with recording(self.root) as tape:
                        part(*args, **kwargs)
                finally:
                    self.enabled = enabled
                mark(tape, self.computed)
                self._attach_more(self._placed(tape))
                part(*args, **kwargs)
            self._late.ran(tape)
            placed = True
        return placed

    def _owners(self) -> list[str]:
        """Modules of quantized weights."""
        return [name.rpartition(".")[0] for name in self.layers if name not in self._loose]

    def _wait_for(self, layers: Collection[str]) -> None:
        self._late = LateLayers(self.root, layers)
        self._handles += self._late.watch(self._owners())

    def _placed(self, tape: Tape) -> Placement:
        return place(
            tape,
            self.root,
            layer_bits=self._input_bits(),
            bits=self.activation_bits,
            backend=self.settings.backend,
            own=[
                name
                for name, overrides in self._overrides.items()
                if name in self._ends or "activation_bits" in overrides
            ],
        )

    def set_bits(self, weight_bits: int | None, activation_bits: int | None) -> None:
        """Go on with other bits, but for layers that have bits of their own by an override.

        Ranges of activations stay; those of weights are found anew. Learned scales start anew from the range of least
        squared error, as a stage of a chain from many bits to few does (Li et al., APoT, 2020).

        Args:
            weight_bits: Bits of weights, 2 to 8; ``None`` only where they are float already.
            activation_bits: Bits of activations, likewise.
        """
        check_change(self.weight_bits, weight_bits, "set_bits.weight_bits")
        check_change(self.activation_bits, activation_bits, "set_bits.activation_bits")
        self.weight_bits, self.activation_bits = weight_bits, activation_bits
        self._renew_specs()

    def _input_bits(self) -> dict[str, int | None]:
        """Weight's full name → bits of its layer's input now."""
        bits = self._settings_now().input_bits
        return {name: bits(own, end=name in self._ends) for name, own in self._overrides.items()}

    def _settings_now(self) -> QuantizationSettings:
        return replace(self.settings, weight_bits=self.weight_bits, activation_bits=self.activation_bits)

    def _set_ends(self, ends: set[str]) -> None:
        self._ends = ends
        self._renew_specs()

    def _renew_specs(self) -> None:
        """Bring all quantizers to the bits of now."""
        settings = self._settings_now()
        every: dict[str, WeightQuantizer | ComputedWeight] = {**self.layers, **self.computed}
        for name, layer in every.items():
            spec = settings.weight_spec(self._overrides[name], end=name in self._ends)
            if spec is not None and spec != layer.spec:
                layer.change(spec)
        for site in self.placement.sites if self.placement else ():
            activation = self.activations[site.name]
            if (bits := site.width(self.activation_bits)) != activation.bits:
                activation.change(self.settings.activation_spec(bits))

    def _attach_weights(self) -> None:
        found = selection.select_weights(self.root, self.settings)
        self._loose, self._wrapped, self._unquantizable = found.loose, found.computed, found.unquantizable
        self._overrides = {weight.name: overrides for weight, overrides in found.weights}
        self._ends = registered_ends(self._overrides)
        self._quantize([weight for weight, _ in found.weights])

    def _attach_functional(self, found: Sequence[FunctionalUse]) -> None:
        """Quantize weights where functions read them: parameters of no layer, and layers' weights read elsewhere."""
        modules = dict(self.root.named_modules())
        new: dict[str, list[FunctionalUse]] = {}
        reads: list[tuple[WeightQuantizer, Use]] = []
        for read in found:
            if (quantizer := self.layers.get(read.weight)) is not None:
                use = read.use(modules)
                quantizer.uses = (*quantizer.uses, use)
                reads.append((quantizer, use))
            elif read.weight in self._loose:
                new.setdefault(read.weight, []).append(read)
            else:
                continue
            self._functional.append(read)
        self._watch(reads)
        single = {False: {}, True: {"weight_granularity": "tensor"}}
        self._overrides |= {n: {**self._loose[n], **single[r[0].batched]} for n, r in new.items()}
        self._quantize([Weight(n, tuple(read.use(modules) for read in r), r[0].axis) for n, r in new.items()])

    def _quantize(self, found: Sequence[Weight]) -> None:
        settings = self._settings_now()
        reads: list[tuple[WeightQuantizer, Use]] = []
        for weight in found:
            spec = settings.weight_spec(self._overrides[weight.name], end=weight.name in self._ends)
            if spec is not None:
                quantizer = self.layers[weight.name] = wiring.weight_quantizer(weight, spec, self._switch)
                quantizer.group = self._group
                self._group.members.append(quantizer)
                reads += [(quantizer, use) for use in weight.uses]
        self._watch(reads)

    def _watch(self, reads: Sequence[tuple[WeightQuantizer, Use]]) -> None:
        """Show each module the quantized weights that its forward reads."""
        by_host: dict[nn.Module, list[tuple[WeightQuantizer, Use]]] = {}
        for quantizer, use in reads:
            by_host.setdefault(use.host, []).append((quantizer, use))
        for host, uses in by_host.items():
            host.__dict__[ATTRIBUTE] = self
            if isinstance(host, nn.MultiheadAttention) and SeparateProjections.serves(host):
                self._handles.append(SeparateProjections(host))
            self._shadows.append(WeightShadows(uses, self._switch))
            self._handles += self._shadows[-1].attach(host)

    def _attach_computed(self, uses: Sequence[ComputedUse], released: Sequence[str]) -> None:
        """Quantize weights that forwards compute, some of them instead of the layers' weights that those come from."""
        known = {**self._loose, **self._overrides, **self._wrapped}
        modules = dict(self.root.named_modules())
        for found, own in wiring.computed_weights(uses, modules, known, self._settings_now(), self._switch):
            self.computed[found.use.name], self._overrides[found.use.name] = found, own
            self._unquantizable.pop(found.use.layer, None)
            self._take([(found.module, on_call(found.module, found.hook()))])
        for name in released:
            quantizer = self.layers.pop(name)
            self._group.members.remove(quantizer)
            del self._overrides[name]
            for shadows in self._shadows:
                shadows.release(quantizer)
        self._released += released

    def _attach_activations(self, placement: Placement) -> None:
        if self.placement is not None:
            raise CompressionError("The model was recorded already: strip(model) before preparing it again.")
        modules = dict(self.root.named_modules())
        self.placement = Placement()
        self._handles += [Unnested(module) for module in modules.values() if isinstance(module, nn.TransformerEncoder)]
        self._attach_more(placement)

    def _attach_more(self, found: Placement) -> None:
        """Attach what of a placement is not there yet."""
        modules = dict(self.root.named_modules())
        known = self.placement or Placement()
        placement = addition(known, found)
        self.placement = merged(known, placement)
        device = next((parameter.device for parameter in self.root.parameters()), None)
        for site in placement.sites:
            spec = self.settings.activation_spec(site.width(self.activation_bits))
            self.activations[site.name] = wiring.activation_quantizer(site.name, spec, self._switch, device)
        acting = {site.name: self.activations[site.name] for site in placement.sites}
        self._take(wiring.hooks(placement, modules, acting, self._switch, functions=False))
        for name, site_name in placement.layer_input.items():
            if (weight := self.layers.get(name)) is not None:
                norm = placement.folds.get(name.rpartition(".")[0])
                for shadow in wiring.bias_shadows(
                    weight, self.activations[site_name], None if norm is None else modules[norm], self._switch
                ):
                    self.biases.append(shadow)
                    shadow.host.__dict__[ATTRIBUTE] = self
                    self._handles += shadow.attach(shadow.host)
        # Last, so that the functions that the other hooks call are not counted.
        self._take(wiring.hooks(placement, modules, acting, self._switch, functions=True))
        for name, computed in self.computed.items():
            if computed.activation is None and (at := placement.layer_input.get(name)) is not None:
                computed.activation = self.activations[at]

    def _take(self, hooked: Iterable[tuple[nn.Module, wiring.Handle]]) -> None:
        for module, handle in hooked:
            module.__dict__[ATTRIBUTE] = self
            self._handles.append(handle)

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
        for module in self.root.modules():
            module.__dict__.pop(ATTRIBUTE, None)

    def state_dict(self) -> dict[str, Any]:
        """Settings, placement, ranges and scales: tensors and primitives only."""
        return {
            "settings": self.settings.as_dict(),
            "enabled": self.enabled,
            "frozen": self.frozen,
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "ends": sorted(self._ends),
            "functional": [list(astuple(read)) for read in self._functional],
            "computed": [computed.use.as_list() for computed in self.computed.values()],
            "released": list(self._released),
            "placement": None if self.placement is None else self.placement.as_dict(),
            "waiting": sorted(self._late.waiting),
            "activations": {name: q.state_dict() for name, q in self.activations.items()},
            "weight_scales": {name: q.scale().cpu().clone() for name, q in self.layers.items()},
            "weight_steps": {name: state for name, q in self.layers.items() if (state := q.state_dict())},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over placement, ranges and phase from ``state_dict``; weights find their own scales again.

        Raises:
            CompressionError: The state is of other settings, or of another model.
        """
        if found := differences(state["settings"], self.settings.as_dict()):
            raise CompressionError(
                f"{self.settings.field}: the saved quantization was made with other settings: "
                f"{'; '.join(found)}. Resume with the settings that the run was started with."
            )
        self.weight_bits, self.activation_bits = state["weight_bits"], state["activation_bits"]
        if state["placement"] is not None and self.placement is None:
            self._attach_functional([FunctionalUse(*read) for read in state["functional"]])
            self._attach_computed([ComputedUse.from_list(use) for use in state["computed"]], state["released"])
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
