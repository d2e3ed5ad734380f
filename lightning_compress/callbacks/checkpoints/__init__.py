"""What goes into a checkpoint, and what comes out of one."""

from lightning_compress.callbacks.checkpoints.mend_progress import PlateauSteps, mend_progress
from lightning_compress.callbacks.checkpoints.saving import SavingCallback

__all__ = ["PlateauSteps", "SavingCallback", "mend_progress"]
