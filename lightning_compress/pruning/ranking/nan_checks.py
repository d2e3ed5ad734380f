"""Refuses NaN among scores: at once on the CPU; on accelerators all of a mask update with a single wait.

What is written meanwhile has to be the same as before wherever a NaN was found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError

_pending: list[tuple[Tensor, str]] | None = None


@contextmanager
def deferred() -> Iterator[NanChecks]:
    """Collect the checks of tensors on accelerators; call ``NanChecks.found`` and ``NanChecks.refuse`` at the end."""
    global _pending
    outer, _pending = _pending, []
    try:
        yield NanChecks(_pending)
    finally:
        _pending = outer


class NanChecks:
    """What was put off."""

    def __init__(self, pending: list[tuple[Tensor, str]]) -> None:
        self._pending = pending

    def found(self, device: torch.device) -> Tensor:
        """Whether there is a NaN, without a wait: bool, ``[]``."""
        if not self._pending:
            return torch.zeros((), dtype=torch.bool, device=device)
        return torch.stack([count.to(device) for count, _ in self._pending]).any()

    def refuse(self) -> None:
        """Look at each check.

        Raises:
            CompressionError: The first that found NaN.
        """
        for count, message in self._pending:
            if bad := int(count):
                raise CompressionError(message.format(bad=bad))


def refuse_nan(count: Tensor, message: str) -> None:
    """Refuse a tensor that holds NaN, or note it for later.

    Args:
        count: How many it holds: int64, ``[]``.
        message: What to say, with ``{bad}`` for the count.

    Raises:
        CompressionError: There are some.
    """
    if _pending is not None and count.device.type != "cpu":
        _pending.append((count, message))
    elif bad := int(count):
        raise CompressionError(message.format(bad=bad))
