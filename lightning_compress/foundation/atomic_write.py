"""Atomic writes: a file is either the old one or the new one, never half of each."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_compress.errors import CompressionError

_TEMPORARY = re.compile(r"(?P<beginning>\..+)-(?P<pid>\d+)-[0-9a-f]{8}\.partial")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that a reader, a crash or a kill sees the old content or the new, never a mixture.

    Gives a temporary path in the same directory. When the block ends well the temporary file is flushed to disk
    and takes the place of ``path`` in one step; when it raises, the temporary file is removed and ``path`` stays.
    Missing directories are made. What a killed writer left behind is removed by the next one for the same path.

    Args:
        path: The file to write.

    Raises:
        CompressionError: The directory or the file cannot be written: no permission, no space, a directory in its
            place, or the block left nothing at the temporary path.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "new directory" / "weights.bin"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_bytes(b"whole")
        >>> target.read_bytes()
        b'whole'
    """
    # Through a symbolic link the file that it points to is written; the link stays.
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise CompressionError(f"{target}: expected a file to write, this is a directory. Add a file name.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    temporary = _temporary_path(target)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
        _flush_directory(target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_path(target: Path) -> Path:
    # Host and process say whether the writer is still alive; the random part keeps two threads apart.
    host = re.sub(r"[^\w]", "_", socket.gethostname())[:40]
    # A file name has at most 255 bytes, so a long one keeps only its beginning here.
    name = target.name.encode()[:120].decode(errors="ignore")
    return target.parent / f".{name}.{host}-{os.getpid()}-{os.urandom(4).hex()}.partial"


def _remove_abandoned(target: Path) -> None:
    """Remove temporary files of the same target whose writer on this machine is no longer alive."""
    beginning, _, _ = _temporary_path(target).name.rpartition("-")[0].rpartition("-")
    for file in target.parent.iterdir():
        found = _TEMPORARY.fullmatch(file.name)
        if found and found["beginning"] == beginning and not _alive(int(found["pid"])):
            file.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _flush_directory(directory: Path) -> None:
    # The rename itself is on disk only once the directory is; Windows has no directory handles to flush.
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(target: Path, error: OSError) -> CompressionError:
    return CompressionError(
        f"{target}: cannot be written ({error.strerror or error}). The file that was there, if any, is untouched; "
        f"free space or choose a directory that can be written."
    )
