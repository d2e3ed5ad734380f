"""Triton kernels that fake-quantize all weights of a model in one launch, and search for their scales.

A table lists the weights and the tiles that they are cut into: 32 rows each, whose values share a scale. Rows of more
than 8192 values are cut into parts first, and a launch before finds the largest value of each part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from lightning_compress.quantization.fake_quantize.gpu.arithmetic import (
    EXACT,
    SMALLEST_LEARNED,
    clamp,
    halves,
    round_even,
    usable,
    wide,
)
from lightning_compress.quantization.fake_quantize.gpu.layout import COLUMNS, ROWS, Layout, listed, offsets_in
from lightning_compress.quantization.fake_quantize.gpu.searches import fractions_on

_COLUMNS = 128
_WIDTH = tl.constexpr(len(COLUMNS))


@triton.jit
def _cell(table, weight, rows, columns):
    """Addresses in a weight of values by their row (of parts) and position, and which of them there are."""
    entry = table + weight * _WIDTH
    channels, inner, outer = tl.load(entry + 2).to(tl.int32), tl.load(entry + 3).to(tl.int32), tl.load(entry + 4)
    groups, group = tl.load(entry + 5).to(tl.int32), tl.load(entry + 6).to(tl.int32)
    parts, part = tl.load(entry + 9).to(tl.int32), tl.load(entry + 10).to(tl.int32)
    row, within = rows // parts, (rows % parts) * part + columns
    channel = row // groups
    rest = (row % groups) * group + within
    there = (columns < part) & (within < group) & (rest < inner * outer.to(tl.int32)) & (channel < channels)
    at = ((rest // inner) * channels + channel) * inner + rest % inner
    return at, there


@triton.jit
def _largest_of(w_ptr, table, weight, rows, part, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Largest magnitude of each row, NaN if it holds one."""
    largest = tl.zeros((ROWS,), dtype=tl.float32)
    nans = tl.zeros((ROWS,), dtype=tl.int32)
    for start in range(0, part, COLUMNS):
        at, there = _cell(table, weight, rows[:, None], start + tl.arange(0, COLUMNS)[None, :])
        w = tl.abs(tl.load(w_ptr + at, mask=there, other=0).to(tl.float32))
        nans += tl.sum(tl.where(w != w, 1, 0), 1)
        largest = tl.maximum(largest, tl.max(tl.where(w != w, 0.0, w), 1))
    return tl.where(nans > 0, float("nan"), largest)


@triton.jit
def _tile(table, tiles, ROWS: tl.constexpr):
    weight = tl.load(tiles + 2 * tl.program_id(0))
    rows = tl.load(tiles + 2 * tl.program_id(0) + 1).to(tl.int32) + tl.arange(0, ROWS)
    return weight, rows


