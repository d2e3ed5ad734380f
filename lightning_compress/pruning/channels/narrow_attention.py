"""Attention with fewer heads than its width has room for: the forms that shrunk attention layers take.

``nn.MultiheadAttention`` and most attention written by hand divide the model's width by the number of heads. Once
heads are gone that division is wrong, so the layers whose sizes cannot be changed from outside get one of these
forward methods. Parameters and their names stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FewerHeads(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose heads together are narrower than its inputs; made by :func:`keep_heads`."""

    kept_heads: tuple[int, ...]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as ``nn.MultiheadAttention`` does, with its arguments; ``is_causal`` needs ``attn_mask`` here too."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x[None] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in self._project(query, key, value))
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            attended = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out = F.linear(attended.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not batched:
            return out[0], weights
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
        matrices: Sequence[Tensor]
        if self.in_proj_weight is not None:
            matrices = self.in_proj_weight.chunk(3)
        else:
            matrices = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        inputs = (query, key, value)
        return [F.linear(x, w, b) for x, w, b in zip(inputs, matrices, biases, strict=True)]

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one to add, ``[batch or 1, heads or 1, queries or 1, keys]``."""
        total: Tensor | None = None
        if attn_mask is not None:
            total = _additive(attn_mask, q.dtype)
            if total.dim() == 3:
                # A mask for each head is made for the heads there were.
                total = total.unflatten(0, (q.shape[0], -1))[:, list(self.kept_heads)]
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, q.dtype)[:, None, None, :]
            total = padding if total is None else total + padding
        return total


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))


def keep_heads(model: nn.Module, name: str, kept: Sequence[int]) -> None:
    """Let an ``nn.MultiheadAttention`` whose weights are cut compute with the heads that it still has.

    Args:
        model: The model.
        name: The attention layer's full name.
        kept: Which of its heads are left.
    """
    module = model.get_submodule(name)
    module.__class__ = FewerHeads
    module.kept_heads = tuple(kept)  # type: ignore[assignment]
    module.num_heads = len(kept)  # type: ignore[assignment]
    # Transformer layers take a fused path for attention they know; these tell them that it is not that.
    module._qkv_same_embed_dim = False  # type: ignore[assignment]
    for path, around in model.named_modules():
        if isinstance(around, nn.TransformerEncoder) and name.startswith(f"{path}." if path else ""):
            around.use_nested_tensor = False


class Gathered(nn.Linear):
    """A linear layer some of whose channels are gone, where the code around it wants all of them."""

    positions: Tensor


class GatheredRows(Gathered):
    """Puts its outputs where they were; in the place of those that are gone, which nothing reads, stands any other."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute ``[..., out_features]``, spread to ``[..., len(positions)]``."""
        return super().forward(input).index_select(-1, self.positions)


class GatheredColumns(Gathered):
    """Takes from its inputs those that it still reads."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute from ``[..., n]`` the ``in_features`` at ``positions``."""
        return super().forward(input.index_select(-1, self.positions))


def gather(module: nn.Module, side: str, positions: Sequence[int]) -> None:
    """Let a linear layer with cut weights take its place among code that has the old sizes.

    Args:
        module: An ``nn.Linear``.
        side: ``"rows"`` or ``"columns"``, whichever were cut.
        positions: Of rows: for each old output the new one to put there. Of columns: the old inputs that are read.
    """
    module.__class__ = GatheredRows if side == "rows" else GatheredColumns
    device = next(module.parameters()).device
    module.register_buffer("positions", torch.tensor(list(positions), device=device), persistent=False)
