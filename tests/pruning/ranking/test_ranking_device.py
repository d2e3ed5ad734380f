from __future__ import annotations

import math

import pytest
import torch

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.ranking import device, nan_checks, smallest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("count", [0, 1, 20, 33, 57, 58])
def test_masks_equal_those_of_the_cpu_ties_included(
    dtype: torch.dtype, absolute: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_CHUNK", 7)
    for ties in (True, False):
        scores = [(torch.randn(n) * 2).to(dtype) for n in (5, 13, 40)]
        scores = [score.round() if ties else score for score in scores]
        scores[1][:3], scores[2] = math.inf if absolute else -math.inf, scores[2].reshape(5, 8).t()
        masks = [torch.rand(score.shape) > 0.3 for score in scores]
        wanted, found = [m.clone() for m in masks], [m.clone() for m in masks]
        smallest.prune_smallest(scores, wanted, count, absolute=absolute)
        given = torch.tensor(count) if ties else count
        nans = device.prune_smallest(scores, found, given, absolute=absolute)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert nans.tolist() == [0, 0, 0]


def test_with_nan_masks_stay_as_they_are() -> None:
    scores, mask = [torch.tensor([1.0, math.nan, 3.0])], torch.tensor([True, False, True])
    assert device.prune_smallest(scores, [mask], 2, absolute=True).tolist() == [1]
    assert mask.tolist() == [True, False, True]


def test_checks_are_put_off_and_named_at_the_end() -> None:
    count = torch.zeros((), dtype=torch.int64, device="meta")
    with nan_checks.deferred() as checks:
        nan_checks.refuse_nan(count, "a: {bad} NaN")
        with pytest.raises(CompressionError, match="b: 2 NaN"):
            nan_checks.refuse_nan(torch.tensor(2), "b: {bad} NaN")
        checks._pending[0] = (torch.tensor(3), "a: {bad} NaN")
        assert bool(checks.found(torch.device("cpu")))
        with pytest.raises(CompressionError, match="a: 3 NaN"):
            checks.refuse()
