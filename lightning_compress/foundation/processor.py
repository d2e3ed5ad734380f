"""Features of the processor: VNNI."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def has_vnni() -> bool | None:
    """Whether the processor multiplies 8-bit integers without saturating; ``None`` where it does not say."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    return any(flag in flags for flag in ("avx512_vnni", "avx_vnni"))
