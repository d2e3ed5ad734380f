from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.delivery.output_cache import Remembered


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, factor: Any = 1, bias: Tensor | None = None) -> dict[str, Tensor]:
        self.calls += 1
        x.mul_(2)  # in place on what the caller gave
        return {"scores": x * (factor if isinstance(factor, int) else 1) + (0 if bias is None else bias)}


def test_each_input_runs_once_and_its_outputs_are_nobody_elses() -> None:
    model = Counted()
    remembered = Remembered(model)
    x = torch.randn(3, 4)
    first = remembered(x.clone())["scores"]
    torch.testing.assert_close(first, 2 * x)
    first.zero_()
    for _ in range(2):
        torch.testing.assert_close(remembered(x.clone())["scores"], 2 * x)
    assert model.calls == 1


def test_the_callers_input_is_left_alone() -> None:
    x = torch.ones(2)
    Remembered(Counted())(x)
    assert x.tolist() == [1, 1]


@pytest.mark.parametrize(
    "other",
    [
        ((torch.arange(6.0).reshape(3, 2),), {}),
        ((torch.arange(6.0).reshape(2, 3).double(),), {}),
        ((torch.arange(6.0).reshape(2, 3) + 1,), {}),
        ((torch.arange(6.0).reshape(2, 3),), {"factor": 2}),
        ((torch.arange(6.0).reshape(2, 3),), {"bias": torch.ones(3)}),
    ],
    ids=["shape", "dtype", "values", "number", "keyword"],
)
def test_what_differs_in_anything_runs(other: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    model = Counted()
    remembered = Remembered(model)
    remembered(torch.arange(6.0).reshape(2, 3))
    remembered(*other[0], **other[1])
    assert model.calls == 2


def test_what_has_no_digest_or_no_room_runs_each_time() -> None:
    x = torch.ones(4)
    for remembered, factor in ((Remembered(model := Counted()), object()), (Remembered(model, limit=15), 1)):
        model.calls = 0
        for _ in range(2):
            remembered(x, factor)
        assert model.calls == 2


def test_half_precision_and_empty_tensors_have_digests() -> None:
    model = Counted()
    remembered = Remembered(model)
    for x in (torch.ones(2, dtype=torch.bfloat16), torch.ones(0, 3), torch.tensor(1.0)):
        model.calls = 0
        remembered(x)
        remembered(x)
        assert model.calls == 1
