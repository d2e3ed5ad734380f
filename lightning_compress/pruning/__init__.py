"""Pruning: schedules, distributions, patterns, regrowth, and masks that hold after every optimizer step."""

from lightning_compress.pruning.channels.shrink import Shrunk, apply_shapes, carry_state, shrink
from lightning_compress.pruning.pruner import Pruner

__all__ = ["Pruner", "Shrunk", "apply_shapes", "carry_state", "shrink"]
