"""A warning, which fails the build, for every page that would fetch something from another place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.util import logging

FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(?:https?:)?//[^\"]+"
    r"|<link\b(?=[^>]*\brel=\"(?:stylesheet|preload|icon|preconnect)\")[^>]*\bhref=\"(?:https?:)?//[^\"]+"
)


def _check(app: Any, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    for page in sorted(Path(app.outdir).rglob("*.html")):
        for found in FETCHED.findall(page.read_text(encoding="utf-8")):
            logging.getLogger(__name__).warning("%s fetches %s", page.relative_to(app.outdir), found)


def setup(app: Any) -> dict[str, bool]:
    """Look at the pages when they are written."""
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
