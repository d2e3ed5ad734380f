"""Distillation losses: one small object each, in any combination."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass

from torch import Tensor

from lightning_compress.distillation import functional
from lightning_compress.errors import CompressionError

Modules = Sequence[str] | Mapping[str, str]
"""Patterns of student modules that have equal names in the teacher, or student name → teacher name."""


class Loss(ABC):
    """Compares outputs of the student with the teacher's; derive a frozen dataclass from it for one of your own.

    Attributes:
        weight: Factor in the total.
        name: Name in logs, under ``distill/``.
        modules: Whose outputs are compared, and summed over; ``None`` compares the output of the network itself.
    """

    weight: float
    name: str
    modules: Modules | None

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar, 0 where both agree.

        Args:
            student: One output, with its gradient.
            teacher: The teacher's output for the same inputs, without.
        """

    def __post_init__(self) -> None:
        if not _is_number(self.weight) or self.weight <= 0:
            raise CompressionError.field(
                f"{type(self).__name__}.weight", expected="a finite number above 0", got=self.weight
            )
        if not isinstance(self.name, str) or not self.name:
            raise CompressionError.field(f"{type(self).__name__}.name", expected="a non-empty text", got=self.name)
        if self.modules is not None:
            self._check_modules(self.modules)

    def _check_modules(self, modules: Modules) -> None:
        field = f"{type(self).__name__}.modules"
        if isinstance(modules, str):
            raise CompressionError.field(
                field, expected="a list of patterns or a mapping", got=modules, fix=f"Write [{modules!r}]."
            )
        named = [*modules, *modules.values()] if isinstance(modules, Mapping) else list(modules)
        if not named or not all(isinstance(pattern, str) for pattern in named):
            raise CompressionError.field(field, expected="a non-empty list of patterns or a mapping", got=modules)

    def _above_zero(self, field: str) -> None:
        value = getattr(self, field)
        if not _is_number(value) or value <= 0:
            raise CompressionError.field(
                f"{type(self).__name__}.{field}", expected="a finite number above 0", got=value
            )


@dataclass(frozen=True)
class Logits(Loss):
    """Softened class probabilities, Hinton et al. 2015: T² · KL(teacher ‖ student).

    Attributes:
        temperature: T; higher shows more of how the teacher ranks the wrong classes.
        dim: Dimension of the classes: -1 for [B, C] and for tokens [B, T, C], 1 for dense maps [B, C, H, W].

    Example:
        >>> Logits(temperature=2.0).weight
        1.0
    """

    temperature: float = 4.0
    weight: float = 1.0
    dim: int = -1
    name: str = "logits"
    modules: Modules | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._above_zero("temperature")

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See ``functional.softened_divergence``."""
        return functional.softened_divergence(student, teacher, self.temperature, self.dim)


@dataclass(frozen=True)
class Features(Loss):
    """Outputs of hidden modules, Romero et al. 2015 (FitNets): mean squared difference.

    Shapes have to be equal: nothing is learned to project one width to another, since what is learned would be in
    the checkpoint or be lost.

    Example:
        >>> Features(["net.block1", "re:net\\\\.block[23]"], weight=0.5).name
        'features'
    """

    modules: Modules | None = None
    weight: float = 1.0
    name: str = "features"

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_missing_modules(self)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See ``functional.squared_difference``."""
        return functional.squared_difference(student, teacher)


@dataclass(frozen=True)
class Attention(Loss):
    """Where modules are active, Zagoruyko & Komodakis 2017; the numbers of channels may differ.

    Attributes:
        power: Exponent of the activations in the map.
        dim: Dimension of the channels: 1 for images, -1 for tokens [B, T, C].

    Example:
        >>> Attention(["net.block2"], weight=10.0).power
        2.0
    """

    modules: Modules | None = None
    weight: float = 1.0
    power: float = 2.0
    dim: int = 1
    name: str = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_missing_modules(self)
        self._above_zero("power")

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See ``functional.attention_difference``."""
        return functional.attention_difference(student, teacher, self.power, self.dim)


@dataclass(frozen=True)
class Relations(Loss):
    """How the samples of a batch lie to each other, Park et al. 2019 (RKD); widths may differ.

    Attributes:
        distance: Factor of the distances of pairs; 0 leaves them out.
        angle: Factor of the angles of triples; 0 leaves them out.

    Example:
        >>> Relations(distance=25.0, angle=50.0).modules is None
        True
    """

    modules: Modules | None = None
    weight: float = 1.0
    distance: float = 1.0
    angle: float = 2.0
    name: str = "relations"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("distance", "angle"):
            value = getattr(self, field)
            if not _is_number(value) or value < 0:
                raise CompressionError.field(f"Relations.{field}", expected="a finite number, at least 0", got=value)
        if self.distance == self.angle == 0:
            raise CompressionError.field("Relations.angle", expected="above 0, since Relations.distance is 0", got=0)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See ``functional.distance_relation`` and ``functional.angle_relation``."""
        parts = []
        if self.distance:
            parts.append(self.distance * functional.distance_relation(student, teacher))
        if self.angle:
            parts.append(self.angle * functional.angle_relation(student, teacher))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def check_losses(losses: Sequence[Loss] | Mapping[str, Loss], field: str) -> tuple[Loss, ...]:
    """Check a combination of losses.

    Args:
        losses: The losses; of a mapping (as a config has it) its values.
        field: Full name of the setting, for messages.

    Raises:
        CompressionError: There are none, something else is among them, or two have one name.
    """
    if not isinstance(losses, Sequence | Mapping) or isinstance(losses, str):
        raise CompressionError.field(field, expected="a list of losses", got=losses, fix="Write [Logits()].")
    # An entry of a config that is null is switched off.
    found = [loss for loss in losses.values() if loss is not None] if isinstance(losses, Mapping) else list(losses)
    if not found:
        raise CompressionError.field(field, expected="at least one loss", got=found, fix="Write [Logits()].")
    names: set[str] = set()
    for loss in found:
        if not isinstance(loss, Loss):
            raise CompressionError.field(field, expected="losses such as Logits() or Features([...])", got=loss)
        if loss.name in names:
            raise CompressionError.field(
                field, expected="losses with different names", got=loss.name, fix="Give one of them name='...'."
            )
        names.add(loss.name)
    return tuple(found)


def described(loss: Loss) -> str:
    """A loss in words that are equal for equal losses, for checkpoints; objects in it go by their class.

    Example:
        >>> described(Logits(temperature=2.0))
        'Logits {"temperature": 2.0, "weight": 1.0, "dim": -1, "name": "logits", "modules": null}'
    """
    values: dict[str, object] = (
        {field.name: getattr(loss, field.name) for field in fields(loss)} if is_dataclass(loss) else {}
    )
    return f"{type(loss).__qualname__} {json.dumps(values, default=lambda value: type(value).__qualname__)}"


def _refuse_missing_modules(loss: Loss) -> None:
    if loss.modules is None:
        raise CompressionError.field(
            f"{type(loss).__name__}.modules", expected="patterns of the modules to compare", got=None
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
