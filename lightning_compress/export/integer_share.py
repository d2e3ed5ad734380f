"""How much of a file's arithmetic its runtime does in integers, and what it does not, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FloatOperation:
    """A product or a sum that runs in float.

    Attributes:
        name: The layer whose weight it reads, or else its node's.
        kernel: The runtime's kernel.
        macs: Its multiply-accumulates; 0 for a sum.
        reason: Why, and what to do about it.
    """

    name: str
    kernel: str
    macs: int
    reason: str


@dataclass(frozen=True)
class IntegerShare:
    """Multiply-accumulates of one sample.

    Attributes:
        total: All of them.
        integer: Those in integer kernels.
        operations: Those in float, the largest first, and sums in float.
    """

    total: int
    integer: int
    operations: tuple[FloatOperation, ...] = ()

    @property
    def share(self) -> float:
        """Integer part of the total, in [0, 1]; 1 where there is nothing to multiply."""
        return self.integer / self.total if self.total else 1.0

    @property
    def floats(self) -> dict[str, int]:
        """Kernel in the loaded graph → multiply-accumulates that it does in float."""
        found: dict[str, int] = {}
        for operation in self.operations:
            if operation.macs:
                found[operation.kernel] = found.get(operation.kernel, 0) + operation.macs
        return found

    def lines(self) -> list[str]:
        """What runs in float, a line for each reason, with the layers and their share of the multiply-adds.

        Example:
            >>> IntegerShare(10, 9, (FloatOperation("head", "Gemm", 1, "its weight is stored in float"),)).lines()
            ['head (0.10 of the multiply-adds): its weight is stored in float']
        """
        groups: dict[str, list[FloatOperation]] = {}
        for operation in self.operations:
            groups.setdefault(operation.reason, []).append(operation)
        found = []
        for reason, operations in groups.items():
            names = list(dict.fromkeys(operation.name for operation in operations))
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            macs = sum(operation.macs for operation in operations)
            part = f" ({macs / self.total:.2f} of the multiply-adds)" if macs else ""
            found.append(f"{', '.join(names[:4])}{more}{part}: {reason}")
        return found
