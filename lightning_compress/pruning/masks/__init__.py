"""Masks: one byte a weight in memory, one bit in a checkpoint, applied in one pass."""

from lightning_compress.pruning.masks.apply import apply_masks, count_kept, new_mask, pack, stacked, unpack

__all__ = ["apply_masks", "count_kept", "new_mask", "pack", "stacked", "unpack"]
