"""Shell completion: the subcommands, and Hydra's completion of groups and settings behind those that take them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

OPTIONS = ("-sc", "--shell-completion")
TAKE_SETTINGS = ("train", "doctor", "advise")
"""Subcommands whose words are settings of a config."""


def is_completion(arguments: Sequence[str]) -> bool:
    """Whether the program was called by a shell's completion, or to install it."""
    return bool(arguments) and arguments[0].split("=")[0] in OPTIONS


def subcommands_for(line: str, names: Sequence[str]) -> list[str] | None:
    """The subcommands that may stand at the end of a command line.

    Args:
        line: The command line so far, from the program's name to the cursor.
        names: All subcommands.

    Returns:
        ``None`` where Hydra completes the settings of the subcommand that stands there; an empty list where the
        shell's own completion of files is right.

    Example:
        >>> subcommands_for("lightning-compress ve", ["train", "verify"])
        ['verify']
        >>> subcommands_for("lightning-compress train quant", ["train", "verify"]) is None
        True
    """
    words = line.split()
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        begun = words[1] if len(words) == 2 else ""
        return [name for name in names if name.startswith(begun)]
    return None if words[1] in TAKE_SETTINGS else []


@contextmanager
def line_of_settings(line: str) -> Iterator[None]:
    """The command line as Hydra's completion reads it from the environment: the program, then settings."""
    words = line.split(maxsplit=2)
    os.environ["COMP_LINE"] = f"{words[0]} {words[2] if len(words) > 2 else ''}"
    try:
        yield
    finally:
        os.environ["COMP_LINE"] = line
