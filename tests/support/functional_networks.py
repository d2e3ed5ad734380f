"""Small networks whose forwards call functions between layers, or read weights in ways of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class NormActivation(nn.BatchNorm2d):
    """A batch norm that applies the activation itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(super().forward(x))


def norm_activation() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), NormActivation(8), nn.Conv2d(8, 8, 3, bias=False), NormActivation(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


class Causal(nn.Module):
    """Convolutions over time that see the past alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(F.pad(x.flatten(2), (2, 0))))
        return self.head(F.relu(self.second(F.pad(x, (2, 0))))[..., -1])


class Decoder(nn.Module):
    """Nearest interpolation, beside a skip connection; and sums of what functions made."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep, self.up = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(12, 4, 3, 1, 1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = F.relu(self.down(x))
        deep = F.interpolate(F.relu(self.deep(skip)), scale_factor=2.0, mode="nearest")
        return self.head((skip + F.relu(self.norm(self.up(torch.cat([deep, skip], 1))))).mean((2, 3)))


class Halves(nn.Module):
    """A tensor that is cut in two, of which each has a layer; circular padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, padding_mode="circular")
        self.left, self.right, self.head = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = F.relu(self.stem(x)).chunk(2, 1)
        return self.head(F.relu(torch.cat([self.left(left), self.right(right)], 1)).mean((2, 3)))


class ClassToken(nn.Module):
    """One token of a sequence, and a cross-attention from it to all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(24, 32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = self.norm(self.embed(x.transpose(1, 2).flatten(2)))
        token, _ = self.attention(memory[:, :1], memory, memory, need_weights=False)
        return self.head((token + memory[:, :1])[:, 0])


class InOut(nn.Module):
    """A layer that holds its weight as [in, out], as GPT-2 does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) * 0.1), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Products(nn.Module):
    """Weights in addmm, ``@``, ``@`` of a transposed one, einsum and baddbmm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = InOut(192, 16), nn.Parameter(torch.randn(16, 16) * 0.3)
        self.third, self.fourth = nn.Parameter(torch.randn(16, 16) * 0.3), nn.Parameter(torch.randn(16, 4, 4) * 0.3)
        self.fifth, self.head = nn.Parameter(torch.randn(4, 4, 4) * 0.3), nn.Linear(16, 5)
        self.shift = nn.Parameter(torch.zeros(4, 1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.relu(self.first(x.flatten(1))) @ self.second)
        x = F.relu(x @ self.third.transpose(0, 1))
        x = F.relu(torch.einsum("bi,iho->hbo", x, self.fourth))
        x = F.relu(torch.baddbmm(self.shift, x, self.fifth))
        return self.head(x.transpose(0, 1).flatten(1))


class Cells(nn.Module):
    """Recurrent cells in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm, self.head = nn.GRUCell(24, 16), nn.LSTMCell(16, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = x.transpose(1, 2).flatten(2)[:, :3]
        hidden = torch.zeros_like(steps[:, 0, :16])
        short, long = hidden, hidden
        for step in steps.unbind(1):
            hidden = self.gru(step, hidden)
            short, long = self.lstm(hidden, (short, long))
        return self.head(short)
