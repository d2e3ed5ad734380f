"""The quantizers of a model's weights: of its layers from the start, of what functions read once that was recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.recorded_forward import Tape
from lightning_compress.quantization import selection, wiring
from lightning_compress.quantization.candidates import FunctionalUse, Use, Weight, functional_uses, outside_uses
from lightning_compress.quantization.computed_weights import ComputedUse, computed_uses, mark, read_itself
from lightning_compress.quantization.layer_bits import LayerBits
from lightning_compress.quantization.placement.first_last import registered_ends
from lightning_compress.quantization.quantizers.computed import ComputedWeight
from lightning_compress.quantization.quantizers.switch import Switch
from lightning_compress.quantization.quantizers.weight import WeightQuantizer
from lightning_compress.quantization.quantizers.weight_group import WeightGroup
from lightning_compress.quantization.settings import QuantizationSettings


class QuantizedWeights:
    """All weight quantizers of one model.

    Args:
        model: The model.
        settings: What was asked for.
        bits: Bits of each layer; gets the overrides of the weights that are found.
        switch: What the model's quantizers share.
        hooks: Where the quantizers are connected with the modules.

    Attributes:
        quantizers: Weight's full name → its quantizer.
        computed: Name of a weight that a forward computes → its quantizer, as far as a recorded forward has shown it.

    Raises:
        CompressionError: A pattern matches nothing, or nothing that is selected can be quantized.
    """

    def __init__(
        self, model: nn.Module, settings: QuantizationSettings, bits: LayerBits, switch: Switch, hooks: wiring.Wiring
    ) -> None:
        found = selection.select_weights(model, settings)
        self.quantizers: dict[str, WeightQuantizer] = {}
        self.computed: dict[str, ComputedWeight] = {}
        self._released: list[str] = []
        self._functional: list[FunctionalUse] = []
        self._model, self._settings = model, settings
        self._bits, self._switch, self._wiring = bits, switch, hooks
        self._group = WeightGroup()
        # Parameters of no layer, which functions may read as weights.
        self._loose: Mapping[str, Mapping[str, Any]] = found.loose
        self._wrapped: Mapping[str, Mapping[str, Any]] = found.computed
        self._unquantizable = found.unquantizable
        bits.overrides = {weight.name: overrides for weight, overrides in found.weights}
        bits.ends = registered_ends(bits.overrides)
        # Their layers' inputs are quantized, too.
        bits.overrides |= found.computed
        self._quantize([weight for weight, _ in found.weights])

    @property
    def owners(self) -> list[str]:
        """Names of the modules that own a quantized weight."""
        return [name.rpartition(".")[0] for name in self.quantizers if name not in self._loose]

    @property
    def unquantizable(self) -> list[str]:
        """Weights that are selected and stay float, a line each with the reason."""
        return [f"{name}: {reason}" for name, reason in self._unquantizable.items()]

    def names_in(self, model: nn.Module) -> dict[str, str]:
        """Weight's name here → its name in a module that holds the root, or that is a part of it."""
        relative = {id(parameter): name for name, parameter in model.named_parameters()}
        return {
            name: relative[id(quantizer.weight)]
            for name, quantizer in self.quantizers.items()
            if id(quantizer.weight) in relative
        }

    def take_recorded(self, tape: Tape) -> None:
        """Quantize the weights that functions read in a recorded forward, and those that it computes.

        Raises:
            CompressionError: A parameter is asked for by name, and no function reads it as a weight.
        """
        reads, computed = functional_uses(tape, self._model), computed_uses(tape)
        parts = {name for use in computed for name in use.made_of}
        selection.refuse_unread(self._settings, self._loose, {read.weight for read in reads} | parts)
        seen = {(read.weight, read.host) for read in reads}
        outside = [read for read in outside_uses(tape, self._model) if (read.weight, read.host) not in seen]
        self._take_functional([*reads, *outside])
        released = [name for name in self.quantizers if name in parts and not read_itself(tape, name)]
        self._take_computed(computed, released)
        self.mark(tape)

    def mark(self, tape: Tape) -> None:
        """Let computed weights that are quantized stand on a tape like parameters."""
        mark(tape, self.computed)

    def recorded(self) -> dict[str, Any]:
        """What a recorded forward has shown, as primitives."""
        return {
            "functional": [list(astuple(read)) for read in self._functional],
            "computed": [computed.use.as_list() for computed in self.computed.values()],
            "released": list(self._released),
        }

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Quantize what ``recorded`` tells of."""
        self._take_functional([FunctionalUse(*read) for read in state["functional"]])
        self._take_computed([ComputedUse.from_list(use) for use in state["computed"]], state["released"])

    def _take_functional(self, found: Sequence[FunctionalUse]) -> None:
        """Quantize weights where functions read them: parameters of no layer, and layers' weights read elsewhere."""
        modules = dict(self._model.named_modules())
        new: dict[str, list[FunctionalUse]] = {}
        reads: list[tuple[WeightQuantizer, Use]] = []
        for read in found:
            if (quantizer := self.quantizers.get(read.weight)) is not None:
                use = read.use(modules)
                quantizer.uses = (*quantizer.uses, use)
                reads.append((quantizer, use))
            elif read.weight in self._loose:
                new.setdefault(read.weight, []).append(read)
            else:
                continue
            self._functional.append(read)
        self._wiring.weights(reads)
        single = {"weight_granularity": "tensor"}
        self._bits.overrides |= {n: {**self._loose[n], **(single if r[0].batched else {})} for n, r in new.items()}
        self._quantize([Weight(n, tuple(read.use(modules) for read in r), r[0].axis) for n, r in new.items()])

    def _take_computed(self, uses: Sequence[ComputedUse], released: Sequence[str]) -> None:
        """Quantize weights that forwards compute, if they or a part of them are selected.

        Args:
            uses: Where they pass.
            released: Weights of layers that stay float, since they are read to compute others alone.
        """
        known = {**self._loose, **self._bits.overrides, **self._wrapped}
        modules = dict(self._model.named_modules())
        for use in uses:
            own = next((known[name] for name in (use.layer, *use.made_of) if name in known), None)
            spec = None if own is None else self._bits.spec(own)
            if own is not None and spec is not None:
                self._bits.overrides[use.name] = own
                self.computed[use.name] = ComputedWeight(use, modules[use.place.module], spec, self._switch)
                self._wiring.computed(self.computed[use.name])
                if use.layer in self._wrapped:
                    self._unquantizable.pop(use.layer, None)
                    self._bits.overrides.pop(use.layer, None)
        for name in released:
            quantizer = self.quantizers.pop(name)
            self._group.members.remove(quantizer)
            del self._bits.overrides[name]
            self._wiring.release(quantizer)
        self._released += released

    def _quantize(self, found: Sequence[Weight]) -> None:
        reads: list[tuple[WeightQuantizer, Use]] = []
        for weight in found:
            spec = self._bits.weight_spec(weight.name)
            if spec is not None:
                quantizer = self.quantizers[weight.name] = wiring.weight_quantizer(weight, spec, self._switch)
                quantizer.group = self._group
                self._group.members.append(quantizer)
                reads += [(quantizer, use) for use in weight.uses]
        self._wiring.weights(reads)

    def renew(self) -> None:
        """Bring all quantizers to the bits of now."""
        every: dict[str, WeightQuantizer | ComputedWeight] = {**self.quantizers, **self.computed}
        for name, quantizer in every.items():
            spec = self._bits.weight_spec(name)
            if spec is not None and spec != quantizer.spec:
                quantizer.change(spec)

    def refuse_replaced(self) -> None:
        """Notice modules that were replaced since, as a head is for another task.

        Raises:
            CompressionError: The quantizers of such a module are of one that is no longer part of the model.
        """
        alive = set(self._model.modules())
        gone = [name for name, q in self.quantizers.items() if not any(use.owner in alive for use in q.uses)]
        if gone:
            raise CompressionError(
                f"{self._settings.field}: the module of {', '.join(gone)} was replaced after quantization was "
                f"attached, so that the new one would stay float. Replace it before the fit, or strip(model) and "
                f"prepare again."
            )
