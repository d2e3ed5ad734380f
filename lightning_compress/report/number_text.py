"""Formatting of numbers, the same in every form of the report."""

from __future__ import annotations

import math
import re

NOTHING = "–"


def size(count: float | None) -> str:
    """Bytes, in kB of 1000 bytes and so on.

    Example:
        >>> size(812), size(9_512), size(94_000_000)
        ('812 B', '9.5 kB', '94.0 MB')
    """
    if count is None:
        return NOTHING
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if count < 999.5:
            break
        count, unit = count / 1000, larger
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage.

    Example:
        >>> percent(0.8)
        '80.0 %'
    """
    return NOTHING if share is None else f"{share * 100:.{digits}f} %"


def times(ratio: float | None) -> str:
    """A ratio.

    Example:
        >>> times(18.23), times(1.52)
        ('18.2×', '1.52×')
    """
    return NOTHING if ratio is None else f"{ratio:.3g}×" if ratio < 100 else f"{ratio:.0f}×"


def milliseconds(latency: float | None) -> str:
    """A latency, to the two digits that a measurement of it holds.

    Example:
        >>> milliseconds(0.2964), milliseconds(12.5), milliseconds(None)
        ('0.30 ms', '12 ms', '–')
    """
    if latency is None:
        return NOTHING
    digits = max(0, 1 - math.floor(math.log10(latency))) if latency > 0 else 0
    return f"{latency:.{digits}f} ms"


def metric(name: str, value: float | None) -> str:
    """A metric's value: accuracies and other shares as percentages, the rest with four digits.

    Example:
        >>> metric("test/acc", 0.9722), metric("test/loss", 0.1)
        ('97.22 %', '0.1000')
    """
    if value is None:
        return NOTHING
    return percent(value, 2) if is_share(name) and 0 <= value <= 1 else f"{value:.4f}"


def is_share(name: str) -> bool:
    """Whether a metric's name says that it is a share from 0 to 1, and that more is better."""
    return re.search(r"acc|top.?\d|precision|recall|f1|auroc|iou|agreement", name.lower()) is not None


def change(name: str, before: float | None, after: float | None) -> str | None:
    """How a metric changed.

    Example:
        >>> change("test/acc", 0.9750, 0.9722)
        '−0.28 points'
    """
    if before is None or after is None:
        return None
    difference = after - before
    sign = "−" if difference < 0 else "+"
    if is_share(name):
        points = f"{abs(difference) * 100:.2f}"
        return f"{'±' if points == '0.00' else sign}{points} points"
    return f"{sign}{abs(difference):.4f}"
