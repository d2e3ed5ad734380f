"""The open form of ``nn.MultiheadAttention`` beside PyTorch's own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.foundation.attention import attend

CAUSAL = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
PADDED = torch.tensor([[False] * 4, [False, False, True, True], [False, False, False, True]])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
        {"attn_mask": CAUSAL, "key_padding_mask": PADDED},
        {"attn_mask": torch.randn(6, 4, 4), "need_weights": False},
    ],
)
@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_it_computes_what_pytorch_computes(
    settings: dict[str, Any], options: dict[str, Any], batch_first: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first, **settings)
    x = torch.randn(3, 4, 8) if batch_first else torch.randn(4, 3, 8)
    expected, found = layer(x, x, x, **options), attend(layer, x, x, x, **options)
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        torch.testing.assert_close(found[1], expected[1])


def test_keys_and_values_of_other_widths_and_lengths() -> None:
    layer = nn.MultiheadAttention(8, 2, kdim=5, vdim=7, batch_first=True)
    call = torch.randn(3, 4, 8), torch.randn(3, 6, 5), torch.randn(3, 6, 7)
    torch.testing.assert_close(attend(layer, *call)[0], layer(*call)[0])


def test_a_call_without_a_batch() -> None:
    layer, x = nn.MultiheadAttention(8, 2), torch.randn(4, 8)
    memory = torch.randn(6, 8)
    found, expected = attend(layer, x, memory, memory), layer(x, memory, memory)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
