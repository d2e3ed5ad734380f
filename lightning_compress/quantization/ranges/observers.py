"""From a tensor to its quantization range: pure functions, without a host synchronization.

A search tries 88 ranges. ``torch.compile`` sees it as one operator, instead of thousands.
"""

from __future__ import annotations

import torch

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.device_operators import dense, operator
from lightning_compress.quantization.fake_quantize import cpu as native
from lightning_compress.quantization.ranges.qparams import affine_qparams, symmetric_qparams, usable

# Order statistics and searches look at this many values at most; the moving average smooths the rest.
PERCENTILE = 99.99
SAMPLE = 65_536
SEARCH_SAMPLE = 16_384
# Clipping fractions that the squared-error search tries: finely near 1, where 8 bits have their best, and down to
# 0.05, where 2 bits of heavy tails have theirs.
FRACTIONS = (*(1 - 0.01 * k for k in range(20)), *(0.8 * 0.96**k for k in range(68)))


def minmax(x: torch.Tensor) -> torch.Tensor:
    """Smallest and largest value.

    Args:
        x: Float tensor.

    Returns:
        float32, ``[2]``; NaN if ``x`` holds NaN.

    Example:
        >>> minmax(torch.tensor([3.0, -1.0, 2.0]))
        tensor([-1.,  3.])
    """
    if (lib := native.library(x)) is not None and x.numel():
        return native.minmax(lib, x.detach())
    return torch.stack(torch.aminmax(x.detach())).float()


def percentile(x: torch.Tensor, q: float = PERCENTILE) -> torch.Tensor:
    """The values below and above which lie ``100 - q`` percent each, interpolated like ``numpy.percentile``.

    Of more than 65,536 values every n-th is looked at.

    Args:
        x: Float tensor.
        q: Percentile of the upper end, from 50 to 100.

    Returns:
        float32, ``[2]``; NaN if the values looked at hold NaN.

    Example:
        >>> percentile(torch.arange(101.0), 99)
        tensor([ 1., 99.])
    """
    values = sample(x)
    position = (values.numel() - 1) * q / 100
    count = values.numel() - int(position)
    fraction = position - int(position)
    top = values.topk(count, sorted=True).values
    bottom = values.topk(count, largest=False, sorted=True).values
    ends = []
    for tail in (bottom, top):
        inner, outer = tail[-1], tail[-2] if count > 1 else tail[-1]
        ends.append(inner + (outer - inner) * fraction)
    # topk sorts NaN last or first by its own rules; the sum is NaN whenever a value is.
    return torch.where(values.sum().isnan(), torch.nan, torch.stack(ends))


def mse(x: torch.Tensor, bits: int, *, symmetric: bool = False) -> torch.Tensor:
    """The part of the min-max range with the smallest squared error after quantization.

    Both ends of the range are shrunk together, from 1 to 0.05 of the range, in 88 steps. Of more than 16,384
    values every n-th is looked at.

    Args:
        x: Float tensor.
        bits: Bit width.
        symmetric: Whether the quantizer is symmetric.

    Returns:
        float32, ``[2]``; NaN if ``x`` holds NaN.

    Example:
        >>> bool(mse(torch.randn(1000), 2, symmetric=True)[1] < 3)
        True
    """
    values = sample(x, SEARCH_SAMPLE)
    full = minmax(x)
    best = torch.full((), torch.inf, dtype=_summed(x.device), device=x.device)
    found = full.clone()
    for fraction in FRACTIONS:
        candidate = full * fraction
        if symmetric:
            scale, zero_point = symmetric_qparams(candidate[0], candidate[1], bits)
            qmin, qmax = 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1
        else:
            scale, zero_point = affine_qparams(candidate[0], candidate[1], bits)
            qmin, qmax = 0, 2**bits - 1
        restored = (values / scale).round_().add_(zero_point).clamp_(qmin, qmax).sub_(zero_point).mul_(scale)
        error = restored.sub_(values).square_().sum(dtype=_summed(x.device))
        better = error < best
        best = torch.where(better, error, best)
        found = torch.where(better, candidate, found)
    return found


def _summed(device: torch.device) -> torch.dtype:
    """Of sums of errors: float64, so that the order of summation decides nothing, but where the device has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def observe(x: torch.Tensor, method: str, bits: int, *, symmetric: bool = False) -> torch.Tensor:
    """The range of one tensor by the method's name; ``learned`` ranges start from the ``mse`` range.

    Returns:
        float32, ``[2]``.

    Example:
        >>> observe(torch.tensor([3.0, -1.0]), "minmax", 8)
        tensor([-1.,  3.])
    """
    if method == "minmax":
        return minmax(x)
    if _compiling():
        found: torch.Tensor = _searched_range(x.detach(), method, bits, symmetric)
        return found
    if method == "percentile":
        return percentile(x)
    return mse(x, bits, symmetric=symmetric)


def sample(x: torch.Tensor, most: int = SAMPLE) -> torch.Tensor:
    """At most ``most`` values of a tensor, evenly spread over its memory: float32, ``[n]``."""
    flat = x.reshape(-1)
    if not torch.compiler.is_compiling() and (filled := dense(x)) is x:
        flat = filled.as_strided((x.numel(),), (1,))
    stride = -(-flat.numel() // most)
    return flat[::stride].float()


@torch.no_grad()
def ema_(range_: torch.Tensor, observed: torch.Tensor, momentum: float, nonfinite: torch.Tensor | None = None) -> None:
    """Move a range towards an observed one, in place.

    The first finite observation is taken as it is. One with NaN or infinity changes nothing and is counted.

    Args:
        range_: float32, ``[2]``; NaN until something was observed.
        observed: float32, ``[2]``.
        momentum: Weight of the observation, in (0, 1].
        nonfinite: Count of observations left out: int64, ``[]``.

    Example:
        >>> r = torch.full((2,), torch.nan)
        >>> ema_(r, torch.tensor([0.0, 1.0]), 0.1)
        >>> ema_(r, torch.tensor([0.0, torch.inf]), 0.1)
        >>> ema_(r, torch.tensor([0.0, 2.0]), 0.1)
        >>> r
        tensor([0.0000, 1.1000])
    """
    finite = observed.isfinite().all()
    moved = torch.where(range_.isnan(), observed, range_ + (observed - range_) * momentum)
    range_.copy_(torch.where(finite, moved, range_))
    if nonfinite is not None:
        nonfinite.add_(~finite)


@torch.no_grad()
def update_(
    range_: torch.Tensor,
    observed: torch.Tensor,
    momentum: float,
    nonfinite: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    *,
    symmetric: bool = False,
) -> None:
    """``ema_``, and then scale and zero point again from the range; all in place.

    Args:
        range_: float32, ``[2]``; NaN until something was observed.
        observed: float32, ``[2]``.
        momentum: Weight of the observation, in (0, 1].
        nonfinite: Count of observations left out: int64, ``[]``.
        scale: float32, ``[]``.
        zero_point: float32, ``[]``.
        bits: Bit width.
        symmetric: Whether the quantizer is symmetric.

    Example:
        >>> r, n = torch.full((2,), torch.nan), torch.zeros((), dtype=torch.int64)
        >>> s, z = torch.ones(()), torch.zeros(())
        >>> update_(r, torch.tensor([-1.0, 2.0]), 0.1, n, s, z, 2)
        >>> r, s, z
        (tensor([-1.,  2.]), tensor(1.), tensor(1.))
    """
    if (lib := native.library(range_)) is not None:
        levels = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
        native.update_range(lib, range_, observed, momentum, nonfinite, scale, zero_point, levels, symmetric)
        return
    ema_(range_, observed, momentum, nonfinite)
    qparams = symmetric_qparams if symmetric else affine_qparams
    new_scale, new_zero_point = qparams(range_[0], range_[1], bits)
    scale.copy_(new_scale)
    zero_point.copy_(new_zero_point)


def weight_scale(
    w: torch.Tensor, axis: int | None, qmax: int, method: str = "minmax", *, group_size: int | None = None
) -> torch.Tensor:
    """Symmetric scales of a weight.

    Args:
        w: Float weight.
        axis: Dimension of the output channels; ``None`` for a single scale.
        qmax: Largest integer.
        method: ``"minmax"``, ``"percentile"``, ``"mse"``, or ``"learned"`` (LSQ's initialization).
        group_size: Neighbours among the flattened inputs of an output channel that share a scale.

    Returns:
        float32, positive: ``[]``, ``[C]``, or ``[C, groups]``. A channel of zeros takes the largest scale of
        the others, so that its bias stays representable in integers of that scale.

    Raises:
        CompressionError: There is no such method.

    Example:
        >>> weight_scale(torch.tensor([[0.5, -1.0], [0.0, 0.0]]), 0, 1)
        tensor([1., 1.])
    """
    if method == "minmax" and group_size is None and (lib := native.library(w)) is not None and w.numel():
        return native.weight_scale(lib, w, axis, qmax)
    if method == "mse" and _compiling():
        found: torch.Tensor = _searched_scale(w.detach(), axis, qmax, group_size)
        return found
    rows = _rows(w.detach(), axis, group_size).float()
    if method == "minmax":
        scale = rows.abs().amax(-1) / qmax
    elif method == "percentile":
        scale = torch.quantile(rows.abs(), 0.9999, dim=-1) / qmax
    elif method == "mse":
        scale = _mse_scale(rows, qmax)
    elif method == "learned":
        scale = rows.abs().mean(-1) * (2 / qmax**0.5)
    else:
        raise CompressionError.field("range", expected="minmax, percentile, mse or learned", got=method)
    return _positive(scale, single=axis is None)


def _positive(scale: torch.Tensor, *, single: bool) -> torch.Tensor:
    """Give channels of zeros the largest scale of the others, or 1."""
    scale = usable(torch.where(scale > 0, scale, scale.amax()))
    return scale.reshape(()) if single else scale


def _mse_scale(rows: torch.Tensor, qmax: int) -> torch.Tensor:
    full = rows.abs().amax(-1, keepdim=True) / qmax
    best = torch.full_like(full, torch.inf, dtype=_summed(rows.device))
    found = full.clone()
    for fraction in FRACTIONS:
        candidate = full * fraction
        scale = usable(candidate)
        restored = (rows / scale).round_().clamp_(-qmax, qmax).mul_(scale)
        error = restored.sub_(rows).square_().sum(-1, keepdim=True, dtype=_summed(rows.device))
        better = error < best
        best = torch.where(better, error, best)
        found = torch.where(better, candidate, found)
    return found.squeeze(-1)


def _rows(w: torch.Tensor, axis: int | None, group_size: int | None) -> torch.Tensor:
    """A weight with values that share a scale along the last dimension; zeros fill the last group."""
    if axis is None:
        return w.reshape(1, -1)
    rows = w.movedim(axis, 0).reshape(w.shape[axis], -1)
    if group_size is None:
        return rows
    missing = -rows.shape[1] % group_size
    return torch.nn.functional.pad(rows, (0, missing)).reshape(rows.shape[0], -1, group_size)


def _compiling() -> bool:
    """Whether a search is to be one operator; an exported program would need this package then."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def _empty_scale(w: torch.Tensor, axis: int | None, qmax: int, group_size: int | None) -> torch.Tensor:
    if axis is None:
        return w.new_empty((), dtype=torch.float32)
    rows = w.shape[axis]
    shape = (rows,) if group_size is None else (rows, -(-(w.numel() // rows) // group_size))
    return w.new_empty(shape, dtype=torch.float32)


_searched_range = operator(
    "searched_range(Tensor x, str method, int bits, bool symmetric) -> Tensor",
    lambda x, method, bits, symmetric: observe(x, method, bits, symmetric=symmetric),
    lambda x, method, bits, symmetric: x.new_empty((2,), dtype=torch.float32),
)
_searched_scale = operator(
    "searched_scale(Tensor w, int? axis, int qmax, int? group_size) -> Tensor",
    lambda w, axis, qmax, group_size: weight_scale(w, axis, qmax, "mse", group_size=group_size),
    _empty_scale,
)
