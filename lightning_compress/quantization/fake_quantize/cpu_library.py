"""The library of ``cpu.cpp`` and its headers: when it is used, and the types of its functions."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Literal

import torch

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.compile_cpp import CompiledSource
from lightning_compress.quantization.fake_quantize.transforms import transformed

# Building takes seconds, which an epoch of smaller tensors would not win back.
_WORTH_BUILDING = 65_536
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""Types that the kernels know, and the suffixes of their names."""

_mode: Literal["auto"] | bool = "auto"


def _declare(lib: ctypes.CDLL) -> None:
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
        for name in {pattern.format(dtype) for dtype in NAMES.values()}:
            kernel = getattr(lib, name)
            kernel.argtypes, kernel.restype = argtypes, None


KERNELS = CompiledSource(
    Path(__file__).with_name("cpu.cpp"),
    _declare,
    headers=("cpu_vectors.h", "cpu_activations.h", "cpu_weights.h", "cpu_learned.h"),
    name="Compiled kernels of quantization-aware training",
    without="PyTorch's own operations give the same results to the bit, in more time: a quantization-aware step of "
    "ResNet-20 takes 1.5 times a float step instead of 1.03 times (benchmarks/quantization_step.py --eager).",
)


def use_compiled(mode: Literal["auto"] | bool) -> None:
    """Say whether compiled kernels are used.

    Args:
        mode: ``"auto"`` compiles when the first tensor of at least 65,536 values comes and falls back to PyTorch
            operations where that fails, ``True`` compiles now, ``False`` never uses them.

    Raises:
        CompressionError: ``True``, and there is no C++ compiler, or it failed.

    Example:
        >>> use_compiled("auto")
    """
    global _mode
    if mode not in ("auto", True, False):
        raise CompressionError.field("use_compiled", expected="'auto', True or False", got=mode)
    _mode = mode
    if mode is True and KERNELS.load() is None:
        raise CompressionError(f"Compiled kernels are unavailable: {KERNELS.failure}")


def library(x: torch.Tensor) -> ctypes.CDLL | None:
    """The compiled kernels, if they are to be used for this tensor."""
    if torch.compiler.is_compiling() or _mode is False:
        return None
    if type(x) not in (torch.Tensor, torch.nn.Parameter) or x.device.type != "cpu" or x.dtype not in NAMES:
        return None
    if torch.jit.is_tracing() or x.layout is not torch.strided or transformed():
        return None
    if KERNELS.library is not None:
        return KERNELS.library
    return KERNELS.load() if _mode is True or x.numel() >= _WORTH_BUILDING else None


def needed() -> ctypes.CDLL:
    """The library, for what its own kernels saved.

    Raises:
        CompressionError: It is unavailable.
    """
    lib = KERNELS.load()
    if lib is None:
        raise CompressionError(
            f"A mask of the compiled kernels needs them, and they are unavailable: {KERNELS.failure}"
        )
    return lib
