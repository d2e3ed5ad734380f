from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from lightning_compress.distillation import Attention, Features, Logits, Loss, Relations, functional
from lightning_compress.distillation.losses import check_losses
from lightning_compress.errors import CompressionError


def test_each_object_passes_its_settings_to_its_formula() -> None:
    x, y = torch.randn(4, 5, 6), torch.randn(4, 5, 6)
    assert torch.equal(Logits(temperature=2.0, dim=1).compare(x, y), functional.softened_divergence(x, y, 2.0, 1))
    assert torch.equal(Features(["a"]).compare(x, y), functional.squared_difference(x, y))
    expected = functional.attention_difference(x, y, 1.5, -1)
    assert torch.equal(Attention(["a"], power=1.5, dim=-1).compare(x, y), expected)
    expected = 3 * functional.distance_relation(x, y) + 5 * functional.angle_relation(x, y)
    assert torch.equal(Relations(distance=3, angle=5).compare(x, y), expected)


def test_a_relation_with_factor_zero_is_not_computed() -> None:
    x, y = torch.randn(4, 5), torch.randn(4, 5)
    assert torch.equal(Relations(angle=0).compare(x, y), functional.distance_relation(x, y))
    assert torch.equal(Relations(distance=0, angle=1).compare(x, y), functional.angle_relation(x, y))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Logits(temperature=0), r"Logits\.temperature: expected a finite number above 0, got 0"),
        (lambda: Logits(weight=-1.0), r"Logits\.weight: expected a finite number above 0, got -1\.0"),
        (lambda: Logits(weight=True), r"Logits\.weight: .*got True"),
        (lambda: Logits(name=""), r"Logits\.name: expected a non-empty text"),
        (lambda: Features(), r"Features\.modules: expected patterns of the modules to compare, got None"),
        (lambda: Features("net.fc"), r"Features\.modules: .*Write \['net\.fc'\]"),
        (lambda: Features([]), r"Features\.modules: expected a non-empty list"),
        (lambda: Attention({"a": 1}), r"Attention\.modules: expected a non-empty list of patterns or a mapping"),
        (lambda: Attention(["a"], power=float("inf")), r"Attention\.power: expected a finite number above 0"),
        (lambda: Relations(angle=-1), r"Relations\.angle: expected a finite number, at least 0"),
        (lambda: Relations(distance=0, angle=0), r"Relations\.angle: expected above 0, since"),
    ],
)
def test_bad_settings_are_refused_at_construction(build: object, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        build()


def test_losses_come_as_a_list_or_as_the_named_entries_of_a_config() -> None:
    one, other = Logits(), Relations()
    assert check_losses([one, other], "x") == (one, other)
    assert check_losses({"a": one, "off": None, "b": other}, "x") == (one, other)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([], "x: expected at least one loss"),
        ({"logits": None}, "x: expected at least one loss"),
        (["logits"], r"x: expected losses such as Logits\(\)"),
        (Logits(), r"x: expected a list of losses.*Write \[Logits\(\)\]"),
        ([Logits(), Logits(temperature=2.0)], "x: expected losses with different names, got 'logits'. Give one of"),
    ],
)
def test_combinations_that_cannot_be_are_refused(losses: object, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        check_losses(losses, "x")


def test_a_loss_of_ones_own_is_a_loss() -> None:
    @dataclass(frozen=True)
    class Worst(Loss):
        weight: float = 1.0
        name: str = "worst"
        modules: None = None

        def compare(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
            return (student - teacher).abs().max()

    assert check_losses([Worst()], "x")[0].compare(torch.zeros(2), torch.ones(2)) == 1
    with pytest.raises(CompressionError, match=r"Worst\.weight"):
        Worst(weight=0)
