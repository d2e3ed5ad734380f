"""What each runtime needs around an operation to run it in integers."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_compress.quantization.spec import Backend

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
LINEAR = frozenset({"linear"})
PRODUCTS = frozenset({"matmul", "mm", "bmm"})
ATTENTION = frozenset({"multi_head_attention_forward", "scaled_dot_product_attention"})
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
WEIGHTED = CONVOLUTIONS | LINEAR | {"multi_head_attention_forward"} | RECURRENT

# Operations that only select, move or repeat values: what is quantized before them is quantized after them.
TRANSPARENT = frozenset(
    {
        "flatten", "reshape", "view", "permute", "transpose", "t", "contiguous", "squeeze", "unsqueeze",
        "getitem", "chunk", "split", "unbind", "select", "narrow", "clone", "detach", "expand", "repeat",
        "unflatten", "movedim", "swapaxes", "roll", "flip", "to", "float",
        "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
        "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout",
        "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    }
)  # fmt: skip
POOLS = frozenset(
    {
        "avg_pool1d", "avg_pool2d", "avg_pool3d",
        "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean",
    }
)  # fmt: skip
ADDS = frozenset({"add"})
CONCATS = frozenset({"cat", "concat", "concatenate"})
MULTIPLIES = frozenset({"mul", "multiply"})
CLIPPING = frozenset({"relu", "relu6", "hardtanh", "clamp", "clip"})


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
    """

    inputs: frozenset[str]
    outputs: frozenset[str] = frozenset()
    joins: frozenset[str] = frozenset()
    pools: frozenset[str] = frozenset()
    fused: frozenset[str] = frozenset()
    sums_in_convolutions: bool = False


_COMPUTE = CONVOLUTIONS | LINEAR | PRODUCTS | {"multi_head_attention_forward"} | RECURRENT

RULES: dict[Backend | None, Rules] = {
    None: Rules(inputs=WEIGHTED),
    # QLinearConv needs a QuantizeLinear behind it; Gemm and MatMul may hand on float32.
    "onnxruntime": Rules(
        inputs=_COMPUTE,
        outputs=CONVOLUTIONS,
        joins=ADDS | CONCATS | MULTIPLIES,
        pools=POOLS,
        fused=CLIPPING,
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
    # XNNPACK's integer operators read and write integers without exception.
    "executorch": Rules(
        inputs=_COMPUTE,
        outputs=CONVOLUTIONS | LINEAR,
        joins=ADDS | CONCATS | MULTIPLIES,
        pools=POOLS,
        fused=CLIPPING,
    ),
}
