"""Write a report to a directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_compress.foundation.atomic_write import replacing
from lightning_compress.report.html import html
from lightning_compress.report.markdown import markdown
from lightning_compress.report.schema import check


def write(report: Mapping[str, Any], dirpath: str | os.PathLike[str]) -> list[Path]:
    """Write ``report.json``, ``report.md`` and ``report.html``; equal reports give equal bytes.

    Everything is rendered before the first file is replaced, and each file is replaced in one step.

    Args:
        report: A report.
        dirpath: Where to; made if missing.

    Returns:
        The three paths.

    Raises:
        CompressionError: The report is not whole, or the directory cannot be written.
    """
    check(report)
    contents = {
        "report.json": json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": markdown(report),
        "report.html": html(report),
    }
    paths = []
    for name, content in contents.items():
        path = Path(dirpath) / name
        with replacing(path) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="\n")
        paths.append(path)
    return paths
