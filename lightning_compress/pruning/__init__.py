"""Pruning: schedules, distributions, patterns, regrowth, and masks that stay true."""

from lightning_compress.pruning.pruner import Pruner
from lightning_compress.pruning.shrink import Shrunk, apply_shapes, carry_state, shrink

__all__ = ["Pruner", "Shrunk", "apply_shapes", "carry_state", "shrink"]
