"""What each runtime needs around an operation to run it in integers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lightning_compress.quantization.operations import (
    ADDS,
    CLIPPING,
    CONCATS,
    CONVOLUTIONS,
    LINEAR,
    MULTIPLIES,
    POOLS,
    PRODUCTS,
    RECURRENT,
    WEIGHTED,
)
from lightning_compress.quantization.settings import Backend


@dataclass(frozen=True)
class Rules:
    """Where a runtime wants activation quantizers.

    Attributes:
        inputs: Operations whose inputs are quantized.
        outputs: Operations whose output, behind batch norm and a fused activation, is quantized too, since the
            integer kernel writes integers.
        joins: Operations on several tensors that run in integers when all inputs and the output are quantized.
        pools: Likewise, with one input.
        fused: Activations that the runtime folds into the operation before them.
        sums_in_convolutions: Whether a convolution adds the other summand of a residual add before it rounds: its own
            result is then no tensor that could be quantized.
        all_products: Whether a product of two activations is quantized whatever made them, attention's weights, too;
            where not, only between integer operations.
        one_grid: Operations whose integer kernel takes one scale for all that it reads and writes: these tensors
            share a quantizer.
        float_kernels: Functions with a weight for which the runtime has no integer kernel.
    """

    inputs: frozenset[str]
    outputs: frozenset[str] = frozenset()
    joins: frozenset[str] = frozenset()
    pools: frozenset[str] = frozenset()
    fused: frozenset[str] = frozenset()
    sums_in_convolutions: bool = False
    all_products: bool = False
    one_grid: frozenset[str] = frozenset()
    float_kernels: frozenset[str] = frozenset()


_COMPUTE = WEIGHTED | PRODUCTS

# The integer operators of XNNPACK, and of LiteRT's other kernels, read and write integers without exception.
_INTEGERS_THROUGHOUT = Rules(
    inputs=_COMPUTE,
    outputs=CONVOLUTIONS | LINEAR,
    joins=ADDS | CONCATS | MULTIPLIES,
    pools=POOLS,
    fused=CLIPPING,
)

RULES: dict[Backend | None, Rules] = {
    None: Rules(inputs=WEIGHTED),
    # QLinearConv needs a QuantizeLinear behind it; Gemm and MatMul may hand on float32.
    "onnxruntime": Rules(
        inputs=_COMPUTE,
        outputs=CONVOLUTIONS,
        joins=ADDS | CONCATS | MULTIPLIES,
        pools=POOLS,
        fused=CLIPPING,
        all_products=True,
        float_kernels=RECURRENT | {"bilinear"},
    ),
    "openvino": Rules(
        inputs=_COMPUTE,
        outputs=frozenset(),
        joins=ADDS | CONCATS | MULTIPLIES,
        pools=POOLS,
        fused=CLIPPING | {"silu", "gelu", "hardswish", "sigmoid"},
    ),
    # As the x86 quantizer of PT2E has it, whose patterns Inductor fuses.
    "inductor": Rules(
        inputs=WEIGHTED,
        joins=ADDS | CONCATS,
        pools=POOLS,
        fused=CLIPPING | {"silu", "hardswish"},
        sums_in_convolutions=True,
    ),
    "tensorrt": Rules(inputs=_COMPUTE, joins=ADDS | CONCATS, pools=POOLS, fused=CLIPPING, sums_in_convolutions=True),
    "executorch": _INTEGERS_THROUGHOUT,
    "litert": replace(_INTEGERS_THROUGHOUT, one_grid=CONCATS | {"avg_pool1d", "avg_pool2d"}),
}