@triton.jit
def _part_maxima(table, tiles, y_ptr, maxima_ptr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    weight, rows = _tile(table, tiles, ROWS)
    entry = table + weight * _WIDTH
    w_ptr = tl.load(entry).to(tl.pointer_type(y_ptr.dtype.element_ty))
    largest = _largest_of(w_ptr, table, weight, rows, tl.load(entry + 10).to(tl.int32), COLUMNS, ROWS)
    listed = rows < tl.load(entry + 8) * tl.load(entry + 9)
    tl.store(maxima_ptr + tl.load(entry + 11) + rows, largest, mask=listed)


@triton.jit
def _quantize_all(
    table, tiles, y_ptr, outside_ptr, factors_ptr, scales_ptr, maxima_ptr,
    GIVEN: tl.constexpr, RATIO: tl.constexpr, CUT: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    weight, rows = _tile(table, tiles, ROWS)
    entry = table + weight * _WIDTH
    w_ptr = tl.load(entry).to(tl.pointer_type(y_ptr.dtype.element_ty))
    offset = tl.load(entry + 1)
    parts, part = tl.load(entry + 9).to(tl.int32), tl.load(entry + 10).to(tl.int32)
    qmax = tl.load(entry + 12).to(tl.float32)
    row = rows // parts
    at_scale = tl.load(entry + 7) + row
    listed = row < tl.load(entry + 8)
    if GIVEN:
        scale = tl.load(factors_ptr + at_scale, mask=listed, other=1.0)
        scale = tl.where(scale < SMALLEST_LEARNED, SMALLEST_LEARNED, scale)
    else:
        if CUT:
            largest = tl.zeros((ROWS,), dtype=tl.float32)
            nans = tl.zeros((ROWS,), dtype=tl.int32)
            for i in range(0, parts):
                found = tl.load(maxima_ptr + tl.load(entry + 11) + row * parts + i, mask=listed, other=0.0)
                nans += tl.where(found != found, 1, 0)
                largest = tl.maximum(largest, tl.where(found != found, 0.0, found))
            largest = tl.where(nans > 0, float("nan"), largest)
        else:
            largest = _largest_of(w_ptr, table, weight, rows, part, COLUMNS, ROWS)
        # A row of zeros has another scale elsewhere; its values are zeros whatever it is.
        scale = usable(tl.div_rn(largest, qmax))
        if RATIO:
            scale = scale * tl.load(factors_ptr + at_scale, mask=listed, other=1.0)
    tl.store(scales_ptr + at_scale, scale, mask=listed & (rows % parts == 0))
    for start in range(0, part, COLUMNS):
        at, there = _cell(table, weight, rows[:, None], start + tl.arange(0, COLUMNS)[None, :])
        w = tl.load(w_ptr + at, mask=there, other=0).to(tl.float32)
        u = tl.div_rn(w, scale[:, None])
        rounded = round_even(u)
        # The sign of zero is kept, as torch.round does.
        rounded = tl.where(rounded == 0.0, u * 0.0, rounded)
        kept = clamp(rounded, -qmax, qmax)
        tl.store(y_ptr + offset + at, (kept * scale[:, None]).to(y_ptr.dtype.element_ty), mask=there)
        if RATIO:
            tl.store(outside_ptr + offset + at, (kept != rounded).to(tl.int8), mask=there)


@triton.jit
def _search_all(
    table, tiles, y_ptr, fractions_ptr, found_ptr, largest_ptr, count, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):
    weight, rows = _tile(table, tiles, ROWS)
    entry = table + weight * _WIDTH
    w_ptr = tl.load(entry).to(tl.pointer_type(y_ptr.dtype.element_ty))
    part, qmax = tl.load(entry + 10).to(tl.int32), tl.load(entry + 12).to(tl.float32)
    full = tl.div_rn(_largest_of(w_ptr, table, weight, rows, part, COLUMNS, ROWS), qmax)
    least = tl.full((ROWS,), float("inf"), dtype=tl.float64)
    best = full
    for i in range(count):
        candidate = full * tl.load(fractions_ptr + i)
        scale = usable(candidate)[:, None]
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float64)
        for start in range(0, part, COLUMNS):
            at, there = _cell(table, weight, rows[:, None], start + tl.arange(0, COLUMNS)[None, :])
            w = tl.load(w_ptr + at, mask=there, other=0).to(tl.float32)
            error = clamp(round_even(tl.div_rn(w, scale)), -qmax, qmax) * scale - w
            total += tl.where(there, error * error, 0.0).to(tl.float64)
        error = tl.sum(total, 1)
        better = error < least
        least = tl.where(better, error, least)
        best = tl.where(better, candidate, best)
    listed = rows < tl.load(entry + 8)
    tl.store(found_ptr + tl.load(entry + 7) + rows, best, mask=listed)
    tl.store(largest_ptr + tl.load(entry + 7) + rows, full, mask=listed)


@triton.jit
def _positive(scales_ptr, first, rows, BLOCK: tl.constexpr):
    """``observers._positive``: rows of zeros take the largest scale of the others."""
    most = tl.zeros((BLOCK,), dtype=tl.float32)
    nans = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, rows, BLOCK):
        at = start + tl.arange(0, BLOCK)
        scale = tl.load(scales_ptr + first + at, mask=at < rows, other=0.0)
        nans += tl.where(scale != scale, 1, 0)
        most = tl.maximum(most, tl.where(scale != scale, 0.0, scale))
    largest = tl.where(tl.sum(nans, 0) > 0, float("nan"), tl.max(most, 0))
    for start in range(0, rows, BLOCK):
        at = start + tl.arange(0, BLOCK)
        scale = tl.load(scales_ptr + first + at, mask=at < rows, other=0.0)
        tl.store(scales_ptr + first + at, usable(tl.where(scale > 0, scale, largest)), mask=at < rows)


@triton.jit
def _all_positive(table, found_ptr, largest_ptr, BLOCK: tl.constexpr):
    entry = table + tl.program_id(0) * _WIDTH
    first, rows = tl.load(entry + 7), tl.load(entry + 8).to(tl.int32)
    _positive(found_ptr, first, rows, BLOCK)
    _positive(largest_ptr, first, rows, BLOCK)


