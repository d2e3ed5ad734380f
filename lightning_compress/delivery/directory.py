"""The directory of an export: its files, written as one set, without touching files of others."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_compress.errors import CompressionError
from lightning_compress.export.formats import REPORTS
from lightning_compress.foundation.atomic_write import replacing

MANIFEST = "manifest.json"
PARTIAL, READY = ".export.partial", ".export.ready"
"""Where the files of an export are until all are written, and while they are moved into place."""
_FORMAT = 1


class ExportDirectory:
    """A directory that an export writes to without touching files of others.

    Which files are ours is kept in ``manifest.json``, written before the first of them. The files of an export take
    the places of an earlier one's together, so that a kill leaves the old set or the new.

    Args:
        path: The directory.
        overwrite: Whether files that no export wrote may be replaced.
        field: Name of the owner, for messages.

    Attributes:
        path: Where to write: the directory, or one in it while ``new_set`` is open.
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
        self._move_into_place()
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

    @contextmanager
    def new_set(self) -> Iterator[None]:
        """Write aside what is written meanwhile; the end of the block, or ``commit`` in it, puts it in place.

        Where the block raises, an earlier export stays as it was; without one, what was written is kept.

        Raises:
            CompressionError: Nothing can be written.
        """
        directory = self.path
        partial = directory / PARTIAL
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        except OSError as error:
            raise CompressionError(f"{directory}: cannot be written ({error.strerror or error}).") from error
        self.path = partial
        try:
            yield
        except BaseException:
            if self.path == partial and (directory / REPORTS[0]).exists():
                self.path = directory
                shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            self.commit()

    def commit(self) -> None:
        """Put what was written in place; the report of an earlier export goes first, and the new one comes last."""
        if self.path.name != PARTIAL:
            return
        partial, self.path = self.path, self.path.parent
        try:
            if partial.is_dir() and any(partial.iterdir()):
                os.replace(partial, self / READY)
                self._move_into_place()
            elif partial.is_dir():
                partial.rmdir()
        except OSError as error:
            raise CompressionError(f"{self.path}: cannot be written ({error.strerror or error}).") from error

    def _move_into_place(self) -> None:
        """Move the files of a whole export into place, those of one that was killed at it as well."""
        ready = self / READY
        if not ready.is_dir():
            return
        files = sorted(ready.iterdir(), key=lambda file: (file.name in REPORTS, file.suffix == ".json"))
        # A kill may have come between two of the reports: then the old ones are gone already.
        if any(file.name not in REPORTS for file in files):
            for name in REPORTS:
                (self / name).unlink(missing_ok=True)
        for file in files:
            os.replace(file, self / file.name)
        ready.rmdir()

    def _ours(self) -> set[str]:
        try:
            content = json.loads((self / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return set()
        if not isinstance(content, dict) or content.get("written_by") != "lightning-compress":
            return set()
        files = content.get("files")
        return {MANIFEST, *map(str, files)} if isinstance(files, list) else {MANIFEST}
