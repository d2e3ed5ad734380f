"""The first and last layers of a network: those that read its inputs and those that make its outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lightning_compress.foundation.recorded_forward import Op, Tape, Value
from lightning_compress.quantization.operations import WEIGHTED

_LAYERS = WEIGHTED | {"embedding"}


def recorded_ends(tape: Tape, names: Collection[str]) -> set[str]:
    """Weights of the layers before which no other layer runs, and of those behind which none does.

    Args:
        tape: A recorded forward.
        names: Full names of the weights in question.

    Returns:
        Their names; none if that is all of them, as in a model of two layers.
    """
    weights = {op: [v.parameter for v in op.inputs if v.parameter in names] for op in tape.ops if op.name in _LAYERS}
    layers = {op for op, found in weights.items() if found}
    behind: set[Value] = set()
    first: set[Op] = set()
    for op in tape.ops:
        before = any(value in behind for value in op.inputs)
        if op in layers and not before:
            first.add(op)
        if op in layers or before:
            behind.update(op.outputs)
    ahead: set[Value] = set()
    last: set[Op] = set()
    for op in reversed(tape.ops):
        after = any(value in ahead for value in op.outputs)
        if op in layers and not after:
            last.add(op)
        if op in layers or after:
            ahead.update(op.inputs)
    return _unless_all({name for op in first | last for name in weights[op] if name}, names)


def registered_ends(names: Iterable[str]) -> set[str]:
    """The same before a forward was recorded: the first and the last weight in the order of the model's modules.

    Example:
        >>> sorted(registered_ends(["stem.weight", "body.weight", "head.weight"]))
        ['head.weight', 'stem.weight']
    """
    listed = list(names)
    return _unless_all({listed[0], listed[-1]} if listed else set(), listed)


def _unless_all(ends: set[str], names: Collection[str]) -> set[str]:
    return set() if len(ends) == len(names) else ends
