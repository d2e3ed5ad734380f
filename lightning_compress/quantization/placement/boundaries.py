"""The fewest boundaries at which a tensor is quantized before every operation that wants it so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lightning_compress.foundation.boundary import Boundary
from lightning_compress.foundation.recorded_forward import Op, Tape, Value
from lightning_compress.quantization.operations import moves_values


@dataclass(eq=False)
class Want:
    """A tensor that some operation wants quantized.

    Attributes:
        source: The tensor.
        bits: The most bits that a layer with bits of its own asks for.
        common: Whether the model's bits count, too.
        consumers: Operations → the value that they read.
        written: Whether an integer kernel writes the tensor: then a quantizer must stand right behind it.
    """

    source: Value
    bits: int = 0
    common: bool = False
    consumers: dict[Op, Value] = field(default_factory=dict)
    written: bool = False


def locate(want: Want, tape: Tape, shared: list[Boundary]) -> tuple[list[Boundary], list[Op]]:
    """Where a tensor is quantized.

    The result of a module that runs once is best. A module that runs twice (one ``ReLU`` for a whole block) would make
    two tensors share a range, so boundaries of modules that run once come before its own. Where no module's boundary
    is on the way, the function that made the tensor is one, and last the functions that read it.

    Args:
        want: The tensor and who reads it.
        tape: The recorded forward.
        shared: Inputs of a layer that runs several times, which must share a range.

    Returns:
        The boundaries, and the operations that lie behind none of them.
    """
    if shared:
        return list(dict.fromkeys(shared)), []
    outputs = [b for b in want.source.outputs if b.module] or want.source.outputs[:1]
    once = [b for b in outputs if tape.calls[b.module] == 1]
    if once:
        return [once[0]], []
    chosen, missed = _cover(want, lambda b: tape.calls[b.module] == 1, _passed)
    if chosen and not missed:
        return chosen, []
    if outputs:
        return [outputs[0]], []
    made = _result(want.source)
    if made is not None and tape.calls[made.module] == 1:
        return [made], []
    chosen, missed = _cover(want, lambda b: True, _passed)
    if chosen and not missed:
        return chosen, []
    if made is not None:
        return [made], []
    return _cover(want, lambda b: True, lambda op, value, want: [*_passed(op, value, want), *_argument(op, value)])


def _result(value: Value) -> Boundary | None:
    """The function call that made a value, where the call's result is what is read on."""
    op = value.producer
    # After a function that works in place, its caller may go on with the argument instead.
    if op is None or op.call is None or not op.modules or op.dropped:
        return None
    return Boundary(op.modules[-1], "output", op.results[op.outputs.index(value)], op.name, op.call)


def _argument(op: Op, value: Value) -> list[Boundary]:
    """The arguments of a function call at which a value passes."""
    if op.call is None or not op.modules:
        return []
    places = [path for path, given in zip(op.paths, op.inputs, strict=True) if given is value]
    return [Boundary(op.modules[-1], "input", path, op.name, op.call) for path in places]


def _cover(
    want: Want, allowed: Callable[[Boundary], bool], reaching: Callable[[Op, Value, Want], list[Boundary]]
) -> tuple[list[Boundary], list[Op]]:
    """Choose allowed boundaries until every user lies behind one; returns them and the users left over."""
    chosen: list[Boundary] = []
    missed = dict(want.consumers)
    while missed:
        # A tensor that is several arguments of a module passes at all of them.
        covered: dict[tuple[Boundary, ...], list[Op]] = {}
        for op, value in missed.items():
            together: dict[tuple[str, str, str, int], list[Boundary]] = {}
            for b in filter(allowed, dict.fromkeys(reaching(op, value, want))):
                together.setdefault((b.module, b.side, b.function, b.call), []).append(b)
            for boundaries in together.values():
                covered.setdefault(tuple(boundaries), []).append(op)
        if not covered:
            break
        # Functions come last, and the root before them, as a training step may call a child directly; then the
        # innermost.
        best = max(
            covered,
            key=lambda b: (not b[0].function, bool(b[0].module), len(covered[b]), -len(b), b[0].module.count(".")),
        )
        chosen += best
        for op in covered[best]:
            del missed[op]
    return chosen, list(missed)


def _passed(op: Op, value: Value, want: Want) -> list[Boundary]:
    """Boundaries of modules on the way from a source, through operations that keep values, to an operation."""
    found: list[Boundary] = []
    while True:
        found += [b for b in value.outputs if b.module]
        found += [b for b in value.inputs if b.module in op.modules]
        if value is want.source or value.producer is None:
            return found
        if want.written and not moves_values(value.producer):
            found.clear()  # No runtime carries a quantizer from here back to the kernel that writes the tensor.
        value = value.producer.inputs[0]
