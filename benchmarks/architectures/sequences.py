"""Recurrent networks, speech, recommenders, control and time series, as papers and tutorials write them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from architectures.architecture import Architecture

PYTORCH = "torch"


def _own(name: str, network: Any, inputs: Any, quick: bool = True) -> Architecture:
    return Architecture(f"paper: {name}", PYTORCH, network, inputs, quick)


class LstmTagger(nn.Module):
    """Embedding, two LSTM layers of both directions, a linear layer for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 16)
        self.lstm = nn.LSTM(16, 24, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 7)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embedding(words))[0])


class Tcn(nn.Module):
    """Causal dilated convolutions with residuals (Bai et al. 2018)."""

    def __init__(self, channels: int = 16, levels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, channels, 1)
        self.convolutions = nn.ModuleList(nn.Conv1d(channels, channels, 3, dilation=2**i) for i in range(levels))
        self.head = nn.Linear(channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for level, convolution in enumerate(self.convolutions):
            x = x + F.relu(convolution(F.pad(x, (2 * 2**level, 0))))
        return self.head(x[..., -1])


class DeepFm(nn.Module):
    """Factorization machine and a multilayer perceptron over the same embeddings (Guo et al. 2017)."""

    def __init__(self, fields: int = 6, values: int = 20, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(fields * values, 1), nn.Embedding(fields * values, width)
        self.register_buffer("offsets", torch.arange(fields) * values)
        self.deep = nn.Sequential(
            nn.Linear(fields * width, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1)
        )

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        fields = fields + self.offsets
        factors = self.second(fields)
        pairs = 0.5 * (factors.sum(1).square() - factors.square().sum(1)).sum(1, keepdim=True)
        return self.first(fields).sum(1) + pairs + self.deep(factors.flatten(1))


class ActorCritic(nn.Module):
    """Two heads over one body, with a state-independent deviation (PPO's usual network)."""

    def __init__(self, observations: int = 12, actions: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(observations, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.mean, self.value = nn.Linear(64, actions), nn.Linear(64, 1)
        self.log_std = nn.Parameter(torch.zeros(actions))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.body(x)
        mean = self.mean(x)
        return mean, self.log_std.exp().expand_as(mean), self.value(x)


ARCHITECTURES = [
    _own("LSTM tagger", LstmTagger, lambda batch: (torch.randint(0, 64, (batch, 9)),)),
    _own("TCN", Tcn, lambda batch: (torch.randn(batch, 4, 20),)),
    _own("DeepFM", DeepFm, lambda batch: (torch.randint(0, 20, (batch, 6)),)),
    _own("actor-critic", ActorCritic, lambda batch: (torch.randn(batch, 12),)),
]
