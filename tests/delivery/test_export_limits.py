"""Limits that an export's numbers must keep."""

from __future__ import annotations

import pytest

from lightning_compress.delivery.findings import Findings, Result
from lightning_compress.delivery.limits import Limits


def found(dense: float, deployed: float) -> Findings:
    results = {
        form: Result(form, None, "", 1, {"m": value}) for form, value in (("dense", dense), ("deployed", deployed))
    }
    return Findings(results=results)


@pytest.mark.parametrize(
    ("mode", "dense", "deployed", "holds"),
    [
        ("max", 0.95, 0.93, True),
        ("max", 0.95, 0.90, False),
        ("max", 0.90, 0.95, True),
        ("min", 0.30, 0.32, True),
        ("min", 0.30, 0.40, False),
        ("min", 0.40, 0.30, True),
        ("max", 0.95, float("nan"), False),
        ("min", 0.30, float("nan"), False),
    ],
)
def test_a_drop_is_a_loss_in_the_metrics_own_direction(mode, dense, deployed, holds) -> None:
    failures = Limits("m", mode, max_drop=0.03).failures(found(dense, deployed), None)
    assert (failures == []) is holds
