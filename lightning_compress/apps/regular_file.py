"""Reading small files of an untrusted folder."""

from __future__ import annotations

import stat
from pathlib import Path

_LARGEST = 1 << 28


def regular_text(path: Path) -> str:
    """The text of a regular file: what else a path can lead to, a pipe or a device, may never end.

    Raises:
        OSError: It is no regular file, is larger than 256 MB, or cannot be read.
        ValueError: It is no UTF-8.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is no regular file")
    if found.st_size > _LARGEST:
        raise OSError(f"{path} is larger than 256 MB")
    return path.read_text(encoding="utf-8")
