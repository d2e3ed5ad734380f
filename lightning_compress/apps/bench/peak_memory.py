"""Memory that a file takes to load and run: measured in a process of its own."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from lightning_compress.errors import CompressionError


def peak_memory(path: Path, batch_size: int, threads: int, dims: Mapping[str, int], *, trust: bool = False) -> int:
    """Bytes that loading a file and running it three times add to a fresh process at their peak.

    The libraries are loaded before, as they would be for any file.

    Args:
        path: The file.
        batch_size: Samples in a call.
        threads: Threads of the runtime.
        dims: Sizes of free dimensions.
        trust: As in ``bench``.

    Raises:
        CompressionError: The file does not run there.
    """
    settings = {"batch_size": batch_size, "threads": threads, "dims": dict(dims), "trust": trust}
    command = [sys.executable, "-m", __name__, str(path), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = signal.Signals(-done.returncode).name if done.returncode < 0 else next(reversed(lines), "")
        raise CompressionError(f"bench --memory: {path} does not run in a process of its own: {reason}")
    return int(done.stdout.split()[-1])


def _resident(field: str) -> int:
    """A field of /proc/self/status in bytes: ``VmRSS`` now, ``VmHWM`` at its peak."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise CompressionError(f"bench --memory: this system does not tell {field} in /proc/self/status.")


def _measure(path: Path, *, batch_size: int, threads: int, dims: Mapping[str, int], trust: bool) -> int:
    from lightning_compress.apps.bench.open_file import opened

    for library in ("onnxruntime",) if path.suffix == ".onnx" else ("lightning_compress.apps.trained_run",):
        importlib.import_module(library)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
    before = _resident("VmRSS")
    with opened(path, threads=threads, dims=dims, trust=trust) as make:
        call = make(batch_size)
        for _ in range(3):
            call()
    return max(0, _resident("VmHWM") - before)


if __name__ == "__main__":
    _, given, text = sys.argv
    print(_measure(Path(given), **json.loads(text)))
