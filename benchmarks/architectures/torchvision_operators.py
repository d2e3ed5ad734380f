"""Lets torchvision's models be imported beside a torch for the CPU.

The package index's torchvision is built for CUDA, and its binary operators do not load beside a torch for the CPU: it
is installed with ``--no-deps``, and importing it then fails where it describes its two operators without a guard.
Declaring them first is enough; no network of the zoo calls them.
"""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def declare_operators() -> None:
    """Declare what ``import torchvision`` describes, unless it is there already."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
