"""Operations with a weight that stay float whatever is quantized around them, a line each with the reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from lightning_compress.foundation.recorded_forward import Op, Tape
from lightning_compress.quantization.computed_weights import computing, made_of
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
    for op in tape.ops:
        weight = source(op.inputs[1]).parameter if op.name in CONVOLUTIONS | LINEAR and len(op.inputs) > 1 else None
        if weight is not None and op not in read and not op.modules:
            yield (
                f"{weight}: read by {op.name} at {op.where}, outside of every module's forward, so that nothing can "
                f"quantize it; call it in the forward of a module"
            )
    computed: dict[str, dict[str, None]] = {}
    for op in computing(tape):
        names = made_of(op.inputs[1])
        # Those that a wrapper computes are listed by the layer that has them.
        if not any("parametrizations." in name or name.endswith(("_g", "_v", "_orig")) for name in names) and names:
            computed.setdefault(f"{op.name} at {op.where}", {}).update(dict.fromkeys(names))
    for place, found in computed.items():
        yield (
            f"{', '.join(found)}: the weight of {place} is computed from it whenever the model runs, and stays "
            f"float; select it, or what it is computed from, to quantize what is computed"
        )
    layers = dict.fromkeys(op.modules[-1] or "the model" for op in tape.ops if op.name in kernels and op.modules)
    if layers:
        yield (
            f"{', '.join(layers)}: {backend} has no integer kernel for recurrent and bilinear layers: their weights "
            f"are stored in integers and computed in float; a loop of cells (nn.LSTMCell, nn.GRUCell) runs in integers"
        )
