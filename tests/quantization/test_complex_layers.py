"""Layers of complex numbers stay float and are named."""

from __future__ import annotations

import torch
from torch import nn

from lightning_compress.quantization import find, prepare


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.spectral, self.last = nn.Linear(8, 8), nn.Linear(8, 8, dtype=torch.cfloat), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.spectral(self.first(x).to(torch.cfloat)).abs())


def test_a_complex_layer_stays_float_and_is_named() -> None:
    net, x = Spectral(), torch.randn(4, 8)
    quantization = find(prepare(net, example_inputs=x))
    assert set(quantization.layers) == {"first.weight", "last.weight"}
    assert [line.partition(":")[0] for line in quantization.unreached] == ["spectral.weight"]
    net.train()(x).sum().backward()
    assert net.spectral.weight.grad is not None
