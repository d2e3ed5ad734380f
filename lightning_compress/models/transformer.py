"""A small transformer encoder over image patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.errors import CompressionError


def refuse_heads(field: str, dim: int, heads: int) -> None:
    """Check that a token's features can be shared out among attention heads.

    Raises:
        CompressionError: They cannot.
    """
    if heads < 1 or dim % heads:
        raise CompressionError.field(field, expected=f"a divisor of the token size {dim}", got=heads)


class Attention(nn.Module):
    """Multi-head self-attention of plain linear layers.

    Args:
        dim: Features of a token.
        heads: Number of heads; divides ``dim``.
        causal: Whether a token sees only itself and those before it.
    """

    def __init__(self, dim: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [B, T, dim] to the same shape."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class EncoderBlock(nn.Module):
    """Attention and a two-layer perceptron, each after a layer norm and added to its input.

    Args:
        dim: Features of a token.
        heads: Number of attention heads.
        expansion: Hidden features of the perceptron over ``dim``.
        dropout: Share of features dropped before each add.
        causal: Whether a token sees only itself and those before it.
    """

    def __init__(self, dim: int, heads: int, expansion: int, dropout: float, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, causal)
        self.fc1, self.act, self.fc2 = (
            nn.Linear(dim, expansion * dim),
            nn.GELU(),
            nn.Linear(expansion * dim, dim),
        )
        self.drop1, self.drop2 = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [B, T, dim] to the same shape."""
        x = x + self.drop1(self.attention(self.norm1(x)))
        x = x + self.drop2(self.fc2(self.act(self.fc1(self.norm2(x)))))
        return x


class TransformerEncoder(nn.Module):
    """Patches as tokens, learned positions, pre-norm blocks, mean over tokens (Dosovitskiy and others 2021).

    Args:
        in_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        num_classes: Number of classes.
        patch: Height and width of a patch; divides ``image_size``.
        dim: Features of a token.
        depth: Number of blocks.
        heads: Number of attention heads; divides ``dim``.
        expansion: Hidden features of each perceptron over ``dim``.
        dropout: Share of features dropped.

    Raises:
        CompressionError: ``patch`` or ``heads`` do not divide.

    Example:
        >>> TransformerEncoder(1, 8, 10, patch=2, dim=16, heads=2)(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        num_classes: int,
        patch: int = 4,
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        expansion: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if patch < 1 or image_size % patch:
            raise CompressionError.field(
                "TransformerEncoder.patch", expected=f"a divisor of the image size {image_size}", got=patch
            )
        refuse_heads("TransformerEncoder.heads", dim, heads)
        tokens = (image_size // patch) ** 2
        self.embed = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.position = nn.Parameter(torch.empty(1, tokens, dim))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads, expansion, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [B, C, H, W] to logits float32 [B, num_classes]."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.fc(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits
