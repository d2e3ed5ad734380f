"""What goes into a checkpoint, and what comes out of one."""

from lightning_compress.callbacks.checkpoints.progress import PlateauSteps, correct_progress
from lightning_compress.callbacks.checkpoints.saving import SavingCallback

__all__ = ["PlateauSteps", "SavingCallback", "correct_progress"]
