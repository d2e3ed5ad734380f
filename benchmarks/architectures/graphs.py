"""Graph networks of torch-geometric."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from architectures.architecture import Architecture

NODES, EDGES = 24, 80


def graph(features: int = 8) -> Any:
    """Node features ``[24, features]`` and edges ``[2, 80]``: a graph has no batch."""
    return lambda batch: (torch.randn(NODES, features), torch.randint(0, NODES, (2, EDGES)))


def _geometric(name: str, inputs: Any = None, title: str | None = None, **settings: Any) -> Architecture:
    def build() -> nn.Module:
        import torch_geometric.nn as pyg

        return getattr(pyg, name)(**settings)

    return Architecture(f"torch-geometric: {title or name}", "torch-geometric", build, inputs or graph())


def _edges(batch: int) -> Any:
    return (*graph()(batch), torch.randint(0, 3, (EDGES,)))


_BASIC: dict[str, Any] = {"in_channels": 8, "hidden_channels": 32, "num_layers": 2, "out_channels": 4}

ARCHITECTURES = [
    _geometric("GCN", **_BASIC),
    _geometric("GraphSAGE", **_BASIC),
    _geometric("GAT", **_BASIC),
    _geometric("GAT", title="GATv2", v2=True, heads=2, **_BASIC),
    _geometric("GIN", **_BASIC),
    _geometric("EdgeCNN", **_BASIC),
    _geometric("TransformerConv", in_channels=8, out_channels=8, heads=2),
    _geometric("ChebConv", in_channels=8, out_channels=8, K=2),
    _geometric("RGCNConv", _edges, in_channels=8, out_channels=8, num_relations=3),
    _geometric(
        "LightGCN", lambda batch: (torch.randint(0, NODES, (2, EDGES)),), num_nodes=NODES, embedding_dim=8, num_layers=2
    ),
    _geometric(
        "MLP", lambda batch: (torch.randn(batch, 8),), in_channels=8, hidden_channels=32, out_channels=4, num_layers=3
    ),
]
