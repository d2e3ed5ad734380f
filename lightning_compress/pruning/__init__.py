"""Pruning: schedules, distributions, patterns, regrowth, and masks that stay true."""

from lightning_compress.pruning.pruner import Pruner

__all__ = ["Pruner"]
