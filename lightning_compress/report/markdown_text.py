"""Escaping of names and other text for Markdown."""

from __future__ import annotations

import re

from lightning_compress.errors import printable

_SIGNS = re.compile(r"[\\`*<>\[\]|$~]|(?<!\w)_|_(?!\w)|^[#+-](?=[\s#])")


def escaped(text: object) -> str:
    """Text in one line of which GitHub's Markdown makes no formula, link, emphasis, table cell or HTML.

    Example:
        >>> escaped("net.$x$ <b>"), escaped("val_loss")
        ('net.\\\\$x\\\\$ \\\\<b\\\\>', 'val_loss')
    """
    return _SIGNS.sub(lambda found: f"\\{found[0]}", printable(" ".join(str(text).split())))


def code(text: object) -> str:
    """Text as code, for a table cell too: a fence that is longer than any run of backticks in it.

    Example:
        >>> code("fc.weight"), code("a`b")
        ('`fc.weight`', '``a`b``')
    """
    line = printable(" ".join(str(text).split())).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{space}{line}{space}{fence}"
