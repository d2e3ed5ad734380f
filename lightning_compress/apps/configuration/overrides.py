"""Overrides of the command line, as Hydra's grammar wants them."""

from __future__ import annotations

import re
from pathlib import Path


def quoted(path: str | Path) -> str:
    """A path as Hydra's grammar wants it.

    Example:
        >>> quoted("my data/mnist")
        "'my data/mnist'"
    """
    text = str(path)
    if re.fullmatch(r"[\w./:-]+", text, flags=re.ASCII):
        return text
    # Backslashes are themselves but before a quote, where two stand for one.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def at_home(override: str) -> str:
    """An override with a ``~`` at the beginning of its value expanded, which shells leave behind a name with dots.

    Options, which begin with a dash, are left alone.

    Example:
        >>> at_home("data.batch_size=32")
        'data.batch_size=32'
        >>> at_home("data.root=~/data") == f"data.root={quoted(Path.home() / 'data')}"
        True
    """
    key, _, value = override.partition("=")
    if key.startswith("-") or not re.fullmatch(r"~[\w.-]*(/.*)?", value):
        return override
    return f"{key}={quoted(Path(value).expanduser())}"
