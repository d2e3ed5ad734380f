"""Following tensors forwards and backwards through a recorded forward."""

from __future__ import annotations

from collections.abc import Collection

from lightning_compress.foundation.recorded_forward import Op, Tape, Value
from lightning_compress.quantization.operations import keeps_values


def only_user(value: Value) -> Op | None:
    """The one operation that reads a value; ``None`` where there are others or none."""
    return value.consumers[0] if len(value.consumers) == 1 else None


def source(value: Value) -> Value:
    """The value that operations which keep values were given, behind a cast from integers."""
    while (op := value.producer) is not None and keeps_values(op) and op.inputs and op.inputs[0].floating:
        value = op.inputs[0]
    return value


def users(value: Value) -> list[Op]:
    """Operations that read a value, also behind those that keep values."""
    found: list[Op] = []
    for op in value.consumers:
        if keeps_values(op):
            found += [user for output in op.outputs for user in users(output)]
        else:
            found.append(op)
    return found


def activations(tape: Tape) -> set[Value]:
    """Values on a tape that depend on what modules were given, noise that was drawn for them among it."""
    found: set[Value] = set()
    for op in tape.ops:
        found |= {
            v for v in op.inputs if v.inputs and v.parameter is None and (not v.producer or not v.producer.inputs)
        }
        if not found.isdisjoint(op.inputs):
            found.update(op.outputs)
    return found


def joins(op: Op, weight: Value, data: Collection[Value]) -> bool:
    """Whether a weight, or what is computed from it, meets activations or is a result before it is a single number."""
    waiting, seen = [(op, weight)], set()
    while waiting:
        op, read = waiting.pop()
        if any(value in data for value in op.inputs if value is not read):
            return True
        for made in op.outputs:
            if made.ndim and made not in seen:
                seen.add(made)
                if made.outputs:
                    return True
                waiting += [(user, made) for user in made.consumers]
    return False
