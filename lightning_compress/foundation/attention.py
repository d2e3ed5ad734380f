"""``nn.MultiheadAttention`` as separate functions: projections, attention, output projection.

PyTorch computes it in one function, inside of which nothing can be quantized, and with a fused kernel in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute the forward of an attention layer, whose heads together may be narrower than its inputs.

    Args:
        module: The layer. Where it lost heads, ``kept_heads`` says which are left of those that ``attn_mask`` is for.
        query: ``[batch, queries, width]``, or as ``batch_first`` and a missing batch have it.
        key: Likewise, ``kdim`` wide.
        value: Likewise, ``vdim`` wide.
        key_padding_mask: As ``nn.MultiheadAttention`` takes it, like all that follow.
        need_weights: Whether to return the attention weights.
        attn_mask: bool or float, ``[queries, keys]`` or ``[batch · heads, queries, keys]``.
        average_attn_weights: Whether to average them over the heads.
        is_causal: That ``attn_mask`` is causal; it must be given.

    Returns:
        What ``nn.MultiheadAttention`` returns.

    Example:
        >>> layer, x = nn.MultiheadAttention(8, 2), torch.randn(3, 1, 8)
        >>> torch.allclose(attend(layer, x, x, x)[0], layer(x, x, x)[0], atol=1e-6)
        True
    """
    if is_causal and attn_mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    batched = query.dim() == 3
    if not batched:
        query, key, value = _each(lambda x: x[:, None], query, key, value)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    elif module.batch_first:
        query, key, value = _each(lambda x: x.transpose(0, 1), query, key, value)
    batch = query.shape[1]
    causal = is_causal and key_padding_mask is None and not need_weights
    kept: Sequence[int] | None = getattr(module, "kept_heads", None)
    mask = _mask(None if causal else attn_mask, key_padding_mask, kept, batch, query.dtype)
    q, k, v = _project(module, query, key, value)
    if module.bias_k is not None and module.bias_v is not None:
        k, v = (torch.cat([x, b.expand(-1, batch, -1)]) for x, b in ((k, module.bias_k), (v, module.bias_v)))
        mask = None if mask is None else F.pad(mask, (0, 1))
    if module.add_zero_attn:
        k, v = (F.pad(x, (0, 0, 0, 0, 0, 1)) for x in (k, v))
        mask = None if mask is None else F.pad(mask, (0, 1))
    heads = batch * module.num_heads
    # Shapes and not len(), which is a plain number in a trace.
    q, k, v = (
        x.reshape(x.shape[0], heads, -1).transpose(0, 1).reshape(batch, module.num_heads, x.shape[0], -1)
        for x in (q, k, v)
    )
    dropout = module.dropout if module.training else 0.0
    weights: Tensor | None = None
    if need_weights:
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = F.dropout(weights, dropout) if dropout else weights
        attended = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights if batched else weights[0]
    else:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    out = F.linear(attended.permute(2, 0, 1, 3).flatten(2), module.out_proj.weight, module.out_proj.bias)
    if not batched:
        return out[:, 0], weights
    return out.transpose(0, 1) if module.batch_first else out, weights


def attend_in_steps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    weights: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute ``F.scaled_dot_product_attention`` as two matrix products, with a function of the weights between them.

    The factor comes behind the first product and not before it, where an integer kernel would not be found.

    Args:
        query: As ``F.scaled_dot_product_attention`` takes it, like all that follow: ``[..., queries, width]``.
        key: ``[..., keys, width]``.
        value: ``[..., keys, values]``.
        attn_mask: bool (true where a key is seen) or float.
        dropout_p: Share of the weights that is dropped.
        is_causal: Whether query ``i`` sees the keys up to ``i``.
        scale: Factor of the scores; one over the root of the width by default.
        enable_gqa: Whether several heads of the query share one of key and value.
        weights: Takes the softmax's result, ``[..., queries, keys]``, and returns what the values are multiplied by.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 8)
        >>> expected = F.scaled_dot_product_attention(q, k, v)
        >>> torch.allclose(attend_in_steps(q, k, v, weights=lambda w: w), expected, atol=1e-6)
        True
    """
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        shares = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1)
    elif attn_mask is not None:
        masked = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
        # A query that sees no key gets zeros.
        finite = masked.clamp(min=torch.finfo(scores.dtype).min)
        shares = torch.softmax(finite, -1).masked_fill(masked == float("-inf"), 0.0)
    else:
        shares = torch.softmax(scores, -1)
    shares = weights(shares)
    return (F.dropout(shares, dropout_p) if dropout_p else shares) @ value


def _each(change: Callable[[Tensor], Tensor], query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
    """Change three tensors of which several may be one and the same, and stay so."""
    made = {id(x): change(x) for x in (query, key, value)}
    return [made[id(x)] for x in (query, key, value)]


def _project(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
    bias, weight = module.in_proj_bias, module.in_proj_weight
    if weight is not None and query is key and key is value:
        return F.linear(query, weight, bias).chunk(3, -1)
    matrices: Sequence[Tensor] = (
        weight.chunk(3) if weight is not None else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    )
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return [F.linear(x, w, b) for x, w, b in zip((query, key, value), matrices, biases, strict=True)]


def _mask(
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    kept: Sequence[int] | None,
    batch: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """Both masks as one to add, ``[batch or 1, heads or 1, queries or 1, keys]``."""
    total: Tensor | None = None
    if attn_mask is not None:
        total = _additive(attn_mask, dtype)
        total = total.unflatten(0, (batch, -1)) if total.dim() == 3 else total[None, None]
        if kept is not None and total.shape[1] > 1:
            total = total[:, list(kept)]
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, dtype)[:, None, None, :]
        total = padding if total is None else total + padding
    return total


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
