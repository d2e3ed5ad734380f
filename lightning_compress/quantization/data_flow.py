"""Ways along the values of a recorded forward."""

from __future__ import annotations

from lightning_compress.foundation.recorded_forward import Op, Value
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
