"""The directory of an export: what may be written there, and what was."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.atomic_write import replacing

MANIFEST = "manifest.json"
_FORMAT = 1


class ExportDirectory:
    """A directory that an export writes to without touching files of others.

    Which files are ours is kept in ``manifest.json``, written before the first of them.

    Args:
        path: The directory.
        overwrite: Whether files that no export wrote may be replaced.
        field: Name of the owner, for messages.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False, field: str = "export") -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        self._field = field

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def claim(self, names: Iterable[str]) -> None:
        """Make the directory, check that it can be written, and note which files will be ours.

        Raises:
            CompressionError: It cannot be made or written, or holds a file of such a name that no export wrote.
        """
        names = sorted(set(names))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise CompressionError.field(
                f"{self._field}.dirpath",
                expected="a directory that can be made and written",
                got=str(self.path),
                fix=f"{error.strerror or error}.",
            ) from error
        ours = self._ours()
        foreign = [name for name in (*names, MANIFEST) if (self / name).exists() and name not in ours]
        if foreign and not self._overwrite:
            raise CompressionError.field(
                f"{self._field}.dirpath",
                expected="a directory in which an export would replace only what an export wrote",
                got=str(self.path),
                fix=f"No export wrote {', '.join(foreign)}: choose another directory, or give overwrite=True.",
            )
        content = {"format": _FORMAT, "written_by": "lightning-compress", "files": sorted({*ours, *names} - {MANIFEST})}
        with replacing(self / MANIFEST) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _ours(self) -> set[str]:
        try:
            content = json.loads((self / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return set()
        if not isinstance(content, dict) or content.get("written_by") != "lightning-compress":
            return set()
        files = content.get("files")
        return {MANIFEST, *map(str, files)} if isinstance(files, list) else {MANIFEST}
