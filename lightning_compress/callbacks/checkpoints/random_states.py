"""States of the random number generators, so that a resumed run draws the same numbers."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's generators: tensors and primitives."""
    legacy: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = legacy
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any], trainer: L.Trainer) -> None:
    """Put the generators back to where ``random_states`` found them.

    In a run of several processes nothing is changed: a checkpoint holds the states of the first alone, and all would
    draw the same.

    Args:
        states: What it gave.
        trainer: Whose fit goes on.
    """
    if trainer.world_size > 1:
        return
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numbers, *rest = states["numpy"]
    np.random.set_state((name, numbers.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"].cpu())
