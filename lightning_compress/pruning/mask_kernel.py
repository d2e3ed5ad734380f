"""A compiled loop that applies one-byte masks in one pass over memory.

PyTorch has no operator that reads a float and a one-byte mask at full speed: multiplying by a ``bool`` tensor
converts it first, and Inductor's loop for it is slower than the eager one. A C loop of one line runs at the speed of
memory. It is compiled at first use with the system's compiler, into a private temporary directory, and left out
where there is none.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

# A kept entry has mask byte 1, and minus one is all bits set; a pruned one has 0, which clears every bit.
_SOURCE = """
#include <stdint.h>
#define LOOP(BITS) \\
static void mask##BITS(int##BITS##_t *restrict w, const int8_t *restrict m, int64_t n, int threads) { \\
    _Pragma("omp parallel for simd schedule(static) num_threads(threads) if(n > 65536)") \\
    for (int64_t i = 0; i < n; i++) w[i] &= -(int##BITS##_t)m[i]; \\
}
LOOP(16)
LOOP(32)
LOOP(64)
void mask_all(void **w, void **m, int64_t *n, int64_t *bits, int64_t count, int threads) {
    for (int64_t t = 0; t < count; t++) {
        if (bits[t] == 16) mask16((int16_t *)w[t], (const int8_t *)m[t], n[t], threads);
        else if (bits[t] == 32) mask32((int32_t *)w[t], (const int8_t *)m[t], n[t], threads);
        else mask64((int64_t *)w[t], (const int8_t *)m[t], n[t], threads);
    }
}
"""

_BITS = {torch.float16: 16, torch.bfloat16: 16, torch.float32: 32, torch.float64: 64}


def available() -> bool:
    """Whether the compiled loop can be used here."""
    return _library() is not None


def mask_in_one_pass(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> list[int]:
    """Clear pruned entries of those tensors that the compiled loop can handle.

    Returns:
        Indices of the tensors that were left alone.
    """
    fit = [i for i, (tensor, mask) in enumerate(zip(tensors, masks, strict=True)) if _fits(tensor, mask)]
    library = _library() if fit else None
    if library is None:
        return list(range(len(tensors)))
    count = len(fit)
    library.mask_all(
        (ctypes.c_void_p * count)(*[tensors[i].data_ptr() for i in fit]),
        (ctypes.c_void_p * count)(*[masks[i].data_ptr() for i in fit]),
        (ctypes.c_int64 * count)(*[tensors[i].numel() for i in fit]),
        (ctypes.c_int64 * count)(*[_BITS[tensors[i].dtype] for i in fit]),
        ctypes.c_int64(count),
        ctypes.c_int(torch.get_num_threads()),
    )
    # The loop writes behind autograd's back, so tell it.
    torch.autograd.graph.increment_version([tensors[i] for i in fit])
    done = set(fit)
    return [i for i in range(len(tensors)) if i not in done]


def _fits(tensor: Tensor, mask: Tensor) -> bool:
    if tensor.device.type != "cpu" or mask.device.type != "cpu" or tensor.dtype not in _BITS:
        return False
    if tensor.is_contiguous() and mask.is_contiguous():
        return True
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    return layout is not None and all(t.is_contiguous(memory_format=layout) for t in (tensor, mask))


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Compile and load the loop; ``None`` where that cannot be done."""
    compiler = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if not compiler or os.name != "posix":
        return None
    with tempfile.TemporaryDirectory(prefix="lightning_compress_") as folder:
        source, library = Path(folder, "mask.c"), Path(folder, "mask.so")
        source.write_text(_SOURCE)
        # Not every compiler knows the processor by "native" or has OpenMP.
        for flags in (["-march=native", "-fopenmp"], ["-fopenmp"], []):
            command = [*shlex.split(compiler), "-O3", *flags, "-shared", "-fPIC", str(source), "-o", str(library)]
            try:
                done = subprocess.run(command, capture_output=True, timeout=60, check=False)
            except (OSError, subprocess.TimeoutExpired):
                return None
            if done.returncode == 0:
                try:
                    # Loaded while the file is there; the mapping outlives it.
                    return ctypes.CDLL(str(library))
                except OSError:
                    continue
    return None
