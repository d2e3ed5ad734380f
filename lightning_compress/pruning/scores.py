"""Scores of weights under the chosen criterion, and the gradients they are made from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.pruning import criteria
from lightning_compress.pruning.nan_checks import refuse_nan
from lightning_compress.pruning.prunable import Site
from lightning_compress.pruning.settings import Settings


class Scores:
    """Computes scores; between updates it keeps nothing but the sums of movement pruning.

    Attributes:
        movement: Parameter name → sum of ``-w · gradient`` over the steps so far, one float a weight.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._gradients: dict[str, Tensor] = {}
        self.movement: dict[str, Tensor] = {}

    def observe(self, sites: Sequence[Site], parameters: Iterable[Tensor] | None, *, remember: bool) -> None:
        """Look at the gradients of a step about to be done.

        Args:
            sites: All sites.
            parameters: Whose gradients to look at; ``None`` for all.
            remember: Whether the coming update will ask for them. They are not copied.
        """
        if not self._settings.needs_gradient:
            return
        wanted = None if parameters is None else {id(parameter) for parameter in parameters}
        seen = {
            site.name: (site.parameter, site.parameter.grad)
            for site in sites
            if site.parameter.grad is not None and (wanted is None or id(site.parameter) in wanted)
        }
        if self._settings.criterion == "movement" and seen:
            # A step with gradients that are not finite is one that loss scaling is about to skip. Not looked at: that
            # would wait for an accelerator in every step.
            first = next(gradient.device for _, gradient in seen.values())
            finite = torch.stack([gradient.isfinite().all().to(first) for _, gradient in seen.values()]).all()
            for name, (parameter, gradient) in seen.items():
                share = criteria.movement_step(parameter.detach(), gradient.to_dense())
                share = torch.where(finite.to(share.device), share, 0.0)
                self.movement[name] = self.movement[name].add_(share) if name in self.movement else share
        if remember:
            self._gradients.update({name: gradient for name, (_, gradient) in seen.items()})

    def forget_gradients(self) -> None:
        """Let go of the gradients an update has used."""
        self._gradients.clear()

    def of(self, site: Site, step: int) -> Tensor:
        """Scores of a weight's entries, higher for more important ones, -inf for those pruned already.

        Raises:
            CompressionError: Weights are NaN, or what the criterion looks at is not there.
        """
        return self.raw(site, step).masked_fill(~site.mask, -math.inf)

    def raw(self, site: Site, step: int) -> Tensor:
        """Scores as :meth:`of`, those of pruned entries as they are.

        Raises:
            CompressionError: Weights are NaN, or what the criterion looks at is not there.
        """
        settings = self._settings
        weight = site.parameter.detach()
        refuse_nan(weight.isnan().sum(), f"{site.name}: weights are NaN, so they cannot be ranked for pruning.")
        if settings.criterion == "magnitude":
            return criteria.magnitude(weight)
        if settings.criterion == "random":
            return criteria.random(weight, site.name, settings.seed, step)
        if settings.criterion == "taylor":
            return criteria.taylor(weight, self._gradient(site, "criterion='taylor'"))
        if settings.criterion == "movement":
            return self._moved(site)
        gradient = self._gradients.get(site.name, site.parameter.grad)
        return criteria.custom(settings.criterion, weight, gradient, site.name, settings.field)

    def of_growth(self, site: Site, step: int) -> Tensor:
        """Non-negative scores for regrowth, of the weight's shape.

        Raises:
            CompressionError: The gradient is not there.
        """
        if self._settings.regrow == "gradient":
            return self._gradient(site, "regrow='gradient'").abs()
        return criteria.random(site.parameter, f"regrow {site.name}", self._settings.seed, step)

    def _moved(self, site: Site) -> Tensor:
        if site.name not in self.movement:
            raise CompressionError(
                f"{self._settings.field}.criterion: 'movement' has seen no gradient of {site.name}. Call observe() "
                "after every backward pass and before optimizer.step(), or ignore this layer if it is not trained."
            )
        return self.movement[site.name]

    def _gradient(self, site: Site, asked_by: str) -> Tensor:
        gradient = self._gradients.get(site.name, site.parameter.grad)
        if gradient is None:
            raise CompressionError(
                f"{self._settings.field}: {asked_by} needs the gradient of {site.name} at a mask update, and there "
                "is none. Call step() before zero_grad(), let start be at least 1, or ignore layers that are not "
                "trained."
            )
        return gradient.detach().to_dense()
