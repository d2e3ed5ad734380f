"""Knowledge distillation: a student learns from a teacher's outputs as well as from the labels."""

from lightning_compress.distillation.distiller import Distiller
from lightning_compress.distillation.losses import Attention, Features, Logits, Loss, Relations

__all__ = ["Attention", "Distiller", "Features", "Logits", "Loss", "Relations"]
