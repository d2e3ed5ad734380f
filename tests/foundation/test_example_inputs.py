"""Example inputs as arguments, and the samples in them."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from lightning_compress.foundation.example_inputs import batch_size, call_arguments, first_samples, in_float32


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    index: torch.Tensor


def test_named_tuples_and_dataclasses_are_one_argument() -> None:
    pair = Pair(torch.zeros(1), torch.zeros(1))
    batch = Batch(torch.zeros(1), torch.zeros(1))
    assert call_arguments(pair) == ((pair,), {})
    assert call_arguments(batch) == ((batch,), {})


def test_a_mapping_is_keyword_arguments_only_where_the_forward_takes_them() -> None:
    def named(x: Any, mask: Any = None) -> None: ...

    def whole(batch: Any) -> None: ...

    assert call_arguments({"x": 1}, named) == ((), {"x": 1})
    assert call_arguments({"x": 1}, whole) == (({"x": 1},), {})
    assert call_arguments((1, {"mask": 2}), named) == ((1,), {"mask": 2})
    assert call_arguments(({"x": 1}, {}), whole) == (({"x": 1},), {})


def test_samples_cannot_be_told_apart_where_integers_may_point_at_rows() -> None:
    nodes, edges = torch.zeros(20, 5), torch.zeros(2, 60, dtype=torch.long)
    assert batch_size((nodes, edges)) is None
    assert first_samples((nodes, edges), 1)[0] is nodes
    assert batch_size((nodes, torch.zeros(1, 7, dtype=torch.long))) == 20


def test_the_first_samples_of_a_frozen_dataclass_leave_it_as_it_is() -> None:
    batch = Batch(torch.randn(8, 3), torch.arange(8))
    cut = first_samples(batch, 2)
    assert torch.equal(cut.x, batch.x[:2])
    assert cut.index.tolist() == [0, 1]
    assert len(batch.x) == 8


def test_single_precision_reaches_into_dataclasses() -> None:
    cut = in_float32([Batch(torch.zeros(1, dtype=torch.float64), torch.arange(1))])[0]
    assert (cut.x.dtype, cut.index.dtype) == (torch.float32, torch.int64)
