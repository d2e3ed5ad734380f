"""Scores of weights and channels, and the gradients they are made from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_compress.foundation.shards import Shards, local
from lightning_compress.pruning import criteria
from lightning_compress.pruning.channels.group import ChannelGroup
from lightning_compress.pruning.criteria.base import Entries
from lightning_compress.pruning.criteria.draws import uniform
from lightning_compress.pruning.prunable import Prunable, Site
from lightning_compress.pruning.ranking.nan_checks import refuse_nan
from lightning_compress.pruning.settings import Settings


class Scores:
    """Computes scores; between updates it keeps nothing but what the criterion has summed up.

    Args:
        settings: The pruner's settings.
        sites: Everything that is pruned.
        shards: The processes that hold its rows.
    """

    def __init__(self, settings: Settings, sites: Sequence[Site], shards: Shards) -> None:
        self._settings = settings
        self._sites = {site.name: site for site in sites}
        self._shards = shards
        self._gradients: dict[str, Tensor] = {}
        self.criterion = criteria.make(settings.criterion, settings.field, settings.seed)

    def observe(self, parameters: Iterable[Tensor] | None, *, remember: bool) -> None:
        """Look at the gradients of a step about to be done.

        Args:
            parameters: Whose gradients to look at; ``None`` for all.
            remember: Whether the coming update will ask for them. They are not copied.
        """
        if not self._settings.needs_gradient:
            return
        wanted = None if parameters is None else {id(parameter) for parameter in parameters}
        seen = {
            name: local(site.parameter.grad)
            for name, site in self._sites.items()
            if site.parameter.grad is not None and (wanted is None or id(site.parameter) in wanted)
        }
        if self.criterion.sums_steps and seen:
            finite = self._finite(list(seen.values()))
            for name, gradient in seen.items():
                self.criterion.observe(name, self._sites[name].weight, gradient.to_dense(), finite)
        if remember:
            self._gradients.update(seen)

    def forget_gradients(self) -> None:
        """Let go of the gradients an update has used."""
        self._gradients.clear()

    def of(self, prunable: Prunable, step: int) -> Tensor:
        """Scores of a weight's entries or a group's channels, -inf for those pruned already.

        Raises:
            CompressionError: Weights are NaN, or what the criterion looks at is not there.
        """
        if isinstance(prunable, ChannelGroup):
            return prunable.scores({part.name: self._raw(self._sites[part.name], step) for part in prunable.produced})
        assert isinstance(prunable, Site)
        if self.by_absolute_value(prunable):
            # Pruned weights are zero, so that they are the smallest as they are.
            return prunable.weight
        return self._raw(prunable, step).masked_fill(~prunable.mask, -math.inf)

    def by_absolute_value(self, prunable: Prunable) -> bool:
        """Whether the scores of single entries are the weights themselves, without a copy."""
        return self.criterion.signed and isinstance(prunable, Site) and prunable.single

    def of_growth(self, site: Site, step: int) -> Tensor:
        """Non-negative scores for regrowth, of the weight's shape.

        Raises:
            CompressionError: The gradient is not there.
        """
        if self._settings.regrow == "gradient":
            return self.criterion.gradient_of(self._entries(site, step), "regrow='gradient'").abs()
        whole = uniform(site.parameter.shape, f"regrow {site.name}", self._settings.seed, step)
        return self._shards.rows(whole).to(site.weight.device)

    def _raw(self, site: Site, step: int) -> Tensor:
        entries = self._entries(site, step)
        # Shards are looked at when they are ranked, in all processes together.
        if self._shards.size == 1:
            nans = entries.weight.isnan().sum()
            refuse_nan(nans, f"{site.name}: weights are NaN, so they cannot be ranked for pruning.")
        scores = self.criterion.score(entries)
        return scores.abs() if self.criterion.signed else scores

    def _entries(self, site: Site, step: int) -> Entries:
        gradient = self._gradients.get(site.name)
        if gradient is None and site.parameter.grad is not None:
            gradient = local(site.parameter.grad)
        gradient = None if gradient is None else gradient.detach().to_dense()
        return Entries(site.name, site.weight, gradient, step, tuple(site.parameter.shape), self._shards)

    def _finite(self, gradients: Sequence[Tensor]) -> Tensor:
        """Whether all gradients are finite: bool, ``[]``. A step where they are not is one that loss scaling skips."""
        # Not looked at: that would wait for an accelerator in every step.
        finite = torch.stack([gradient.isfinite().all().to(gradients[0].device) for gradient in gradients]).all()
        return self._shards.total((~finite).long()) == 0 if self._shards.size > 1 else finite
