"""Bit widths of each layer: those of the run now, or others by an override or as a first or last layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.placement.sites import Site
from lightning_compress.quantization.settings import ActivationSpec, QuantizationSettings, WeightSpec, check_bits


class LayerBits:
    """Bit widths of all layers of one model, which can change during training.

    Args:
        settings: What was asked for; its bits are the first ones.

    Attributes:
        overrides: Weight's full name → the settings that an override gives it.
        ends: Weights of the first and last layers.
    """

    def __init__(self, settings: QuantizationSettings) -> None:
        self.overrides: dict[str, Mapping[str, Any]] = {}
        self.ends: set[str] = set()
        self._now = settings

    @property
    def weights(self) -> int | None:
        """Bits of weights now, of layers that ask for no others."""
        return self._now.weight_bits

    @property
    def activations(self) -> int | None:
        """Bits of activations now, likewise."""
        return self._now.activation_bits

    def change(self, weight_bits: int | None, activation_bits: int | None) -> None:
        """Set the bits of now.

        Raises:
            CompressionError: They are not from 2 to 8, or change a float model to a quantized one or the reverse.
        """
        for which, now, new in (
            ("weight_bits", self.weights, weight_bits),
            ("activation_bits", self.activations, activation_bits),
        ):
            check_bits(new, f"set_bits.{which}")
            if (now is None) != (new is None):
                raise CompressionError.field(
                    f"set_bits.{which}",
                    expected="bits where the model was prepared with bits, None where with None",
                    got=new,
                )
        self._now = replace(self._now, weight_bits=weight_bits, activation_bits=activation_bits)

    def weight_spec(self, name: str) -> WeightSpec | None:
        """How a weight is quantized now; ``None`` where it stays float."""
        return self.spec(self.overrides[name], end=name in self.ends)

    def spec(self, own: Mapping[str, Any], *, end: bool = False) -> WeightSpec | None:
        """The same for a weight with these overrides; ``end`` for a first or last layer."""
        return self._now.weight_spec(own, end=end)

    def activation_spec(self, site: Site) -> ActivationSpec:
        """How the tensor at a site is quantized now."""
        return self._now.activation_spec(site.width(self.activations))

    def inputs(self) -> dict[str, int | None]:
        """Weight's full name → bits of its layer's input now."""
        return {name: self._now.input_bits(own, end=name in self.ends) for name, own in self.overrides.items()}

    def own_inputs(self) -> list[str]:
        """Weights of layers whose inputs may have other bits than the model's."""
        return [name for name, own in self.overrides.items() if name in self.ends or "activation_bits" in own]
