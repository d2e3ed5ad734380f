"""What a model will take on disk and what its compression takes in memory, before it is trained."""

from __future__ import annotations

from torch import nn

from lightning_compress.metrics import functional
from lightning_compress.metrics.layer_table import describe
from lightning_compress.pruning import Pruner
from lightning_compress.pruning.settings import Settings
from lightning_compress.quantization import Quantization

_NODE_BYTES = 230
_ENTRY_BYTES = 12
"""Of an ONNX node with its names, and of a packed file's tensor besides its values, as measured on bundled models."""


def sizes(model: nn.Module, quantization: Quantization | None, operations: int) -> dict[str, int]:
    """Expected bytes of the dense float32 model, the packed file and the ONNX file.

    The packed file's size is that of entropy coding the present weights at the final sparsity; training makes
    integers a little more even or uneven than that.

    Args:
        model: The model, pruned as it will be, with its quantizers attached.
        quantization: The quantizers.
        operations: Operations of one forward.
    """
    rows, extra = describe(model), functional.extra_bytes(model)
    return {
        "dense": functional.dense_bytes(rows, extra),
        "packed": round(functional.packed_bytes(rows, extra)) + _ENTRY_BYTES * len(rows),
        "onnx": _onnx(model, quantization, operations),
    }


def _onnx(model: nn.Module, quantization: Quantization | None, operations: int) -> int:
    layers = quantization.layers if quantization is not None else {}
    folds = dict(quantization.placement.folds) if quantization and quantization.placement else {}
    folded = set(folds.values())
    inputs = quantization.layer_input if quantization is not None else {}
    biases = {id(bias) for name in inputs if name in layers for bias in layers[name].biases}
    sites = len(quantization.activations) if quantization is not None else 0
    total, nodes = 0, operations - len(folds) + 2 * sites
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        if owner in folded:
            continue
        if name in layers:
            scales = layers[name].scale().numel()
            total += parameter.numel() + 5 * scales
            nodes += 1
            if name in inputs and (owner in folds or layers[name].biases):
                # The bias: 32-bit integers and their scale.
                total += 8 * parameter.shape[layers[name].channel_axis]
                nodes += 1
        elif id(parameter) in biases:
            continue
        else:
            total += functional.FLOAT_BYTES * parameter.numel()
    return total + _NODE_BYTES * nodes


def memory(
    pruner: Pruner | None, settings: Settings | None, quantization: Quantization | None, kept_dense: int
) -> dict[str, int]:
    """Bytes that training takes more than without compression: what for → bytes.

    Args:
        pruner: The pruner.
        settings: Its settings.
        quantization: The quantizers. Those of activations keep only what the layer before them keeps anyway.
        kept_dense: Bytes of the dense weights that an export keeps from the start; 0 if it does not.
    """
    found = {}
    if pruner is not None and settings is not None:
        masked = sum(mask.numel() for mask in pruner.masks.values())
        found["masks, 1 byte a weight"] = masked
        if settings.criterion == "movement":
            found["movement scores, 4 bytes a weight"] = 4 * masked
    if quantization is not None:
        quantized = sum(quantizer.weight.numel() for quantizer in quantization.layers.values())
        found["fake-quantized weights until backward, 4 bytes a weight"] = 4 * quantized
    if kept_dense:
        found["dense weights, kept by the export"] = kept_dense
    return found
