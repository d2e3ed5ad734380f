"""Operations with a weight that stay float whatever is quantized around them, a line each with the reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from lightning_compress.foundation.recorded_forward import Op, Tape, Value
from lightning_compress.quantization.data_flow import source
from lightning_compress.quantization.operations import CONVOLUTIONS, LINEAR


def float_layers(tape: Tape, read: Collection[Op], kernels: Collection[str], backend: str | None) -> Iterator[str]:
    """What a recorded forward shows to stay float.

    Args:
        tape: The recorded forward.
        read: The operations whose weight is quantized.
        kernels: Functions for which the backend has float kernels alone.
        backend: Its name.
    """
    computed: dict[str, dict[str, None]] = {}
    for op in tape.ops:
        if op.name not in CONVOLUTIONS | LINEAR or op in read or len(op.inputs) < 2:
            continue
        weight = source(op.inputs[1])
        if weight.parameter is not None:
            if not op.modules:
                yield (
                    f"{weight.parameter}: read by {op.name} at {op.where}, outside of every module's forward, so that "
                    f"nothing can quantize it; call it in the forward of a module"
                )
        elif names := _made_of(weight):
            computed.setdefault(f"{op.name} at {op.where}", {}).update(dict.fromkeys(names))
    for place, found in computed.items():
        yield (
            f"{', '.join(found)}: the weight of {place} is computed from it whenever the model runs, so that nothing "
            f"can quantize it; make the computed weight the parameter"
        )
    layers = dict.fromkeys(op.modules[-1] or "the model" for op in tape.ops if op.name in kernels and op.modules)
    if layers:
        yield (
            f"{', '.join(layers)}: {backend} has no integer kernel for recurrent and bilinear layers: their weights "
            f"are stored in integers and computed in float; a loop of cells (nn.LSTMCell, nn.GRUCell) runs in integers"
        )


def _made_of(value: Value) -> list[str]:
    """Parameters from which a value is computed without any activation; none where a parametrization computes it."""
    found: dict[str, None] = {}
    waiting, known = [value], set()
    while waiting:
        value = waiting.pop()
        if value.parameter is not None:
            found[value.parameter] = None
        elif value.producer is None:
            if value.inputs:
                return []
        elif value.producer not in known:
            known.add(value.producer)
            waiting += value.producer.inputs
    # Those are listed by the layer that has them.
    by_wrapper = any("parametrizations." in name or name.endswith(("_g", "_v", "_orig")) for name in found)
    return [] if by_wrapper else list(found)
