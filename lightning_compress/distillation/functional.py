"""Distillation losses as pure functions of two tensors.

All compute in float32 (float64 stays), whatever autocast is in force, and are 0 where student and teacher agree.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_compress.errors import CompressionError

# Squared distances from a product of float32 matrices are rounded to about 1e-7 of the squared lengths. Pairs nearer
# than this share of them have no direction.
_COINCIDENT = 1e-5


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float = 4.0, dim: int = -1) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), Hinton et al. 2015, "Distilling the Knowledge in a
    Neural Network". The factor T² keeps the size of the gradient when T changes.

    Args:
        student: Logits of any shape, with classes along ``dim``.
        teacher: Logits of the same shape.
        temperature: T.
        dim: Dimension of the classes.

    Returns:
        Scalar: the mean over all dimensions but ``dim``.

    Raises:
        CompressionError: The shapes differ, or there is a single class.

    Example:
        >>> softened_divergence(torch.zeros(2, 3), torch.zeros(2, 3))
        tensor(0.)
    """
    student, teacher = _same_shape(student, teacher, "Logits")
    if student.ndim == 0 or student.shape[dim] < 2:
        raise CompressionError(
            f"Logits: a softmax over dimension {dim} of an output of shape {list(student.shape)} has a single class, "
            f"so there is nothing to learn from it. Compare such outputs by Features."
        )
    with torch.autocast(student.device.type, enabled=False):
        wanted = F.log_softmax(teacher / temperature, dim)
        given = F.log_softmax(student / temperature, dim)
        probability = wanted.exp()
        # A class that the teacher rules out (a logit of -inf) would be 0 · ∞.
        terms = torch.where(probability > 0, probability * (wanted - given), 0.0)
        return temperature**2 * terms.sum(dim).mean()


def squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of the squared differences, Romero et al. 2015, "FitNets" (without the paper's factor of a half).

    Args:
        student: Any shape.
        teacher: The same shape.

    Returns:
        Scalar.

    Raises:
        CompressionError: The shapes differ.

    Example:
        >>> squared_difference(torch.zeros(2, 3), torch.full((2, 3), 2.0))
        tensor(4.)
    """
    student, teacher = _same_shape(
        student, teacher, "Features", "Where only the widths differ, compare by Attention or Relations."
    )
    with torch.autocast(student.device.type, enabled=False):
        return F.mse_loss(student, teacher)


def attention_map(features: Tensor, power: float = 2.0, dim: int = 1) -> Tensor:
    """Where a layer is active: Σ |a|^p over the channels, as a vector of length 1 for each sample.

    Args:
        features: [B, C, ...] with channels along ``dim``.
        power: p.
        dim: Dimension of the channels.

    Returns:
        [B, positions].

    Raises:
        CompressionError: The features have no positions beside samples and channels.

    Example:
        >>> attention_map(torch.ones(1, 8, 2, 2))
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    if features.ndim < 3:
        raise CompressionError.field(
            "Attention.modules",
            expected="modules whose output has samples, channels and positions",
            got=list(features.shape),
            fix="Name a module before pooling, or compare by Features.",
        )
    with torch.autocast(features.device.type, enabled=False):
        features = _full(features)
        # The square costs a third of |a| to the power of 2, forward and backward.
        powers = features.square() if power == 2 else features.abs().pow(power)
        return F.normalize(powers.sum(dim).flatten(1), dim=1)


def attention_difference(student: Tensor, teacher: Tensor, power: float = 2.0, dim: int = 1) -> Tensor:
    """Squared distance of the attention maps, mean over samples: Zagoruyko & Komodakis 2017, "Paying More Attention
    to Attention", activation-based. The authors' code divides it by the number of positions too.

    Args:
        student: [B, C, ...] with channels along ``dim``.
        teacher: The same positions; the channels may differ.
        power: p of the map.
        dim: Dimension of the channels.

    Returns:
        Scalar, 0 to 2.

    Raises:
        CompressionError: The positions differ, or there are none.

    Example:
        >>> attention_difference(torch.ones(1, 8, 2, 2), torch.ones(1, 16, 2, 2))
        tensor(0.)
    """
    ours, theirs = attention_map(student, power, dim), attention_map(teacher, power, dim)
    if ours.shape != theirs.shape:
        raise CompressionError(
            f"Attention: the student's output {list(student.shape)} and the teacher's {list(teacher.shape)} differ in "
            f"more than their channels (dimension {dim}). Name modules with equal positions."
        )
    return (ours - theirs).square().sum(1).mean()


def distance_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-D of Park et al. 2019, "Relational Knowledge Distillation": Huber loss between the distances of all pairs
    of samples, each divided by its mean over the batch. The mean over B² entries, as in the authors' code.

    Args:
        student: [B, ...], flattened to [B, D].
        teacher: [B, ...], of any width.

    Returns:
        Scalar; 0 for a batch of one.

    Raises:
        CompressionError: The numbers of samples differ.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [3.0]])
        >>> bool(distance_relation(points, 10 * points) < 1e-12)
        True
    """
    student, teacher = _vectors(student, teacher)
    if len(student) < 2:
        return student.sum() * 0.0
    with torch.autocast(student.device.type, enabled=False):
        return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def angle_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-A of Park et al. 2019: Huber loss between the cosines of the angles of all triples of samples.

    Takes memory for B³ numbers, whatever the width: 8 MB of float32 for 128 samples.

    Args:
        student: [B, ...], flattened to [B, D].
        teacher: [B, ...], of any width.

    Returns:
        Scalar, the mean over B³ entries; 0 for fewer than three samples.

    Raises:
        CompressionError: The numbers of samples differ.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        >>> bool(angle_relation(points, 3 * points) < 1e-12)
        True
    """
    student, teacher = _vectors(student, teacher)
    if len(student) < 3:
        return student.sum() * 0.0
    with torch.autocast(student.device.type, enabled=False):
        return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _relative_distances(x: Tensor) -> Tensor:
    """[B, D] → [B, B] distances over their mean, with zeros on the diagonal."""
    squared, _ = _squared_distances(x)
    # The square root has no gradient at 0: coincident samples, and each with itself, get none.
    distances = squared.clamp_min(1e-12).sqrt() * _others(x)
    return distances / (distances.sum() / (len(x) * (len(x) - 1)))


