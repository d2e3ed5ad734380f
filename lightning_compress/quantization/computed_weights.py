"""Weights that a forward computes whenever it runs: by weight norm, weight standardization, or a factor.

No parameter holds what is multiplied, so that such a weight is quantized where a module hands it to a function.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_compress.foundation.boundary import Boundary
from lightning_compress.foundation.nested import Key
from lightning_compress.foundation.recorded_forward import Op, Tape, Value
from lightning_compress.quantization.data_flow import source
from lightning_compress.quantization.operations import CONVOLUTIONS, LINEAR, PRODUCTS, WEIGHTED
from lightning_compress.quantization.placement.sites import site_name


@dataclass(frozen=True)
class ComputedUse:
    """A computed weight among the arguments of a function that a module calls.

    Attributes:
        place: Where it passes.
        axis: Dimension of the output channels.
        bias: Where the bias passes there, if it depends on no activation either.
        made_of: Full names of the parameters that the weight is computed from.
    """

    place: Boundary
    axis: int
    bias: tuple[Key, ...] | None
    made_of: tuple[str, ...]

    @property
    def name(self) -> str:
        """What stands for the weight's full name."""
        return site_name(self.place)

    @property
    def layer(self) -> str:
        """The full name that the weight of a layer which a wrapper computes goes by."""
        return f"{self.place.module}.weight".lstrip(".")

    def as_list(self) -> list[Any]:
        """As primitives, for checkpoints."""
        at = self.place
        place = [at.module, at.side, list(at.path), at.function, at.call]
        return [place, self.axis, None if self.bias is None else list(self.bias), list(self.made_of)]

    @classmethod
    def from_list(cls, state: Sequence[Any]) -> ComputedUse:
        """The inverse of ``as_list``."""
        (module, side, path, *call), axis, bias, made_of = state
        place = Boundary(module, side, tuple(path), *call)
        return cls(place, axis, None if bias is None else tuple(bias), tuple(made_of))


def computed_uses(tape: Tape) -> list[ComputedUse]:
    """Every computed weight that a linear or convolution function takes on a tape, each once."""
    return list(dict.fromkeys(use for op in tape.ops if (use := _use(op)) is not None))


def mark(tape: Tape, names: Collection[str]) -> None:
    """Let computed weights of these names, and their biases, stand on a tape like parameters."""
    for op in tape.ops:
        use = _use(op) if names else None
        if use is not None and use.name in names:
            for position, name in enumerate((use.name, f"{use.name}'s bias")[: 2 if use.bias is not None else 1], 1):
                before = op.inputs[position]
                before.consumers.remove(op)
                op.inputs[position] = Value(parameter=name, consumers=[op], ndim=before.ndim, serial=before.serial)


def read_itself(tape: Tape, parameter: str) -> bool:
    """Whether an operation on a tape multiplies by a parameter, or looks up in it, as it is."""
    return any(
        source(value).parameter == parameter
        for op in tape.ops
        if op.name in WEIGHTED | PRODUCTS | {"embedding"}
        for value in op.inputs
    )


def made_of(value: Value) -> tuple[str, ...]:
    """Parameters from which a value is computed; none where an activation has a part in it."""
    found: dict[str, None] = {}
    waiting, known = [value], set()
    while waiting:
        value = waiting.pop()
        if value.parameter is not None:
            found[value.parameter] = None
        elif value.producer is None:
            if value.inputs:
                return ()
        elif value.producer not in known:
            known.add(value.producer)
            waiting += value.producer.inputs
    return tuple(found)


def computing(tape: Tape) -> Iterator[Op]:
    """Linear and convolution functions on a tape whose weight is no parameter as it is."""
    for op in tape.ops:
        if op.name in CONVOLUTIONS | LINEAR and len(op.inputs) > 1 and source(op.inputs[1]).parameter is None:
            yield op


def _use(op: Op) -> ComputedUse | None:
    if op.name not in CONVOLUTIONS | LINEAR or op.call is None or not op.modules or len(op.inputs) < 2:
        return None
    weight = op.inputs[1]
    if source(weight).parameter is not None or not weight.floating or not (names := made_of(weight)):
        return None
    bias = op.inputs[2] if len(op.inputs) > 2 else None
    return ComputedUse(
        place=Boundary(op.modules[-1], "input", op.paths[1], op.name, op.call),
        axis=1 if "transpose" in op.name else 0,
        bias=op.paths[2] if bias is not None and made_of(bias) else None,
        made_of=names,
    )
