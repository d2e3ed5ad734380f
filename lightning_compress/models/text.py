"""Small transformers over tokens: one that classifies a text, one that predicts the next token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.models.transformer import EncoderBlock, refuse_heads


class TokenBlocks(nn.Module):
    """Embedding, learned positions, pre-norm blocks, a final norm.

    Args:
        vocabulary: Number of tokens.
        length: Longest text, in tokens.
        dim: Features of a token.
        depth: Number of blocks.
        heads: Number of attention heads; divides ``dim``.
        expansion: Hidden features of each perceptron over ``dim``.
        dropout: Share of features dropped.
        causal: Whether a token sees only itself and those before it.

    Raises:
        CompressionError: There are no tokens, or ``heads`` does not divide.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        dim: int,
        depth: int,
        heads: int,
        expansion: int,
        dropout: float,
        causal: bool,
    ) -> None:
        super().__init__()
        if vocabulary < 2 or length < 1:
            raise CompressionError.field(
                "model.net",
                expected="a vocabulary of two tokens and a length of one, or more",
                got=(vocabulary, length),
                fix="Choose a text for it, such as data=text_banking77 or data=tinyshakespeare.",
            )
        refuse_heads("model.net.heads", dim, heads)
        self.embed = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(torch.empty(1, length, dim))
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads, expansion, dropout, causal) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map int64 [B, T] to features float32 [B, T, dim]."""
        features: Tensor = self.norm(self.blocks(self.drop(self.embed(tokens) + self.position)))
        return features


class TextEncoder(nn.Module):
    """A transformer encoder over words, the mean over tokens, a linear layer. Padding is a token like others.

    Args:
        vocabulary: Number of tokens.
        length: Tokens of a text.
        num_classes: Number of classes.
        dim: Features of a token.
        depth: Number of blocks.
        heads: Number of attention heads; divides ``dim``.
        expansion: Hidden features of each perceptron over ``dim``.
        dropout: Share of features dropped.

    Example:
        >>> TextEncoder(100, 8, 5, dim=16)(torch.zeros(3, 8, dtype=torch.int64)).shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        num_classes: int,
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        expansion: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.body = TokenBlocks(vocabulary, length, dim, depth, heads, expansion, dropout, causal=False)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map int64 [B, length] to logits float32 [B, num_classes]."""
        logits: Tensor = self.fc(self.body(tokens).mean(dim=1))
        return logits


class GPT(nn.Module):
    """A decoder that predicts each token from those before it, after Radford and others 2019.

    Args:
        vocabulary: Number of tokens.
        length: Tokens of a piece of text.
        dim: Features of a token.
        depth: Number of blocks.
        heads: Number of attention heads; divides ``dim``.
        expansion: Hidden features of each perceptron over ``dim``.
        dropout: Share of features dropped.

    Example:
        >>> GPT(65, 8, dim=16)(torch.zeros(3, 8, dtype=torch.int64)).shape
        torch.Size([3, 8, 65])
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        expansion: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.body = TokenBlocks(vocabulary, length, dim, depth, heads, expansion, dropout, causal=True)
        self.head = nn.Linear(dim, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map int64 [B, length] to logits of each next token, float32 [B, length, vocabulary]."""
        logits: Tensor = self.head(self.body(tokens))
        return logits
