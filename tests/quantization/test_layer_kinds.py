"""Every kind of layer against plain PyTorch that is given weights and inputs which NumPy quantized."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_compress.quantization import find, prepare

KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), (2, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), (2, 2, 4, 4, 4)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), (2, 4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (2, 4, 6, 6)),
    "transposed1d": (lambda: nn.ConvTranspose1d(3, 4, 3, 2), (2, 3, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1), (2, 3, 5, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2, 2), (2, 2, 3, 3, 3)),
    "grouped transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, 2, groups=2), (2, 4, 3, 3)),
    "lstm": (lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True), (3, 2, 4)),
    "projected lstm": (lambda: nn.LSTM(4, 6, proj_size=3), (3, 2, 4)),
    "gru": (lambda: nn.GRU(4, 5, batch_first=True), (3, 2, 4)),
    "attention": (lambda: SelfAttention(8, 2), (3, 2, 8)),
    "embedding": (lambda: nn.Embedding(7, 5), (4, 3)),
    "functional linear": (lambda: Function(F.linear, 4, 6), (5, 6)),
    "functional conv2d": (lambda: Function(F.conv2d, 4, 3, 3, 3), (2, 3, 6, 6)),
    "functional transposed1d": (lambda: Function(F.conv_transpose1d, 3, 4, 3), (2, 3, 5)),
}


class Function(nn.Module):
    """A function on parameters of the module's own, without a layer."""

    def __init__(self, function: Any, *shape: int) -> None:
        super().__init__()
        self.function = function
        self.my_weight = nn.Parameter(torch.randn(shape))
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.my_weight, self.shift)


class SelfAttention(nn.MultiheadAttention):
    """One tensor as query, key and value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, x, x)[0]


def on_weight_grid(weight: torch.Tensor, axis: int, qmax: int) -> torch.Tensor:
    values = weight.detach().numpy()
    others = tuple(dim for dim in range(values.ndim) if dim != axis)
    scale = np.abs(values).max(axis=others, keepdims=True) / np.float32(qmax)
    return torch.from_numpy(np.clip(np.rint(values / scale), -qmax, qmax) * scale)


def on_input_grid(x: torch.Tensor, seen: torch.Tensor, levels: int) -> torch.Tensor:
    values, low, high = x.numpy(), np.float32(min(0.0, seen.min())), np.float32(max(0.0, seen.max()))
    scale = high / np.float32(levels) - low / np.float32(levels)
    zero = np.rint(-low / scale)
    return torch.from_numpy((np.clip(np.rint(values / scale) + zero, 0, levels) - zero) * scale)


def on_sum_grid(bias: torch.Tensor, weight: torch.Tensor, axis: int, seen: torch.Tensor) -> torch.Tensor:
    """A bias in steps of the input's scale times the weight's, whose integers of 4 bits fill int8: 7 * 16 = 112."""
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    weight_scale = np.abs(weight.numpy()).max(axis=others) / np.float32(7) / np.float32(16)
    low, high = np.float32(min(0.0, seen.min())), np.float32(max(0.0, seen.max()))
    scale = (weight_scale * (high / np.float32(63) - low / np.float32(63))).astype(np.float64)
    return torch.from_numpy(np.rint(bias.numpy().astype(np.float64) / scale) * scale).float()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_with_hand_quantized_weights_and_inputs(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    layer = make()
    tokens = isinstance(layer, nn.Embedding)
    seen, x = (torch.randint(0, 7, shape) if tokens else torch.randn(shape) * 2 for _ in range(2))
    plain = copy.deepcopy(layer)
    weights = {name: weight for name, weight in plain.named_parameters() if "weight" in name}
    axis = 1 if "transposed" in kind else 0
    with torch.no_grad():
        for name, bias in plain.named_parameters():
            # Recurrent layers and attention have none of that name; transposed groups share a scale among channels.
            if name in ("bias", "shift") and kind != "grouped transposed":
                (weight,) = weights.values()
                bias.copy_(on_sum_grid(bias, weight, axis, seen))
        for weight in weights.values():
            weight.copy_(on_weight_grid(weight, axis, 7))
    prepare(layer, weight_bits=4, activation_bits=6, backend=None, example_inputs=seen)
    assert set(find(layer).layers) == set(weights)
    layer.train()(seen)
    layer.eval()
    inputs = x if tokens else on_input_grid(x, seen, 63)
    actual, expected = (out[0] if isinstance(out, tuple) else out for out in (layer(x), plain(inputs)))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(expected)
    actual.backward(upstream)
    expected.backward(upstream)
    # Straight through: a covering range passes every gradient on to the float weight.
    for (name, parameter), reference in zip(layer.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, reference.grad, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
