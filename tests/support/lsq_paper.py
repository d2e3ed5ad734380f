"""LSQ in plain autograd, as its paper writes it."""

from __future__ import annotations

import torch


def round_pass(x: torch.Tensor) -> torch.Tensor:
    return x + (x.round() - x).detach()


def paper(
    v: torch.Tensor, s: torch.Tensor, qn: int, qp: int, g: float, beta: torch.Tensor | None = None
) -> torch.Tensor:
    """The pseudo-code of LSQ's appendix B, in float64 by plain autograd, with the offset of LSQ+."""
    s = s * g + (s - s * g).detach()
    if beta is not None:
        beta = beta * g + (beta - beta * g).detach()
        v = v - beta
    restored = round_pass(torch.clamp(v / s, -qn, qp)) * s
    return restored if beta is None else restored + beta
