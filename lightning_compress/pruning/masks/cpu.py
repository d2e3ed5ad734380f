"""A compiled loop that applies one-byte masks in one pass over memory.

PyTorch has no operator that reads a float and a one-byte mask at full speed: multiplying by a ``bool`` tensor
converts it first, and Inductor's loop for it is slower than the eager one. A loop of one line, ``cpu.cpp``,
runs at the speed of memory. It is compiled when it is first needed, and left out where there is no compiler.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_compress.foundation.compile_cpp import CompiledSource

_BITS = {torch.float16: 16, torch.bfloat16: 16, torch.float32: 32, torch.float64: 64}


def _declare(lib: ctypes.CDLL) -> None:
    p, n = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int64)
    lib.mask_all.argtypes, lib.mask_all.restype = [p, p, n, n, ctypes.c_int64, ctypes.c_int], None


_LOOP = CompiledSource(
    Path(__file__).with_suffix(".cpp"),
    _declare,
    name="Compiled loop that applies masks",
    without="PyTorch's own operations give the same bits; a pruned training step takes a few per cent longer "
    "(benchmarks/pruning_cost.py).",
)


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


def _library() -> ctypes.CDLL | None:
    """The compiled loop; ``None`` where it is unavailable."""
    return _LOOP.load()
