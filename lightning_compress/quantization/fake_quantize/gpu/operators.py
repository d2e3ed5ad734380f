"""Operators that fake-quantize activations on accelerators: each is one node for a tracer, and at most two launches.

One launch: ``pass_inside``, and ``fake_quantize`` and ``fake_quantize_`` without ``momentum``. Two: all others.

Arguments that recur: ``range_``, ``scale``, ``zero`` and ``nonfinite`` are the state of an activation quantizer,
updated in place; ``low`` and ``high`` the ends of a clip, both or none; ``momentum`` the weight of an observation.
While the range is NaN values pass unquantized, so that the host need not check whether there is one. Tensors are dense
(``device_operators.dense``).
"""

from __future__ import annotations

from typing import Any

import torch

from lightning_compress.foundation.device_operators import operator

_STATE = "Tensor(a!) range_, Tensor(b!) scale, Tensor(c!) zero, Tensor(d!) nonfinite, int qmin, int qmax"
_CLIP = "float? low, float? high"

Clip = tuple[float, float]


def _clip(low: float | None, high: float | None) -> Clip | None:
    return None if low is None or high is None else (low, high)


def _words(x: torch.Tensor, mask: bool) -> torch.Tensor:
    return torch.empty(-(-x.numel() // 32) if mask else 0, dtype=torch.int32, device=x.device)


def _fake_quantize(x: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.empty_like(x)
    return y, _launch_quantize(x, y, *args)


def _launch_quantize(
    x: torch.Tensor, y: torch.Tensor, range_: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor,
    nonfinite: torch.Tensor, qmin: int, qmax: int, low: float | None, high: float | None, momentum: float | None,
    mask: bool,
) -> torch.Tensor:  # fmt: skip
    from lightning_compress.quantization.fake_quantize.gpu import activations

    return activations.quantize(x, y, range_, scale, zero, nonfinite, qmin, qmax, _clip(low, high), momentum, mask)


fake_quantize = operator(
    f"fake_quantize(Tensor x, {_STATE}, {_CLIP}, float? momentum, bool mask) -> (Tensor, Tensor)",
    _fake_quantize,
    lambda x, *args: (torch.empty_like(x), _words(x, args[-1])),
)
fake_quantize_ = operator(
    f"fake_quantize_(Tensor(e!) x, {_STATE}, {_CLIP}, float? momentum, bool mask) -> Tensor",
    lambda x, *args: _launch_quantize(x, x, *args),
    lambda x, *args: _words(x, args[-1]),
)


def _pass_inside(grad: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    from lightning_compress.quantization.fake_quantize.gpu import activations

    out = torch.empty_like(grad)
    activations.pass_inside(grad, words, out)
    return out


pass_inside = operator(
    "pass_inside(Tensor grad, Tensor words) -> Tensor", _pass_inside, lambda grad, words: torch.empty_like(grad)
)


def _observe_minmax(x: torch.Tensor, *args: Any) -> None:
    from lightning_compress.quantization.fake_quantize.gpu import activations

    *state, low, high, momentum = args
    activations.observe(x, *state, _clip(low, high), momentum)  # type: ignore[call-arg]


def _observe_percentile(x: torch.Tensor, *args: Any) -> None:
    from lightning_compress.quantization.fake_quantize.gpu import searches

    *state, qmin, qmax, low, high, momentum, percentile, most = args
    searches.observe_percentile(x, tuple(state), percentile, most, qmin, qmax, _clip(low, high), momentum)


def _observe_least_error(x: torch.Tensor, full: torch.Tensor, *args: Any) -> None:
    from lightning_compress.quantization.fake_quantize.gpu import searches

    *state, qmin, qmax, low, high, momentum, fractions, most = args
    searches.observe_least_error(x, full, tuple(state), tuple(fractions), most, qmin, qmax, _clip(low, high), momentum)


def _minmax(x: torch.Tensor, low: float | None, high: float | None) -> torch.Tensor:
    from lightning_compress.quantization.fake_quantize.gpu import activations

    return activations.ends(x, _clip(low, high))


observe_minmax_ = operator(
    f"observe_minmax_(Tensor x, {_STATE}, {_CLIP}, float momentum) -> ()", _observe_minmax, lambda *args: None
)
observe_percentile_ = operator(
    f"observe_percentile_(Tensor x, {_STATE}, {_CLIP}, float momentum, float percentile, int most) -> ()",
    _observe_percentile,
    lambda *args: None,
)
minmax = operator(
    f"minmax(Tensor x, {_CLIP}) -> Tensor",
    _minmax,
    lambda x, low, high: torch.empty(2, dtype=torch.float32, device=x.device),
)
observe_least_error_ = operator(
    f"observe_least_error_(Tensor x, Tensor full, {_STATE}, {_CLIP}, float momentum, float[] fractions, int most) "
    "-> ()",
    _observe_least_error,
    lambda *args: None,
)


def _learn(
    x: torch.Tensor, log_scale: torch.Tensor, shift: torch.Tensor | None, width: torch.Tensor, range_: torch.Tensor,
    qmin: int, qmax: int, low: float | None, high: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    from lightning_compress.quantization.fake_quantize.gpu import learned

    y = torch.empty_like(x)
    return y, *learned.learn(x, y, log_scale, shift, width, range_, qmin, qmax, _clip(low, high))


learn = operator(
    f"learn(Tensor x, Tensor log_scale, Tensor? shift, Tensor width, Tensor range_, int qmin, int qmax, {_CLIP}) "
    "-> (Tensor, Tensor, Tensor)",
    _learn,
    lambda x, *args: (
        torch.empty_like(x),
        torch.empty(x.numel(), dtype=torch.int8, device=x.device),
        torch.empty(3, dtype=torch.float32, device=x.device),
    ),
)


def _learned_pass(
    grad: torch.Tensor, codes: torch.Tensor, grid: torch.Tensor, shift: torch.Tensor | None, width: torch.Tensor,
    scale_grad: torch.Tensor | None, shift_grad: torch.Tensor | None, factor: float, qmin: int, qmax: int,
    low: float | None, high: float | None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:  # fmt: skip
    from lightning_compress.quantization.fake_quantize.gpu import learned

    out = torch.empty_like(grad)
    add = scale_grad is not None, shift_grad is not None
    new = _new_gradients(grad, shift, scale_grad, shift_grad)
    missing = iter(new)
    to_scale = next(missing) if scale_grad is None else scale_grad
    to_shift = None if shift is None else next(missing) if shift_grad is None else shift_grad
    learned.learned_pass(
        grad, codes, grid, shift, width, out, to_scale, to_shift, factor, qmin, qmax, _clip(low, high), add
    )
    return out, new


def _new_gradients(
    grad: torch.Tensor, shift: torch.Tensor | None, scale_grad: torch.Tensor | None, shift_grad: torch.Tensor | None
) -> list[torch.Tensor]:
    count = (scale_grad is None) + (shift is not None and shift_grad is None)
    return [torch.empty((), dtype=torch.float32, device=grad.device) for _ in range(count)]


learned_pass = operator(
    "learned_pass(Tensor grad, Tensor codes, Tensor grid, Tensor? shift, Tensor width, Tensor(a!)? scale_grad, "
    f"Tensor(b!)? shift_grad, float factor, int qmin, int qmax, {_CLIP}) -> (Tensor, Tensor[])",
    _learned_pass,
    lambda grad, codes, grid, shift, width, scale_grad, shift_grad, *args: (
        torch.empty_like(grad),
        _new_gradients(grad, shift, scale_grad, shift_grad),
    ),
)
