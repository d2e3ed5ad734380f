"""Weights with their masks: which entries are kept, and all others set to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_compress.foundation.shards import local
from lightning_compress.pruning.channels.group import ChannelGroup
from lightning_compress.pruning.masks import apply_masks
from lightning_compress.pruning.prunable import Site


class MaskedWeights:
    """The part of a pruner that holds masks and applies them."""

    _sites: Sequence[Site]
    _groups: Sequence[ChannelGroup]

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name → mask of its shape, ``bool``, ``True`` = kept. Not copies; under FSDP2 of the local rows."""
        return {site.name: site.mask for site in self._sites}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameter name → the parameter that is pruned."""
        return {site.name: site.parameter for site in self._sites}

    @property
    def patterns(self) -> dict[str, str]:
        """Parameter name → the pattern in which it is pruned."""
        return {site.name: site.pattern.text for site in self._sites}

    def masks_by_parameter(self) -> dict[Tensor, Tensor]:
        """Parameter → mask, on the parameter's device."""
        for site in self._sites:
            site.move()
        return {site.parameter: site.mask for site in self._sites}

    def mask_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Zero pruned entries in a copy of the model's weights, such as an average of them."""
        for site in self._sites:
            if site.name in state_dict:
                copy = local(state_dict[site.name])
                apply_masks([copy], [site.mask.to(copy.device)])

    @torch.no_grad()
    def apply(self) -> None:
        """Zero masked weights, and nothing else."""
        for site in self._sites:
            site.move()
        apply_masks([local(site.parameter) for site in self._sites], [site.mask for site in self._sites])

    def _write_groups(self) -> None:
        """Prune in every weight what a group of channels has pruned."""
        for group in self._groups:
            group.write(self.masks)

    def _infer_groups(self) -> None:
        """Find which channels are pruned by the masks of the weights, and make both agree."""
        if not self._groups:
            return
        for group in self._groups:
            group.infer(self.masks)
        for site in self._sites:
            site.mask.fill_(True)
        self._write_groups()
