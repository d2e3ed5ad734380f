"""torch-geometric: a graph classifier on batches of graphs, as its examples write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import Trained
from libraries.own_module import LINES, train_around

REQUIREMENTS = ("torch-geometric",)
__all__ = ["LINES", "REQUIREMENTS", "train"]


def train(callbacks: list[Any], folder: Path) -> Trained:
    """Node classes of random graphs."""
    import torch
    import torch.nn.functional as F
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader
    from torch_geometric.nn import GCN

    network = GCN(in_channels=8, hidden_channels=32, num_layers=2, out_channels=3)
    samples = [
        Data(x=torch.randn(10, 8), edge_index=torch.randint(0, 10, (2, 24)), y=torch.randint(0, 3, (10,)))
        for _ in range(48)
    ]
    loss = lambda net, batch: F.cross_entropy(net(batch.x, batch.edge_index), batch.y)  # noqa: E731
    return train_around(network, loss, samples, callbacks, folder, loader=DataLoader)
