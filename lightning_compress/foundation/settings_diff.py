"""Resuming a checkpoint with other settings: refused with every difference listed, or accepted with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from lightning_compress.errors import CompressionError


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Every setting that is not what it was, in words.

    Example:
        >>> differences({"bits": 8, "range": "mse"}, {"bits": 4, "range": "mse"})
        ['bits was 8, now 4']
    """
    return [
        f"{name} was {saved.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*saved, *now})
        if saved.get(name) != now.get(name)
    ]


def settle(saved: Mapping[str, Any], now: Mapping[str, Any], field: str, *, accept: bool, fix: str = "") -> bool:
    """Compare the settings of a checkpoint with those of the run that goes on from it.

    Args:
        saved: The checkpoint's, as primitives.
        now: The run's.
        field: Whose they are, for messages.
        accept: Whether changes are accepted; they are then listed in a warning.
        fix: What else can be done.

    Returns:
        Whether there are changes.

    Raises:
        CompressionError: There are some, and they are not accepted.
    """
    found = differences(saved, now)
    if not found:
        return False
    if not accept:
        raise CompressionError(
            f"{field}: the checkpoint was made with other settings: {'; '.join(found)}. Resume with the same ones "
            "(time points count as the optimizer steps they resolve to), accept the change by accept_changes=True"
            f"{', or ' + fix if fix else ''}."
        )
    warnings.warn(f"{field}: goes on with other settings than the checkpoint's: {'; '.join(found)}.", stacklevel=3)
    return True


def check_accept(value: object, field: str) -> bool:
    """Refuse anything but a bool for ``accept_changes``."""
    if not isinstance(value, bool):
        raise CompressionError.field(f"{field}.accept_changes", expected="true or false", got=value)
    return value
