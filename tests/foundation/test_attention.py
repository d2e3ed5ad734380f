"""The open form of ``nn.MultiheadAttention`` beside PyTorch's own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_compress.foundation.attention import attend, attend_in_steps

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


SEES_NOTHING = torch.tensor([[True] * 6, [False] * 6, [True, False] * 3, [False] * 5 + [True]])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": SEES_NOTHING},
        {"attn_mask": torch.where(SEES_NOTHING, 0.0, float("-inf"))},
        {"attn_mask": torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(1))},
    ],
)
def test_attention_in_steps_computes_what_pytorch_computes(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    call = torch.randn(3, 4, 4, 8), torch.randn(3, 4, 6, 8), torch.randn(3, 4, 6, 5)
    found = attend_in_steps(*call, **options, weights=lambda shares: shares)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*call, **options))


def test_heads_that_share_a_key_and_dropout() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 4, 4, 8), torch.randn(3, 2, 6, 8), torch.randn(3, 2, 6, 8)
    found = attend_in_steps(query, key, value, enable_gqa=True, weights=lambda shares: shares)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(query, key, value, enable_gqa=True))
    assert not attend_in_steps(query, key, value, dropout_p=1.0, enable_gqa=True, weights=lambda shares: shares).any()


def test_the_function_between_sees_the_softmax() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 8)
    seen = []
    found = attend_in_steps(query, key, value, weights=lambda shares: seen.append(shares) or torch.ones_like(shares))
    torch.testing.assert_close(seen[0], torch.softmax(query @ key.mT / 8**0.5, -1))
    torch.testing.assert_close(found, value.sum(-2, keepdim=True).expand_as(found))
