"""Distillation formulas against NumPy and the authors' own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_compress.distillation import functional
from lightning_compress.errors import CompressionError


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_are_compared_by_the_formula_of_hinton(temperature: float) -> None:
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    p, q = softmax(teacher.double().numpy() / temperature), softmax(student.double().numpy() / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    assert float(functional.softened_divergence(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_soft_logits_is_the_difference_of_probabilities_times_temperature() -> None:
    student, teacher = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.randn(6, 5).double()
    functional.softened_divergence(student, teacher, 3.0).backward()
    expected = 3.0 * (softmax(student.detach().numpy() / 3) - softmax(teacher.numpy() / 3)) / 6
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-12)


def test_classes_of_dense_maps_and_of_tokens_are_where_they_are_said_to_be() -> None:
    student, teacher = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    rows = [x.movedim(1, -1).reshape(-1, 5) for x in (student, teacher)]
    expected = functional.softened_divergence(*rows)
    torch.testing.assert_close(functional.softened_divergence(student, teacher, dim=1), expected)
    tokens = [x.movedim(1, -1) for x in (student, teacher)]
    torch.testing.assert_close(functional.softened_divergence(*tokens), expected)


def test_a_class_that_is_ruled_out_gives_no_nan() -> None:
    student, teacher = torch.randn(2, 4), torch.randn(2, 4)
    masked = torch.tensor([False, False, False, True])
    leaf = student.clone().requires_grad_()
    found = functional.softened_divergence(
        leaf.masked_fill(masked, -torch.inf), teacher.masked_fill(masked, -torch.inf)
    )
    torch.testing.assert_close(found, functional.softened_divergence(student[:, :3], teacher[:, :3]))
    found.backward()
    assert leaf.grad.isfinite().all()


def test_a_single_class_is_refused_since_its_divergence_would_always_be_zero() -> None:
    with pytest.raises(CompressionError, match=r"shape \[8, 1\] has a single class"):
        functional.softened_divergence(torch.randn(8, 1), torch.randn(8, 1))


def test_features_are_compared_by_the_mean_square() -> None:
    student, teacher = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    expected = ((student.numpy() - teacher.numpy()) ** 2).mean()
    assert float(functional.squared_difference(student, teacher)) == pytest.approx(float(expected), rel=1e-6)


def test_features_of_other_widths_are_refused_with_what_does_compare_them() -> None:
    with pytest.raises(CompressionError, match=r"\[2, 4, 3\] and the teacher's \[2, 8, 3\].* Attention or Relations"):
        functional.squared_difference(torch.randn(2, 4, 3), torch.randn(2, 8, 3))


def authors_attention(x: torch.Tensor) -> torch.Tensor:
    # szagoruyko/attention-transfer, utils.py
    return F.normalize(x.pow(2).mean(1).view(x.size(0), -1))


def test_attention_is_that_of_its_authors_up_to_the_number_of_positions() -> None:
    student, teacher = torch.randn(4, 6, 5, 3), torch.randn(4, 9, 5, 3)
    theirs = (authors_attention(student) - authors_attention(teacher)).pow(2).mean()
    torch.testing.assert_close(functional.attention_difference(student, teacher), 15 * theirs)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_attention_maps_are_sums_of_powers_of_length_one(power: float) -> None:
    x = torch.randn(4, 6, 5, 3)
    sums = (np.abs(x.numpy()) ** power).sum(1).reshape(4, 15)
    expected = sums / np.sqrt((sums**2).sum(1, keepdims=True))
    np.testing.assert_allclose(functional.attention_map(x, power).numpy(), expected, rtol=1e-5)


def test_attention_of_tokens_sums_over_their_channels() -> None:
    student, teacher = torch.randn(4, 7, 6), torch.randn(4, 7, 9)
    turned = functional.attention_difference(student.transpose(1, 2), teacher.transpose(1, 2))
    torch.testing.assert_close(functional.attention_difference(student, teacher, dim=-1), turned)


def test_attention_takes_positions_and_equal_ones() -> None:
    with pytest.raises(CompressionError, match=r"samples, channels and positions, got \[2, 8\]"):
        functional.attention_difference(torch.randn(2, 8), torch.randn(2, 8))
    with pytest.raises(CompressionError, match="more than their channels"):
        functional.attention_difference(torch.randn(2, 8, 4), torch.randn(2, 8, 5))


def authors_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    # lenscloth/RKD, metric/loss.py and metric/utils.py
    def pdist(e: torch.Tensor) -> torch.Tensor:
        square = e.pow(2).sum(dim=1)
        found = (square.unsqueeze(1) + square.unsqueeze(0) - 2 * e @ e.t()).clamp(min=1e-12).sqrt().clone()
        found[range(len(e)), range(len(e))] = 0
        return found

    t, s = pdist(teacher), pdist(student)
    return F.smooth_l1_loss(s / s[s > 0].mean(), t / t[t > 0].mean())


def authors_angle(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    def angles(e: torch.Tensor) -> torch.Tensor:
        directions = F.normalize(e.unsqueeze(0) - e.unsqueeze(1), p=2, dim=2)
        return torch.bmm(directions, directions.transpose(1, 2)).view(-1)

    return F.smooth_l1_loss(angles(student), angles(teacher))


@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(functional.distance_relation, authors_distance), (functional.angle_relation, authors_angle)],
)
def test_relations_and_their_gradients_are_those_of_the_authors(ours: object, theirs: object, shift: float) -> None:
    x, teacher = torch.randn(7, 12) + shift, torch.randn(7, 20) - shift
    student, reference = x.clone().requires_grad_(), x.double().requires_grad_()
    found, expected = ours(student, teacher), theirs(reference, teacher.double())
    found.backward()
    expected.backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=1e-3, atol=1e-6)


def test_relations_of_coincident_samples_have_finite_gradients() -> None:
    student = torch.randn(3, 4)[[0, 0, 1, 2]].requires_grad_()
    teacher = torch.randn(4, 4)
    (functional.distance_relation(student, teacher) + functional.angle_relation(student, teacher)).backward()
    assert student.grad.isfinite().all()
    doubled = student.detach().double()
    expected = authors_angle(doubled, teacher.double())
    found = functional.angle_relation(student.detach(), teacher)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("samples", [1, 2])
def test_a_batch_too_small_for_relations_gives_zero(samples: int) -> None:
    student = torch.randn(samples, 4, requires_grad=True)
    loss = functional.angle_relation(student, torch.randn(samples, 4))
    if samples == 1:
        loss = loss + functional.distance_relation(student, torch.randn(samples, 4))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not student.grad.any()


@pytest.mark.parametrize(
    "loss",
    [
        functional.softened_divergence,
        functional.squared_difference,
        functional.attention_difference,
        functional.distance_relation,
        functional.angle_relation,
    ],
)
def test_losses_compute_in_float32_under_autocast(loss: object) -> None:
    student, teacher = torch.randn(5, 6, 4), torch.randn(5, 6, 4)
    halved = student.bfloat16(), teacher.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(*halved)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(*(x.float() for x in halved)))
