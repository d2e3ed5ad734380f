"""What a pruner was asked for, and what its masks and weights measure: sparsity, counts by layer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_compress.foundation.shards import WHOLE, Shards
from lightning_compress.pruning import checkpoint as state
from lightning_compress.pruning.masked_weights import MaskedWeights
from lightning_compress.pruning.masks import stacked
from lightning_compress.pruning.ranking.nan_checks import NanChecks
from lightning_compress.pruning.schedule import SparsitySchedule
from lightning_compress.pruning.settings import Settings

# A mask update's outcome is one number: the changes, plus these for a layer that was pruned whole and for NaN.
_COLLAPSED, _SPOILED = 2**50, 2**51


class Measures(MaskedWeights):
    """The part of a pruner that measures."""

    _settings: Settings
    _shards: Shards = WHOLE
    _asked: dict[str, float]
    _parameters: int
    schedule: SparsitySchedule
    last_update: int | None
    _counts: Tensor
    _spoiled: Tensor
    _listed: list[int] | None

    @property
    def pattern(self) -> str:
        """The common pattern, as written."""
        return self._settings.pattern.text

    def describe(self) -> dict[str, Any]:
        """The settings as primitives, points in time as optimizer steps."""
        return state.describe(self._settings, self.schedule)

    @property
    def coverage(self) -> float:
        """Share of the model's parameters that are pruned; the others stay dense whatever ``final_sparsity`` is."""
        return self._entries() / self._parameters

    def sparsity(self) -> float:
        """Share of the target weights that are zero now. Under FSDP2 every process has to ask."""
        kept = torch.tensor(sum(int(site.weight.count_nonzero()) for site in self._sites), dtype=torch.int64)
        return 1 - int(self._shards.total(kept)) / self._entries()

    def sparsity_of_model(self) -> float:
        """Share of all the model's parameters, biases, norms and embeddings among them, that are zeros in targets."""
        return self.sparsity() * self.coverage

    def sparsity_target(self) -> float:
        """Share of zeros asked of the target weights together at the last update; 0 before the first."""
        if self._settings.freeze or self._groups:
            # Of weights nothing is asked here: the zeros there are stay, or channels are counted.
            return sum(self._pruned.values()) / self._entries()
        if self.last_update is None:
            return 0.0
        common = self.schedule.at(self.last_update)
        return sum(self._asked.get(site.name, common) * site.entries for site in self._sites) / self._entries()

    def layer_sparsity_target(self) -> dict[str, float]:
        """Parameter name → sparsity asked of it at the last update.

        With ``distribution="global"`` nothing is asked of a single layer, so there it is what the common
        threshold gave.
        """
        return {site.name: self._asked.get(site.name, self._pruned[site.name] / site.entries) for site in self._sites}

    def dead_channels(self) -> dict[str, int]:
        """Parameter name → how many slices along its first dimension, its output channels mostly, are pruned whole."""
        return {site.name: self._dead[site.name] for site in self._sites if site.mask.ndim > 1}

    def _entries(self) -> int:
        return sum(site.entries for site in self._sites)

    def _count(self, checks: NanChecks | None = None) -> None:
        """Count what is pruned over all processes, so that any of them can ask later; nothing is waited for."""
        pruned = [site.pruned() for site in self._sites]
        dead = [(~site.mask.flatten(1).any(dim=1)).count_nonzero() if site.mask.ndim > 1 else 0 for site in self._sites]
        counts = stacked([*pruned, *dead])
        spoiled = checks.found(counts.device).long() if checks is not None else torch.zeros_like(counts[0])
        found = self._shards.total(torch.cat([counts, spoiled.reshape(1)]))
        self._counts, self._spoiled, self._listed = found[:-1], found[-1], None

    def _numbers(self) -> list[int]:
        if self._listed is None:
            self._listed = self._counts.tolist()
        return self._listed

    @property
    def _pruned(self) -> dict[str, int]:
        """Site name → entries pruned now. An accelerator is waited for, once until masks change again."""
        return {site.name: count for site, count in zip(self._sites, self._numbers(), strict=False)}

    @property
    def _dead(self) -> dict[str, int]:
        return dict(zip((site.name for site in self._sites), self._numbers()[len(self._sites) :], strict=True))

    def _outcome(self, before: Tensor, checks: NanChecks) -> int:
        """How many entries changed since ``before``, counts of an earlier time; one wait for an accelerator.

        Raises:
            CompressionError: A check that was put off found NaN.
        """
        pruned, earlier = self._counts[: len(self._sites)], before[: len(self._sites)].to(self._counts.device)
        each = zip(pruned.unbind(), earlier.unbind(), self._sites, strict=True)
        collapsed = torch.stack([(was < now) & (now == site.entries) for now, was, site in each])
        flags = collapsed.any() * _COLLAPSED + self._spoiled.clamp(max=1) * _SPOILED
        number = int((pruned - earlier).abs().sum() + flags)
        if number >= _SPOILED:
            checks.refuse()
        if number % _SPOILED >= _COLLAPSED:
            self._warn_of_collapse(collapsed)
        return number % _COLLAPSED

    def _warn_of_collapse(self, collapsed: Tensor) -> None:
        for site, gone in zip(self._sites, collapsed.tolist(), strict=True):
            if gone:
                warnings.warn(
                    f"{self._settings.field}: every weight of {site.name} is pruned now, so nothing passes this layer. "
                    "Set a higher layer_floor, distribution='erk', or a lower final_sparsity.",
                    stacklevel=6,
                )

    def _pruned_now(self) -> Mapping[str, int | Tensor]:
        """Group or site name → units or entries pruned now; left on an accelerator where one process has it all."""
        if self._groups:
            return {group.name: group.pruned() for group in self._groups}
        if self._counts.device.type == "cpu" or self._shards.size > 1:
            return self._pruned
        return {site.name: count for site, count in zip(self._sites, self._counts.unbind(), strict=False)}
