"""How a global sparsity is divided over the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

DistributionName = Literal["global", "uniform", "erk"]


def erk_density(shapes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
    """Density of each layer by the Erdős-Rényi-Kernel rule (Evci et al. 2020, section 3).

    The density of a layer is proportional to the sum of its dimensions over their product, for a convolution
    ``(n_out + n_in + k_h + k_w) / (n_out · n_in · k_h · k_w)``, with one factor for all layers so that the global
    sparsity is met. A layer whose density would pass 1 stays dense and the others make up for it.

    Args:
        shapes: Layer name → shape of its weight.
        sparsity: Global sparsity, in [0, 1).

    Example:
        >>> erk_density({"a": (10, 10), "b": (100, 100)}, 0.9)["b"]
        0.0918181818181818
    """
    numel = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / numel[name] if numel[name] else 0.0 for name, shape in shapes.items()}
    kept = (1 - sparsity) * sum(numel.values())
    dense: set[str] = set()
    while True:
        shared = [name for name in shapes if name not in dense]
        left = kept - sum(numel[name] for name in dense)
        weight = sum(raw[name] * numel[name] for name in shared)
        factor = left / weight if weight else 0.0
        over = {name for name in shared if factor * raw[name] >= 1}
        if not over:
            return {name: 1.0 if name in dense else max(0.0, factor * raw[name]) for name in shapes}
        # As published: the layers with the largest density become dense first, then the factor is found again.
        largest = max(raw[name] for name in over)
        dense |= {name for name in over if raw[name] == largest}


def layer_sparsity(
    distribution: Literal["uniform", "erk"], shapes: Mapping[str, Sequence[int]], sparsity: float
) -> dict[str, float]:
    """Sparsity asked of each layer by a distribution that is fixed in advance.

    Example:
        >>> layer_sparsity("uniform", {"a": (4, 4), "b": (2, 2)}, 0.5)
        {'a': 0.5, 'b': 0.5}
    """
    if distribution == "uniform":
        return dict.fromkeys(shapes, sparsity)
    return {name: 1 - density for name, density in erk_density(shapes, sparsity).items()}
