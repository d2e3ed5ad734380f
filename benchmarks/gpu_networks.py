"""The networks that ``gpu.py`` measures: a ResNet-50, a ViT-S and a GPT of 124M weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.act, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(self.act(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Blocks over patches of an image, or over tokens."""

    def __init__(self, entry: nn.Module, width: int, depth: int, heads: int, outputs: int, causal: bool) -> None:
        super().__init__()
        self.entry = entry
        self.blocks = nn.Sequential(*(Attention(width, heads, causal) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.entry(x)
        x = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x
        return self.head(self.norm(self.blocks(x)))


def network(name: str, small: bool) -> tuple[nn.Module, torch.Tensor]:
    """A network and a batch.

    Raises:
        ImportError: It is a ResNet-50, and torchvision is missing.
    """
    if name == "ResNet-50":
        from torchvision.models import resnet18, resnet50

        images = torch.randn(2, 3, 64, 64) if small else torch.randn(128, 3, 224, 224)
        made = resnet18() if small else resnet50()
        return made.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    depth, width = (1, 64) if small else (12, 384 if name == "ViT-S" else 768)
    if name == "ViT-S":
        images = torch.randn(2, 3, 32, 32) if small else torch.randn(128, 3, 224, 224)
        return Transformer(nn.Conv2d(3, width, 16, 16), width, depth, width // 64, 1000, False), images
    length, words = (32, 100) if small else (1024, 50304)
    tokens = torch.randint(words, (2 if small else 8, length))
    return Transformer(nn.Embedding(words, width), width, depth, width // 64, words, True), tokens
