"""Names of operations on a recorded forward, by kind."""

from __future__ import annotations

from typing import Any

from lightning_compress.foundation.recorded_forward import Op

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})


LINEAR = frozenset({"linear"})


PRODUCTS = frozenset({"matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"})


ATTENTION = frozenset({"multi_head_attention_forward", "scaled_dot_product_attention"})


RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


CELLS = frozenset({"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"})


WEIGHTED = CONVOLUTIONS | LINEAR | {"multi_head_attention_forward", "bilinear"} | RECURRENT | CELLS


# Operations that only move values: a runtime carries a quantizer over them by itself.
_MOVES = frozenset(
    {
        "flatten", "reshape", "view", "permute", "transpose", "t", "contiguous", "squeeze", "unsqueeze", "clone",
        "detach", "unflatten", "movedim", "moveaxis", "swapaxes", "swapdims", "to", "float", "view_as", "reshape_as",
        "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
        "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout",
    }
)  # fmt: skip


# Operations that only select, move or repeat values: what is quantized before them is quantized after them.
_KEEPS = _MOVES | frozenset(
    {
        "getitem", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "select", "narrow", "index_select",
        "gather", "take_along_dim", "expand", "expand_as", "repeat", "repeat_interleave", "tile", "broadcast_to",
        "roll", "flip", "rot90", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample_nearest",
    }
)  # fmt: skip


def moves_values(op: Op) -> bool:
    """Whether an operation only moves values, so that a runtime carries a quantizer over it by itself."""
    return op.name in _MOVES


def keeps_values(op: Op) -> bool:
    """Whether what is quantized before an operation is quantized after it: padding with zero, too."""
    if op.name == "pad":
        return _argument(op, 2, "mode", "constant") != "constant" or not _argument(op, 3, "value", None)
    if op.name in ("interpolate", "upsample"):
        return _argument(op, 3, "mode", "nearest") in ("nearest", "nearest-exact")
    return op.name in _KEEPS


def _argument(op: Op, position: int, name: str, default: Any) -> Any:
    if name in op.keywords:
        return op.keywords[name]
    return op.arguments[position] if len(op.arguments) > position else default


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
