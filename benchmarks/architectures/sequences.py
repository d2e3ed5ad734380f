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


class Dqn(nn.Module):
    """Three convolutions over frames of a game, then two linear layers (Mnih et al. 2015)."""

    def __init__(self, actions: int = 4) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()
        )
        self.value, self.advantage = (
            nn.Sequential(nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, out)) for out in (1, actions)
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = self.convolutions(frames / 255).flatten(1)
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(1, keepdim=True)


class Dlrm(nn.Module):
    """Dense features and embeddings that meet in their products (Naumov et al. 2019)."""

    def __init__(self, tables: int = 4, values: int = 20, width: int = 16) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(values, width) for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, width), nn.ReLU())
        pairs = (tables + 1) * tables // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 32), nn.ReLU(), nn.Linear(32, 1))
        self.register_buffer("pairs", torch.tril_indices(tables + 1, tables + 1, -1))

    def forward(self, numbers: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        dense = self.bottom(numbers)
        features = torch.stack([dense, *(table(categories[:, i]) for i, table in enumerate(self.tables))], 1)
        products = features @ features.transpose(1, 2)
        return self.top(torch.cat([dense, products[:, self.pairs[0], self.pairs[1]]], 1))


class NeuralCollaborativeFiltering(nn.Module):
    """A product and a multilayer perceptron of users and items (He et al. 2017)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(30, 2 * width), nn.Embedding(50, 2 * width)
        self.deep = nn.Sequential(nn.Linear(2 * width, 32), nn.ReLU(), nn.Linear(32, width), nn.ReLU())
        self.head = nn.Linear(2 * width, 1)

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        (user, deep_user), (item, deep_item) = self.users(users).chunk(2, -1), self.items(items).chunk(2, -1)
        return self.head(torch.cat([user * item, self.deep(torch.cat([deep_user, deep_item], -1))], -1))


class WaveNet(nn.Module):
    """Gated dilated convolutions with skips (van den Oord et al. 2016)."""

    def __init__(self, channels: int = 16, levels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, channels, 1)
        self.gates = nn.ModuleList(
            nn.Conv1d(channels, 2 * channels, 2, dilation=2**level, padding=2**level) for level in range(levels)
        )
        self.mixes = nn.ModuleList(nn.Conv1d(channels, 2 * channels, 1) for _ in range(levels))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(channels, channels, 1), nn.ReLU(), nn.Conv1d(channels, 8, 1))

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        x, skips = self.stem(wave), 0.0
        for gate, mix in zip(self.gates, self.mixes, strict=True):
            value, opening = gate(x)[..., : x.shape[-1]].chunk(2, 1)
            residual, skip = mix(value.tanh() * opening.sigmoid()).chunk(2, 1)
            x, skips = x + residual, skips + skip
        return self.head(skips)


class Crnn(nn.Module):
    """Convolutions over a spectrogram, then a GRU of both directions over time (Shi et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d((2, 1)),
        )  # fmt: skip
        self.recurrent = nn.GRU(16 * 4, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 11)

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        x = self.convolutions(spectrogram).flatten(1, 2).transpose(1, 2)
        return self.head(self.recurrent(x)[0])


class NBeats(nn.Module):
    """Blocks that explain a part of the past each and sum their forecasts (Oreshkin et al. 2020)."""

    def __init__(self, past: int = 20, future: int = 5, blocks: int = 3) -> None:
        super().__init__()
        self.past = past
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(past, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, past + future))
            for _ in range(blocks)
        )

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        forecast = 0.0
        for block in self.blocks:
            explained = block(series)
            series, forecast = series - explained[:, : self.past], forecast + explained[:, self.past :]
        return forecast


class Conformer(nn.Module):
    """One block: half a feed-forward, attention, convolution, half a feed-forward (Gulati et al. 2020)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def feed_forward() -> nn.Module:
            return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, width))

        self.stem, self.first, self.last = nn.Linear(20, width), feed_forward(), feed_forward()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.before = nn.LayerNorm(width)
        self.convolution = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1), nn.GLU(1), nn.Conv1d(width, width, 5, padding=2, groups=width),
            nn.BatchNorm1d(width), nn.SiLU(), nn.Conv1d(width, width, 1),
        )  # fmt: skip
        self.head = nn.Linear(width, 8)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = self.stem(frames)
        x = x + 0.5 * self.first(x)
        query = self.norm(x)
        x = x + self.attention(query, query, query, need_weights=False)[0]
        x = x + self.convolution(self.before(x).transpose(1, 2)).transpose(1, 2)
        return self.head(x + 0.5 * self.last(x))


ARCHITECTURES = [
    _own("LSTM tagger", LstmTagger, lambda batch: (torch.randint(0, 64, (batch, 9)),)),
    _own("TCN", Tcn, lambda batch: (torch.randn(batch, 4, 20),)),
    _own("DeepFM", DeepFm, lambda batch: (torch.randint(0, 20, (batch, 6)),)),
    _own("actor-critic", ActorCritic, lambda batch: (torch.randn(batch, 12),)),
    _own("dueling DQN", Dqn, lambda batch: (torch.rand(batch, 4, 64, 64) * 255,), quick=False),
    _own("DLRM", Dlrm, lambda batch: (torch.randn(batch, 6), torch.randint(0, 20, (batch, 4))), quick=False),
    _own(
        "NCF",
        NeuralCollaborativeFiltering,
        lambda batch: (torch.randint(0, 30, (batch,)), torch.randint(0, 50, (batch,))),
        quick=False,
    ),
    _own("WaveNet", WaveNet, lambda batch: (torch.randn(batch, 1, 40),), quick=False),
    _own("CRNN", Crnn, lambda batch: (torch.randn(batch, 1, 16, 24),), quick=False),
    _own("N-BEATS", NBeats, lambda batch: (torch.randn(batch, 20),), quick=False),
    _own("Conformer", Conformer, lambda batch: (torch.randn(batch, 12, 20),), quick=False),
]