def _cosines(x: Tensor) -> Tensor:
    """[B, D] → [B, B, B]: the cosine of the angle at sample j between samples i and k, at [j, i, k]."""
    squared, gram = _squared_distances(x)
    lengths = gram.diagonal()
    apart = squared > _COINCIDENT * (lengths[:, None] + lengths[None])
    inverse = torch.where(apart, squared, 1.0).rsqrt() * apart * _others(x)
    # (x_i − x_j) · (x_k − x_j) out of the products of samples: B³ numbers in place of B³ · D.
    products = gram[None] - gram[:, :, None] - gram[:, None, :] + lengths[:, None, None]
    return products * inverse[:, :, None] * inverse[:, None, :]


def _squared_distances(x: Tensor) -> tuple[Tensor, Tensor]:
    """[B, D] → squared distances [B, B] and the products of the centred samples [B, B]."""
    # Differences do not notice a shift, and products of centred samples round less.
    x = x - x.mean(0, keepdim=True)
    gram = x @ x.T
    lengths = gram.diagonal()
    return (lengths[:, None] + lengths[None] - 2 * gram).clamp_min(0.0), gram


def _others(x: Tensor) -> Tensor:
    return 1 - torch.eye(len(x), dtype=x.dtype, device=x.device)


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _same_shape(student: Tensor, teacher: Tensor, loss: str, fix: str = "") -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise CompressionError(
            f"{loss}: the student's output has shape {list(student.shape)} and the teacher's {list(teacher.shape)}."
            f"{' ' + fix if fix else ''}"
        )
    return _full(student), _full(teacher)


def _vectors(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim == 0 or teacher.ndim == 0 or len(student) != len(teacher):
        raise CompressionError(
            f"Relations: the student's output {list(student.shape)} and the teacher's {list(teacher.shape)} do not "
            f"hold the same samples along their first dimension."
        )
    return _full(student).flatten(1), _full(teacher).flatten(1)
