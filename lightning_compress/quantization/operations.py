"""Names of operations on a recorded forward, by kind."""

from __future__ import annotations

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
