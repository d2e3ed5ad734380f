"""Attention with fewer heads than its width has room for: the forms that shrunk attention layers take.

``nn.MultiheadAttention`` and most attention written by hand divide the model's width by the number of heads. Once
heads are gone that division is wrong, so the layers whose sizes cannot be changed from outside get one of these
forward methods. Parameters and their names stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_compress.foundation.attention import attend


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
        return attend(
            self, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        )


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
    """Puts its outputs back in their places; removed ones, which nothing reads, are filled with any other."""

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
