"""C++ sources that are compiled for this processor when they are first needed, and kept in the user's cache.

Where there is no compiler, the library that a wheel for this kind of machine brings serves. Nothing depends on either:
without both, callers compute the same with PyTorch's own operations. The screen says so once, with the cost and the
remedy.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_compress.errors import CompressionError, first_line
from lightning_compress.foundation.atomic_write import replacing

_COMMON = (
    "-std=c++17", "-O3", "-shared", "-fPIC",
    # The bits of eager PyTorch: no fused multiply-add, and no assumption about NaN.
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
# Not every compiler knows the processor by "native" or has OpenMP.
_VARIANTS = (("-march=native", "-fopenmp"), ("-fopenmp",), ())
# What a wheel brings runs on every processor since about 2015 that knows these.
_SHIPPED_FLAGS = {"x86_64": ("-march=x86-64-v3", "-fopenmp")}
_X86_64_V3 = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
_SECONDS = 300
_log = logging.getLogger(__name__)


def compiler() -> list[str]:
    """The command of the C++ compiler: ``$CXX`` with its arguments, or else g++, clang++ or c++ on the ``PATH``.

    Raises:
        CompressionError: There is none.
    """
    given = os.environ.get("CXX")
    if given:
        try:
            command = shlex.split(given)
        except ValueError as error:
            raise CompressionError.field("CXX", expected="a command", got=given, fix=str(error)) from error
        if not command or shutil.which(command[0]) is None:
            raise CompressionError.field(
                "CXX", expected="the command of a C++ compiler", got=given, fix="There is no such program."
            )
        return command
    found = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if found is None:
        raise CompressionError(
            "No C++ compiler is on the PATH. Install g++ (apt-get install g++) or clang++, or name one in CXX."
        )
    return [found]


class CompiledSource:
    """A C++ source and its compiled library, which is loaded once a process.

    Args:
        path: The source.
        headers: The headers of its directory that it includes.
        declare: Tells ``ctypes`` the types of the library's functions.
        name: What it is, for the screen.
        without: What its absence costs, one sentence for the screen.

    Attributes:
        sources: The source and its headers; a change in any of them compiles again.
        failure: Why there is no library; ``None`` where there is one, or it was not asked for yet.
    """

    def __init__(
        self,
        path: Path,
        declare: Callable[[ctypes.CDLL], object],
        *,
        name: str,
        without: str,
        headers: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.sources = (path, *map(path.with_name, headers))
        self.failure: str | None = None
        self._declare, self._name, self._without = declare, name, without
        self._library: ctypes.CDLL | None = None
        self._lock = threading.Lock()

    @property
    def library(self) -> ctypes.CDLL | None:
        """The library if it was loaded already."""
        return self._library

    def load(self) -> ctypes.CDLL | None:
        """The library, compiled if this machine has not done that yet; ``None`` where it is unavailable."""
        with self._lock:
            if self._library is None and self.failure is None:
                try:
                    found = self._open()
                except (CompressionError, OSError, subprocess.SubprocessError) as error:
                    output = (getattr(error, "stderr", None) or "").strip()
                    reason = f"{first_line(error)}{' ' + output[-500:] if output else ''}"
                    shipped = _shipped(self.path)
                    if shipped is None:
                        self.failure = reason
                        _say(f"{self._name}: unavailable. {reason} {self._without}")
                        return None
                    found = shipped
                self._declare(found)
                self._library = found
            return self._library

    def _open(self) -> ctypes.CDLL:
        if os.name != "posix":
            raise CompressionError("They are compiled on Linux and macOS alone.")
        command, cache = compiler(), _cache()
        identity = (
            *(source.read_bytes() for source in self.sources),
            *_COMMON,
            *command,
            platform.machine(),
            _processor(),
        )
        stem = f"{self.path.stem}-{_digest(*identity)}"
        if cache is not None and (kept := _kept(cache, stem)) is not None:
            return ctypes.CDLL(str(kept))
        place = "this process alone, since there is no home directory" if cache is None else str(cache)
        _say(
            f"{self._name}: compiling for this processor with {Path(command[0]).name}, once a machine, usually 2 to "
            f"30 s. Kept in {place}."
        )
        with tempfile.TemporaryDirectory(prefix="lightning_compress_") as folder:
            built = Path(folder, f"{stem}.so")
            _compile(command, self.path, built)
            # Loaded while the file is there; the mapping outlives it.
            return ctypes.CDLL(str(_keep(built, cache)))


def compile_to_ship(source: Path) -> None:
    """Compile a source for a wheel, into a library beside it that serves where there is no compiler.

    Raises:
        CompressionError: There is no compiler here.
        CalledProcessError: It refuses the source.
    """
    flags = _SHIPPED_FLAGS.get(platform.machine(), ("-fopenmp",))
    _compile(compiler(), source, _beside(source), [flags])


def _shipped(source: Path) -> ctypes.CDLL | None:
    """The library that a wheel has brought, where this processor can run it."""
    if platform.machine() == "x86_64" and not _X86_64_V3.issubset(_processor().split()):
        return None
    try:
        return ctypes.CDLL(str(_beside(source)))
    except OSError:
        return None


def _beside(source: Path) -> Path:
    # Without "lib", Python would take cpu.so for the module cpu.
    return source.with_name(f"lib{source.stem}.so")


def _compile(command: list[str], source: Path, target: Path, variants: Sequence[tuple[str, ...]] = _VARIANTS) -> None:
    for flags in variants:
        done = subprocess.run(
            [*command, *_COMMON, *flags, str(source), "-o", str(target)],
            capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode == 0 and target.is_file():
            return
    raise subprocess.CalledProcessError(done.returncode, shlex.join(command), done.stdout, done.stderr)


def _keep(built: Path, cache: Path | None) -> Path:
    """Copy a library to the cache, under a name that says what is in it; where that cannot be, it stays where it is."""
    if cache is None:
        return built
    data = built.read_bytes()
    target = cache / f"{built.stem}-{_digest(data)}.so"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Processes that start together each build their own file; the last rename wins, with equal content.
        with replacing(target) as temporary:
            temporary.write_bytes(data)
            temporary.chmod(0o700)
    except (CompressionError, OSError) as error:
        _say(
            f"{cache}: cannot be written ({first_line(error)}), so that every process compiles again. Set "
            f"XDG_CACHE_HOME to a directory that can be written."
        )
        return built
    return target


def _kept(cache: Path, stem: str) -> Path | None:
    """A library in the cache that is whole and that nobody else could have written; a damaged one is removed."""
    for path in sorted(cache.glob(f"{stem}-*.so")):
        with contextlib.suppress(OSError):
            found = path.stat()
            if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                continue
            # Loading a library that was cut off kills the process.
            if path.stem == f"{stem}-{_digest(path.read_bytes())}":
                return path
            path.unlink()
    return None


def _cache() -> Path | None:
    """The package's directory in the user's cache; ``None`` where there is no home directory, as in containers."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(given) if given and os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return base / "lightning_compress"


def _digest(*parts: object) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else str(part).encode())
        found.update(b"\0")
    return found.hexdigest()[:24]


def _processor() -> str:
    """What ``-march=native`` depends on: a home directory can be shared by unlike machines."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    lines = cpuinfo.read_text(errors="replace").splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _say(text: str) -> None:
    """One line on the screen, from the first of the processes of a machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _log.warning("%s", text)
