"""Tensors in nested arguments and results, and whose containers they stay in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.quantization import find, prepare


class Output(OrderedDict[str, torch.Tensor]):
    """Shows its items as attributes, as outputs of transformers do."""

    def __init__(self, **items: torch.Tensor) -> None:
        super().__init__()
        for name, item in items.items():
            self[name] = item

    def __setitem__(self, name: str, item: torch.Tensor) -> None:
        super().__setitem__(name, item)
        setattr(self, name, item)


class Reader(nn.Module):
    """Two layers read one entry of a dictionary, so that it is quantized where it comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(4, 8)
        self.seen: Any = None

    def forward(self, batch: Any) -> torch.Tensor:
        self.seen = batch["part"]
        return self.first(batch["part"]["x"]) + self.second(batch["part"]["x"])


def reading(make: Callable[..., Any]) -> tuple[nn.Module, dict[str, Any]]:
    model, batch = nn.Sequential(Reader(), nn.Linear(8, 2)), {"part": make(x=torch.randn(16, 4)), "name": "one"}
    return prepare(model, activation_bits=3, first_last_bits=None, example_inputs=(batch, {})), batch


@pytest.mark.parametrize("make", [dict, OrderedDict, Output])
def test_a_callers_dictionary_stays_as_it_is(make: Callable[..., Any]) -> None:
    model, batch = reading(make)
    part, x, values = batch["part"], batch["part"]["x"], batch["part"]["x"].clone()
    for _ in range(2):
        model.train()(batch)
    assert batch["part"] is part
    assert part["x"] is x
    assert torch.equal(x, values)
    seen = model[0].seen
    assert type(seen) is make
    assert seen["x"].unique().numel() <= 8
    if make is Output:
        assert seen.x is seen["x"]
        assert part.x is x


@pytest.mark.parametrize("make", [dict, OrderedDict])
def test_dictionaries_as_arguments_compile_without_a_graph_break(make: Callable[..., Any]) -> None:
    model, batch = reading(make)
    model.train()(batch)
    expected = model.eval()(batch)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(batch), expected)


@pytest.mark.parametrize("make", [dict, Output])
def test_a_result_is_quantized_where_its_module_keeps_it_too(make: Callable[..., Any]) -> None:
    class Keeper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 6)
            self.kept: Any = None

        def forward(self, x: torch.Tensor) -> Any:
            self.kept = make(x=self.layer(x).tanh())
            return self.kept

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Keeper(), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x)["x"])

    model = prepare(Outer(), activation_bits=3, first_last_bits=None, example_inputs=torch.randn(2, 4))
    assert "body:output[x]" in find(model).activations
    model.train()(torch.randn(16, 4))
    assert type(model.body.kept) is make
    assert model.body.kept["x"].unique().numel() <= 8
    if make is Output:
        assert model.body.kept.x is model.body.kept["x"]
