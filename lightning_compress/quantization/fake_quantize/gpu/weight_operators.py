"""Operators that fake-quantize the weights of a model on accelerators, all of them in one.

``quantize_weights`` is one launch, two where a scale belongs to more than 8192 values; ``search_weights`` and
``learned_weight_pass`` are two. Weights fill their memory without gaps. Axis -1 stands for a single scale, group 0 for
no groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_compress.foundation.device_operators import operator
from lightning_compress.quantization.fake_quantize.gpu.layout import Layout

_WEIGHTS = "Tensor[] weights, int[] axes, int[] groups, int[] qmaxes"


def _layouts(
    weights: Sequence[torch.Tensor], axes: Sequence[int], groups: Sequence[int], qmaxes: Sequence[int]
) -> list[Layout]:
    return [Layout.of(*each) for each in zip(weights, axes, groups, qmaxes, strict=True)]


def _scales(weights: Sequence[torch.Tensor], *args: Sequence[int]) -> torch.Tensor:
    count = sum(one.scale_count for one in _layouts(weights, *args))
    return torch.empty(count, dtype=torch.float32, device=weights[0].device)


def _quantize(
    weights: Sequence[torch.Tensor], axes: Sequence[int], groups: Sequence[int], qmaxes: Sequence[int],
    factors: torch.Tensor | None, given: bool,
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:  # fmt: skip
    from lightning_compress.quantization.fake_quantize.gpu import weights as kernels

    return kernels.quantize(weights, _layouts(weights, axes, groups, qmaxes), factors, given=given)


def _quantized(
    weights: Sequence[torch.Tensor], axes: Sequence[int], groups: Sequence[int], qmaxes: Sequence[int],
    factors: torch.Tensor | None, given: bool,
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:  # fmt: skip
    clips = factors is not None and not given
    outside = [torch.empty_like(weight, dtype=torch.bool) for weight in weights if clips]
    return [torch.empty_like(weight) for weight in weights], outside, _scales(weights, axes, groups, qmaxes)


def _search(
    weights: Sequence[torch.Tensor], axes: Sequence[int], groups: Sequence[int], qmaxes: Sequence[int],
    fractions: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    from lightning_compress.quantization.fake_quantize.gpu import weights as kernels

    return kernels.search(weights, _layouts(weights, axes, groups, qmaxes), tuple(fractions))


def _learned_pass(
    grad: torch.Tensor, weight: torch.Tensor, axis: int, qmax: int, scales: torch.Tensor, first: int,
    scale_grad: torch.Tensor | None, factor: float,
) -> tuple[torch.Tensor, list[torch.Tensor]]:  # fmt: skip
    from lightning_compress.quantization.fake_quantize.gpu import weights as kernels

    layout = Layout.of(weight, axis, 0, qmax)
    out, new = _learned_gradients(grad, weight, axis, qmax, scales, first, scale_grad, factor)
    to_scale = new[0] if scale_grad is None else scale_grad
    own = scales[first : first + layout.scale_count]
    kernels.learned_pass(grad, weight, layout, own, out, to_scale, factor, add=scale_grad is not None)
    return out, new


def _learned_gradients(
    grad: torch.Tensor, weight: torch.Tensor, axis: int, qmax: int, scales: torch.Tensor, first: int,
    scale_grad: torch.Tensor | None, factor: float,
) -> tuple[torch.Tensor, list[torch.Tensor]]:  # fmt: skip
    shape = () if axis < 0 else (weight.shape[axis],)
    new = [torch.empty(shape, dtype=torch.float32, device=grad.device)] if scale_grad is None else []
    return torch.empty_like(grad), new


quantize_weights = operator(
    f"quantize_weights({_WEIGHTS}, Tensor? factors, bool given) -> (Tensor[], Tensor[], Tensor)", _quantize, _quantized
)
search_weights = operator(
    f"search_weights({_WEIGHTS}, float[] fractions) -> (Tensor, Tensor)",
    _search,
    lambda weights, axes, groups, qmaxes, fractions: tuple(_scales(weights, axes, groups, qmaxes) for _ in range(2)),
)
learned_weight_pass = operator(
    "learned_weight_pass(Tensor grad, Tensor weight, int axis, int qmax, Tensor scales, int first, "
    "Tensor(a!)? scale_grad, float factor) -> (Tensor, Tensor[])",
    _learned_pass,
    _learned_gradients,
)
