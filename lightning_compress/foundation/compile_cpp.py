"""Compiling a C++ source for this machine, and the signatures of ``native.cpp``'s functions."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_SOURCE = Path(__file__).parents[1] / "quantization" / "fake_quantize" / "cpu.cpp"
_FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC",
    # The bits of eager PyTorch: no fused multiply-add, and no assumption about NaN.
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
# The suffixes of the kernels' names.
DTYPES = ("float32", "bfloat16", "float16")


def build(path: Path = _SOURCE, flags: Sequence[str] = _FLAGS) -> Path:
    """Path of the compiled library of a source, for this compiler and processor; compiled if it is not there yet.

    Args:
        path: The source, one file.
        flags: What the compiler is told.

    Raises:
        OSError: There is no compiler, or nothing can be written.
        subprocess.SubprocessError: It failed.
    """
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        raise FileNotFoundError("no C++ compiler (g++, clang++ or c++) on the PATH")
    source = path.read_bytes()
    identity = (source, *flags, compiler, platform.machine(), _processor())
    digest = hashlib.sha256("\0".join(map(str, identity)).encode()).hexdigest()[:24]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_compress"
    target = cache / f"{path.stem}-{digest}.so"
    if not target.exists():
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Processes that start together each build their own file; the last rename wins, with equal content.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            built = Path(folder) / target.name
            command = [compiler, *flags, str(path), "-o", str(built)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
            built.replace(target)
    return target


def _processor() -> str:
    """What ``-march=native`` depends on: a home directory can be shared by unlike machines."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    lines = cpuinfo.read_text(errors="replace").splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    """The library, with the types of its functions' arguments."""
    p, n, f, d, i = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_double, ctypes.c_int
    for size in (lib.mask_words, lib.code_words):
        size.argtypes, size.restype = [n], n
    signatures = {
        "quantize_{}": [p, p, p, n, p, p, f, f, i, f, f, p, i],
        "minmax_{}": [p, n, p, i],
        "quantize_rows_{}": [p, p, p, n, n, n, p, f, f, i],
        "weight_scale_{}": [p, n, n, n, f, p, i],
        "learn_{}": [p, p, p, n, p, p, f, f, i, f, f, p, i],
        "learned_pass_{}": [p, p, p, n, p, p, f, f, f, f, d, p, p, i],
        "learned_gradient_{}": [p, p, p, n, n, n, p, f, f, d, p, i],
        "pass_inside_4": [p, p, p, n, i],
        "pass_inside_2": [p, p, p, n, i],
        "update_range": [p, p, f, p, p, p, f, i],
    }
    for pattern, argtypes in signatures.items():
        for name in {pattern.format(dtype) for dtype in DTYPES}:
            kernel = getattr(lib, name)
            kernel.argtypes, kernel.restype = argtypes, None
    return lib
