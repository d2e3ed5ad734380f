"""The one error that this package raises for bad input, and the text of messages."""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches


class CompressionError(ValueError):
    """Something asked for cannot be done; the message says what, where and how to fix it."""

    @classmethod
    def field(cls, name: str, *, expected: str, got: object, fix: str = "") -> CompressionError:
        """Build the one-paragraph message for a bad setting.

        Args:
            name: Full name of the field, for example ``GradualMagnitudePruning.final_sparsity``.
            expected: What is allowed.
            got: What was given.
            fix: How to fix it.

        Example:
            >>> print(CompressionError.field("bits", expected="an integer from 2 to 8", got=9))
            bits: expected an integer from 2 to 8, got 9.
        """
        return cls(f"{name}: expected {expected}, got {got!r}.{' ' + fix if fix else ''}")


class DoesNotHold(CompressionError):
    """Everything was done, and a requested limit does not hold."""


def refuse_missing(field: str, package: str, name: str, extra: str | None = None) -> None:
    """Check that an optional package is installed.

    Args:
        field: What needs it.
        package: Name of the import.
        name: Name for people.
        extra: The extra that brings it; by default it has the package's name.

    Raises:
        CompressionError: It is not.
    """
    if importlib.util.find_spec(package) is None:
        raise CompressionError(
            f"{field}: {name} is not installed. Run: pip install 'lightning-compress[{extra or package}]'"
        )


def closest(name: str, known: Iterable[str]) -> str:
    """Say which of the known names come nearest to a name that matched nothing.

    Example:
        >>> closest("conv_1", ["conv1", "fc"])
        'Closest: conv1.'
    """
    known = list(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5) or known[:5]
    return f"Closest: {', '.join(near)}." if near else "There is nothing to match."


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def reason(error: BaseException) -> str:
    """What went wrong, for one line: our own message, or the class and first line of another error.

    Example:
        >>> reason(CompressionError("bits: expected 8.")), reason(KeyError("x"))
        ('bits: expected 8.', "KeyError: 'x'")
    """
    return str(error) if isinstance(error, CompressionError) else f"{type(error).__name__}: {first_line(error)}"


def printable(text: object) -> str:
    r"""Text whose control and direction characters, which a terminal obeys, are written as escapes; lines stay.

    Example:
        >>> print(printable("fc\x1b[2J.weight"))
        fc\x1b[2J.weight
    """
    return "".join(
        sign if sign == "\n" or unicodedata.category(sign)[0] != "C" else sign.encode("unicode_escape").decode()
        for sign in str(text)
    )
