"""Kernels of one pass over memory for CPUs: ``cpu.cpp``, compiled once per machine and kept in the user's cache.

Without a C++ compiler, plain PyTorch operations serve, with the same results to the bit.
"""

from __future__ import annotations

import ctypes
import math

import torch

from lightning_compress.quantization.fake_quantize.cpu_library import NAMES, library, needed, use_compiled
from lightning_compress.quantization.fake_quantize.step_memory import StepMemory

__all__ = [
    "learn", "learned_gradient", "learned_pass", "library", "minmax", "pass_inside", "quantize", "quantize_rows",
    "takes_rows", "update_range", "use_compiled", "weight_scale",
]  # fmt: skip


def quantize(
    lib: ctypes.CDLL,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    qmin: int,
    qmax: int,
    clip: tuple[float, float] | None,
    *,
    mask: bool,
    observe: bool,
    scratch: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """``eager.quantize``, with a mask of one bit a value in the memory order of the result."""
    if scratch is not None and _fits(scratch, x):
        y = scratch.detach()
    else:
        x, y = _dense(x)
    words = torch.empty(lib.mask_words(x.numel()), dtype=torch.int32) if mask else None
    observed = torch.empty(2, dtype=torch.float32) if observe else None
    low, high = clip or (0.0, 0.0)
    scale, zero_point = _plain(scale), _plain(zero_point)
    getattr(lib, f"quantize_{NAMES[x.dtype]}")(
        x.data_ptr(), y.data_ptr(), None if words is None else words.data_ptr(), x.numel(),
        scale.data_ptr(), zero_point.data_ptr(), qmin, qmax, clip is not None, low, high,
        None if observed is None else observed.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return y, words, observed


def pass_inside(grad: torch.Tensor, words: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """``grad`` where the mask of ``quantize`` is set, else 0; ``stride`` is that of the quantized tensor."""
    lib = needed()
    if grad.stride() != stride:
        grad = torch.empty_strided(grad.shape, stride, dtype=grad.dtype).copy_(grad)
    out = torch.empty_strided(grad.shape, stride, dtype=grad.dtype)
    kernel = lib.pass_inside_4 if grad.element_size() == 4 else lib.pass_inside_2
    kernel(grad.data_ptr(), words.data_ptr(), out.data_ptr(), grad.numel(), torch.get_num_threads())
    return out


def minmax(lib: ctypes.CDLL, x: torch.Tensor) -> torch.Tensor:
    """``observers.minmax``."""
    x = x if x.is_contiguous() else _dense(x)[0]
    out = torch.empty(2, dtype=torch.float32)
    getattr(lib, f"minmax_{NAMES[x.dtype]}")(x.data_ptr(), x.numel(), out.data_ptr(), torch.get_num_threads())
    return out


def quantize_rows(
    lib: ctypes.CDLL, w: torch.Tensor, scale: torch.Tensor, axis: int, qmin: int, qmax: int, *, mask: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``eager.quantize`` of a weight with a scale per channel: its values, and where they lie inside (bool)."""
    w, scale = w.contiguous(), _plain(scale)
    y = torch.empty_like(w)
    inside = torch.empty(w.shape, dtype=torch.bool) if mask else None
    getattr(lib, f"quantize_rows_{NAMES[w.dtype]}")(
        w.data_ptr(), y.data_ptr(), None if inside is None else inside.data_ptr(), *_folded(w, axis, scale),
        scale.data_ptr(), qmin, qmax, torch.get_num_threads(),
    )  # fmt: skip
    return y, inside


def takes_rows(x: torch.Tensor, scale: torch.Tensor, axis: int | None, group_size: int | None) -> bool:
    """Whether every scale belongs to values that lie together in memory; a cut-off last group breaks that."""
    if x.numel() == 0:
        return False
    if group_size is None or scale.ndim < 2:
        return True
    return axis == 0 and x.numel() == scale.numel() * group_size


def weight_scale(lib: ctypes.CDLL, w: torch.Tensor, axis: int | None, qmax: int) -> torch.Tensor:
    """``observers.weight_scale`` by minmax, without groups."""
    w = w.contiguous()
    out = torch.empty(() if axis is None else w.shape[axis], dtype=torch.float32)
    getattr(lib, f"weight_scale_{NAMES[w.dtype]}")(
        w.data_ptr(), *_folded(w, axis or 0, out), qmax, out.data_ptr(), torch.get_num_threads()
    )
    return out


def learned_gradient(
    lib: ctypes.CDLL, grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, axis: int, qmin: int, qmax: int,
    factor: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """``eager.learned_gradient``: of ``x``, and the sums for each scale times ``factor`` (float32)."""
    if scale.ndim == 0:
        x, out = _dense(x)
    else:
        x = x.contiguous()
        out = torch.empty_like(x)
    if grad.stride() != x.stride() or grad.dtype != x.dtype:
        grad = torch.empty_like(x).copy_(grad)
    scale = _plain(scale)
    to_scale = torch.empty_like(scale)
    getattr(lib, f"learned_gradient_{NAMES[x.dtype]}")(
        grad.data_ptr(), x.data_ptr(), out.data_ptr(), *_folded(x, axis, scale), scale.data_ptr(), qmin, qmax, factor,
        to_scale.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out, to_scale


def learn(
    lib: ctypes.CDLL,
    x: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    qmin: int,
    qmax: int,
    clip: tuple[float, float] | None,
    scratch: torch.Tensor | None,
    memory: StepMemory | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``eager.learn`` with the zero point of ``learned_zero_point``.

    Returns:
        The values on the grid; five codes in an int32, in an order of the kernels' own; scale and zero point, float32,
        ``[2]``.
    """
    if scratch is not None and _fits(scratch, x):
        y = scratch.detach()
    else:
        x, y = _dense(x)
    count = lib.code_words(x.numel())
    codes = torch.empty(count, dtype=torch.int32) if memory is None else memory.take(count)
    grid = torch.empty(2, dtype=torch.float32)
    low, high = clip or (0.0, 0.0)
    scale = _plain(scale)
    getattr(lib, f"learn_{NAMES[x.dtype]}")(
        x.data_ptr(), y.data_ptr(), codes.data_ptr(), x.numel(), scale.data_ptr(), _address(offset),
        qmin, qmax, clip is not None, low, high, grid.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return y, codes, grid


def learned_pass(
    grad: torch.Tensor,
    codes: torch.Tensor,
    grid: torch.Tensor,
    offset: torch.Tensor | None,
    qmin: int,
    qmax: int,
    clip: tuple[float, float] | None,
    factor: float,
    *,
    stride: tuple[int, ...],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """``eager.learned_pass`` for the codes and the grid of ``learn``; ``stride`` is that of the quantized tensor."""
    lib = needed()
    if grad.stride() != stride:
        grad = torch.empty_strided(grad.shape, stride, dtype=grad.dtype).copy_(grad)
    out = torch.empty_strided(grad.shape, stride, dtype=grad.dtype)
    to_scale = torch.empty((), dtype=torch.float32)
    to_offset = None if offset is None else torch.empty((), dtype=torch.float32)
    low, high = clip or (0.0, 0.0)
    getattr(lib, f"learned_pass_{NAMES[grad.dtype]}")(
        grad.data_ptr(), codes.data_ptr(), out.data_ptr(), grad.numel(), grid.data_ptr(), _address(offset),
        qmin, qmax, low, high, factor, to_scale.data_ptr(), _address(to_offset), torch.get_num_threads(),
    )  # fmt: skip
    return out, to_scale, to_offset


def update_range(
    lib: ctypes.CDLL,
    range_: torch.Tensor,
    observed: torch.Tensor,
    momentum: float,
    nonfinite: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    levels: int,
    symmetric: bool,
) -> None:
    """``observers.update_``."""
    lib.update_range(
        range_.data_ptr(), observed.data_ptr(), momentum, nonfinite.data_ptr(), scale.data_ptr(),
        zero_point.data_ptr(), levels, symmetric,
    )  # fmt: skip


def _fits(scratch: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether a result for ``x`` can be written to ``scratch``, value by value in the order of memory."""
    dense = scratch.is_contiguous() or scratch.is_contiguous(memory_format=torch.channels_last)
    return dense and scratch.stride() == x.stride() and scratch.shape == x.shape and scratch.dtype == x.dtype


def _dense(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor without gaps in memory, and an empty one with the same strides."""
    y = torch.empty_like(x)
    if y.stride() != x.stride():
        x = x.contiguous()
        y = torch.empty_like(x)
    return x, y


def _plain(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter as the kernels read it: float32, without gaps, in the main memory."""
    if parameter.dtype is torch.float32 and parameter.is_contiguous() and parameter.device.type == "cpu":
        return parameter
    return parameter.detach().to("cpu", torch.float32).contiguous()


def _folded(x: torch.Tensor, axis: int, per_channel: torch.Tensor) -> tuple[int, int, int]:
    """A contiguous tensor as ``[outer, channels, inner]``; groups count as channels."""
    if per_channel.ndim == 0:
        # One scale for all: rows only spread the work over threads.
        outer = x.shape[0] if x.ndim > 1 else 1
        return outer, 1, x.numel() // outer
    outer = math.prod(x.shape[: axis % x.ndim])
    return outer, per_channel.numel(), x.numel() // (outer * per_channel.numel())


def _address(number: torch.Tensor | None) -> int | None:
    """Where a float32 lies in memory."""
    return None if number is None else number.data_ptr()
