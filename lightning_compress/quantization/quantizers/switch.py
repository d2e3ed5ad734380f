"""What all quantizers of a model share: whether they act, and whether they learn ranges."""

from __future__ import annotations

import torch
from torch import nn


class Switch:
    """What all quantizers of a model share: whether they act, and whether they learn ranges."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.enabled = True
        self.frozen = False
        self.momentum = 0.1
        self.observe_every = 1

    @property
    def learning(self) -> bool:
        """Ranges are learned from training batches alone: never in validation, never once frozen.

        Nor from a forward that runs again inside a backward pass (activation checkpointing): it saw that batch.
        """
        if not self.root.training or self.frozen:
            return False
        return torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1
