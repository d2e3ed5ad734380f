"""Sensitivity: the loss that a trained model gains when one layer is compressed, for every layer and setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_compress.apps.advise.hessian import Trace
from lightning_compress.apps.advise.layer_options import Place, compressed

Criterion = Literal["loss", "hessian"]


@dataclass(frozen=True)
class Option:
    """One setting of one layer, the others left as they are.

    Attributes:
        sparsity: Share of zeros.
        bits: Bits of the weight; ``None`` is float.
        loss: How much the mean loss rises.
        distance: Squared Euclidean distance that the weight moves.
        bytes: What the packed file takes for it.
        bit_operations: Bit operations of the layer in one forward, for one sample.
    """

    sparsity: float
    bits: int | None
    loss: float
    distance: float
    bytes: float
    bit_operations: float


@dataclass(frozen=True)
class Layer:
    """A layer's sensitivity.

    Attributes:
        name: Full name of its weight.
        numel: Entries of the weight.
        options: Its settings.
        trace: Trace of its block of the Hessian; ``None`` if that was not estimated.
    """

    name: str
    numel: int
    options: tuple[Option, ...]
    trace: Trace | None = None

    def costs(self, criterion: Criterion) -> list[float]:
        """What each option is expected to add to the loss.

        ``"loss"``: what was measured; a loss that falls counts as unchanged. ``"hessian"``: the second-order term
        ``½ · tr(H) / n · ‖ΔW‖²`` (HAWQ-V2, Dong et al. 2020, equation 8, with Taylor's factor), which takes the
        perturbation as independent of the curvature's directions.
        """
        if criterion == "loss" or self.trace is None:
            return [max(0.0, option.loss) for option in self.options]
        return [0.5 * max(0.0, self.trace.value) / self.numel * option.distance for option in self.options]


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of a layer in one forward, and the bits of its input."""

    macs: int = 0
    activation_bits: int = 32


def measure(
    among: Sequence[Place],
    loss: Callable[[], float],
    *,
    work: Mapping[str, Work] | None = None,
    traces: Mapping[str, Trace] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[float, list[Layer]]:
    """Measure the loss with each layer in each of its settings, one after the other.

    A setting whose loss is not a number is left out.

    Args:
        among: The weights with their settings; changed one at a time, and restored to the bit.
        loss: Evaluates the model as it is.
        work: Weight's name → work of its layer, for bit operations.
        traces: Weight's name → trace of its block of the Hessian.
        progress: Called with the number of evaluations done, and of all.

    Returns:
        The loss of the model as it is, and the layers.
    """
    base, found = loss(), []
    total, done = sum(len(place.sparsities) * len(place.bits) for place in among), 0
    for place in among:
        amount = (work or {}).get(place.name, Work())
        options = []
        for sparsity in place.sparsities:
            for bits in place.bits:
                with compressed(place, sparsity, bits) as change:
                    rise = loss() - base
                if math.isfinite(rise):
                    operations = amount.macs * (bits or 32) * amount.activation_bits
                    options.append(Option(sparsity, bits, rise, change.distance, change.bytes, operations))
                done += 1
                if progress is not None:
                    progress(done, total)
        found.append(Layer(place.name, place.parameter.numel(), tuple(options), (traces or {}).get(place.name)))
    return base, found
