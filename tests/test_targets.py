"""Which layers a pattern selects."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.targets import Candidate, select

LAYERS = {"body.fc1": nn.Linear(2, 2), "body.conv": nn.Conv2d(1, 1, 1), "head": nn.Linear(2, 2)}
CANDIDATES = [Candidate((f"{name}.weight", name), layer, name) for name, layer in LAYERS.items()]


@pytest.mark.parametrize(
    ("targets", "ignore", "selected"),
    [
        (None, [], ["body.fc1", "body.conv", "head"]),
        (["Linear"], [], ["body.fc1", "head"]),
        # At equal strength to ignore wins: by class, by regular expression, by name.
        (["Linear"], ["Linear"], []),
        (["Module"], ["Linear"], ["body.conv"]),
        (["re:body.*"], ["re:.*fc1"], ["body.conv"]),
        (["head", "body.conv"], ["head"], ["body.conv"]),
        # What names a layer more exactly wins.
        (["head"], ["Linear"], ["head"]),
        (["re:body.*"], ["Linear"], ["body.fc1", "body.conv"]),
        (["Linear"], ["re:.*fc1"], ["head"]),
        (None, ["Conv2d"], ["body.fc1", "head"]),
    ],
)
def test_the_more_exact_pattern_wins_and_at_a_tie_ignore(targets, ignore, selected) -> None:
    assert [s.value for s in select(CANDIDATES, targets=targets, ignore=ignore, field="demo")] == selected


def test_a_pattern_that_is_like_no_name_is_answered_with_layers_first() -> None:
    with pytest.raises(CompressionError, match=r"got 'zz'. Closest: body.fc1, body.conv, head, "):
        select(CANDIDATES, targets=["zz"], ignore=[], field="demo")
