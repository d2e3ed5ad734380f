"""Bit widths that are lowered during training, such as ``{0: 8, 0.4: 4, 0.7: 2}``.

Source: the chain of stages in Li et al., Additive Powers-of-Two Quantization, ICLR 2020, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.settings import check_bits
from lightning_compress.timeline import Time, TimePoint, parse

BitPlan = int | None | Mapping[TimePoint, int]


@dataclass(frozen=True)
class BitSchedule:
    """Bits over a run.

    Attributes:
        first: Bits from the start; ``None`` for float.
        changes: What each later change is called → its point in time and the bits from there on.
        field: Full name of the setting.
    """

    first: int | None
    changes: Mapping[str, tuple[Time, int]]
    field: str

    @classmethod
    def of(cls, asked: BitPlan, what: str, field: str) -> BitSchedule:
        """Check what a user wrote.

        Args:
            asked: Bits, or a mapping of points in time to bits, of which the first holds from the start.
            what: What has these bits, in words.
            field: Full name of the setting, for messages.

        Raises:
            CompressionError: It is empty, holds widths that are none, or does not fall from entry to entry.

        Example:
            >>> list(BitSchedule.of({0: 8, 0.4: 4, 0.7: 2}, "weights", "weight_bits").changes)
            ['weights to 4 bits', 'weights to 2 bits']
        """
        if not isinstance(asked, Mapping):
            check_bits(asked, field)
            return cls(asked, {}, field)
        widths = list(asked.values())
        for bits in widths:
            check_bits(bits, field)
        if not widths or None in widths or widths != sorted(set(widths), reverse=True):
            raise CompressionError.field(
                field,
                expected="bits from 2 to 8, or points in time with bits that fall, such as {0: 8, 0.4: 4, 0.7: 2}",
                got=dict(asked),
            )
        times = [parse(point, field) for point in asked]
        named = {f"{what} to {bits} bits": (time, bits) for time, bits in zip(times[1:], widths[1:], strict=True)}
        return cls(widths[0], named, field)

    @property
    def last(self) -> int | None:
        """Bits at the end."""
        return ([self.first] + [bits for _, bits in self.changes.values()])[-1]

    def check(self, steps: Mapping[str, int]) -> None:
        """Refuse changes that do not come in the order in which they are listed.

        Args:
            steps: A change's name → its optimizer step.
        """
        found = [steps[name] for name in self.changes]
        if found != sorted(set(found)):
            raise CompressionError.field(
                self.field, expected="points in time one after the other", got=f"optimizer steps {found}"
            )

    def at(self, step: int, steps: Mapping[str, int]) -> int | None:
        """Bits at an optimizer step.

        Args:
            step: The optimizer step.
            steps: A change's name → its optimizer step.
        """
        reached = [bits for name, (_, bits) in self.changes.items() if step >= steps[name]]
        return reached[-1] if reached else self.first