@triton.jit
def _learned_pass(
    grad_ptr, w_ptr, out_ptr, scales_ptr, sums_ptr, table, parts_total, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    parts, part = tl.load(table + 9).to(tl.int32), tl.load(table + 10).to(tl.int32)
    qmax = tl.load(table + 12).to(tl.float32)
    listed = rows < parts_total
    scale = tl.load(scales_ptr + rows // parts, mask=listed, other=1.0)
    scale = tl.where(scale < SMALLEST_LEARNED, SMALLEST_LEARNED, scale)[:, None]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float64)
    for start in range(0, part, COLUMNS):
        at, there = _cell(table, 0, rows[:, None], start + tl.arange(0, COLUMNS)[None, :])
        u = tl.div_rn(tl.load(w_ptr + at, mask=there, other=0).to(tl.float32), scale)
        grad = tl.load(grad_ptr + at, mask=there, other=0).to(tl.float32)
        inside = (u > -qmax) & (u < qmax)
        slope = tl.where(inside | (u != u), round_even(u) - u, tl.where(u <= -qmax, -qmax, qmax))
        total += tl.where(there, grad * slope, 0.0).to(tl.float64)
        tl.store(out_ptr + at, tl.where(inside, grad, 0.0).to(out_ptr.dtype.element_ty), mask=there)
    tl.store(sums_ptr + rows, tl.sum(total, 1), mask=listed)


@triton.jit
def _sum_parts(
    sums_ptr, scales_ptr, scale_grad_ptr, rows, parts, factor_high, factor_low, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    listed = at < rows
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for i in range(parts):
        total += tl.load(sums_ptr + at * parts + i, mask=listed, other=0.0)
    by_scale = (total * wide(factor_high, factor_low)).to(tl.float32)
    by_scale = by_scale * tl.load(scales_ptr + at, mask=listed, other=0.0)
    if ADD:
        by_scale += tl.load(scale_grad_ptr + at, mask=listed, other=0.0)
    tl.store(scale_grad_ptr + at, by_scale, mask=listed)


def quantize(
    weights: Sequence[torch.Tensor],
    layouts: Sequence[Layout],
    factors: torch.Tensor | None,
    *,
    given: bool,
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """All weights on their grids: one launch, two where a scale belongs to more than 8192 values.

    Args:
        weights: Tensors without gaps in memory, of one device and dtype.
        layouts: How each is quantized.
        factors: A number for each scale, all of them in a row: float32. Without, scales are those of min-max ranges.
        given: Whether the factors are the scales, or what min-max scales are multiplied by.

    Returns:
        The values, views of one tensor; where they lie outside of the range (bool), if factors multiply; the scales,
        float32, in a row.
    """
    table, tiles, cut = listed(weights, layouts, cut=True)
    device, dtype = weights[0].device, weights[0].dtype
    offsets, size = offsets_in(layouts)
    y = torch.empty(size, dtype=dtype, device=device)
    ratio = factors is not None and not given
    outside = torch.empty(size if ratio else 0, dtype=torch.bool, device=device)
    scales = torch.empty(sum(one.scale_count for one in layouts), dtype=torch.float32, device=device)
    maxima = scales
    grid = (tiles.shape[0],)
    if cut and not given:
        maxima = torch.empty(sum(one.parts for one in layouts), dtype=torch.float32, device=device)
        _part_maxima[grid](table, tiles, y, maxima, COLUMNS=_COLUMNS, ROWS=ROWS, **EXACT)
    _quantize_all[grid](
        table, tiles, y, outside.view(torch.int8), scales if factors is None else factors, scales, maxima,
        GIVEN=given, RATIO=ratio, CUT=cut, COLUMNS=_COLUMNS, ROWS=ROWS, **EXACT,
    )  # fmt: skip
    return _views(y, offsets, weights), _views(outside, offsets, weights) if ratio else [], scales


def search(
    weights: Sequence[torch.Tensor], layouts: Sequence[Layout], fractions: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of least squared error and of the min-max range, each float32 in a row: two launches."""
    table, tiles, _ = listed(weights, layouts, cut=False)
    device = weights[0].device
    found = torch.empty(sum(one.scale_count for one in layouts), dtype=torch.float32, device=device)
    largest = torch.empty_like(found)
    _search_all[(tiles.shape[0],)](
        table, tiles, weights[0], fractions_on(device, fractions), found, largest, len(fractions),
        COLUMNS=_COLUMNS, ROWS=ROWS, **EXACT,
    )  # fmt: skip
    _all_positive[(len(weights),)](table, found, largest, BLOCK=1024, **EXACT)
    return found, largest


def learned_pass(
    grad: torch.Tensor,
    weight: torch.Tensor,
    layout: Layout,
    scales: torch.Tensor,
    out: torch.Tensor,
    scale_grad: torch.Tensor,
    factor: float,
    *,
    add: bool,
) -> None:
    """Write a weight's gradient to ``out``, and write or add that of its log scales: two launches."""
    table, _, _ = listed([weight], [layout], cut=True)
    rows, parts = layout.scale_count, layout.parts
    sums = torch.empty(parts, dtype=torch.float64, device=weight.device)
    _learned_pass[(triton.cdiv(parts, ROWS),)](
        grad, weight, out, scales, sums, table, parts, COLUMNS=_COLUMNS, ROWS=ROWS, **EXACT
    )
    _sum_parts[(triton.cdiv(rows, 128),)](
        sums, scales, scale_grad, rows, parts // rows, *halves(factor), ADD=add, BLOCK=128, **EXACT
    )


def _views(flat: torch.Tensor, offsets: Sequence[int], weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    each = zip(offsets, weights, strict=True)
    return [flat.as_strided(weight.shape, weight.stride(), offset) for offset, weight in each]
