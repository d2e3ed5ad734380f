"""Batch norms whose statistics are kept as they are."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenNorms:
    """The batch norms that were put into eval mode, so that they can be put back."""

    def __init__(self) -> None:
        self._norms: set[nn.Module] = set()

    def freeze(self, module: nn.Module) -> None:
        """Put the batch norms that are in train mode into eval mode."""
        for norm in module.modules():
            if isinstance(norm, _BatchNorm) and norm.training:
                norm.eval()
                self._norms.add(norm)

    def release(self) -> None:
        """Put them back into train mode."""
        for norm in self._norms:
            norm.train()
        self._norms.clear()
