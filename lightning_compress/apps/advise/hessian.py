"""Curvature of the loss around a trained model: traces of the Hessian's diagonal blocks, by Hutchinson's estimator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_compress.errors import CompressionError

Probe = Mapping[str, Tensor]


@dataclass(frozen=True)
class Trace:
    """An estimated trace.

    Attributes:
        value: Mean over the probes.
        error: Its standard error; NaN for a single probe.
    """

    value: float
    error: float


def traces(
    losses: Callable[[], Iterable[Tensor]], parameters: Mapping[str, Tensor], probes: Iterable[Probe]
) -> dict[str, Trace]:
    """Estimate the trace of each parameter's own block of the Hessian.

    For probes v of independent random signs ``E[v_l · (H v)_l] = tr H_ll`` (Hutchinson 1990), the estimator of
    HAWQ-V2 (Dong et al. 2020, equation 6). One product with the Hessian serves all parameters: blocks beside the
    diagonal add noise, but no bias.

    Args:
        losses: Gives the loss of one batch after the other, with a graph; their mean is differentiated.
        parameters: Name → parameter, in which the losses are differentiable twice.
        probes: Each maps the same names to signs of the parameters' shapes.

    Returns:
        Name → trace.

    Raises:
        CompressionError: An operation has no second derivative, or there is no probe.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> traces(lambda: [(2 * w**2).sum()], {"w": w}, [{"w": torch.ones(3)}])["w"].value
        12.0
    """
    names = list(parameters)
    found: dict[str, list[float]] = {name: [] for name in names}
    for probe in probes:
        products = _products(losses, [parameters[name] for name in names], [probe[name] for name in names])
        for name, product in zip(names, products, strict=True):
            found[name].append(product)
    if not names or not found[names[0]]:
        raise CompressionError("hessian.traces: expected at least one parameter and one probe.")
    return {name: _summary(values) for name, values in found.items()}


def signs(parameters: Mapping[str, Tensor], count: int, seed: int = 0) -> Iterator[Probe]:
    """Probes of independent random signs (Rademacher), from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield {
            name: (torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1).to(parameter)
            for name, parameter in parameters.items()
        }


def _products(losses: Callable[[], Iterable[Tensor]], parameters: list[Tensor], probe: list[Tensor]) -> list[float]:
    """``v_l · (H v)_l`` for each parameter, of the mean loss."""
    totals = [torch.zeros((), dtype=torch.float64) for _ in parameters]
    count = 0
    # The fused attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        for loss in losses():
            try:
                gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
                along = torch.autograd.grad(gradients, parameters, grad_outputs=probe, materialize_grads=True)
            except RuntimeError as error:
                raise CompressionError(
                    f"--criterion hessian: the loss cannot be differentiated twice: {' '.join(str(error).split())} "
                    "Use --criterion loss."
                ) from error
            for index, (v, hv) in enumerate(zip(probe, along, strict=True)):
                totals[index] += (v * hv.detach()).sum().double().cpu()
            count += 1
    return [float(total) / max(count, 1) for total in totals]


def _summary(values: list[float]) -> Trace:
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Trace(mean, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Trace(mean, math.sqrt(variance / len(values)))
