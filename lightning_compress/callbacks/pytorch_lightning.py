"""The checkpoint callback for Trainers of the package ``pytorch_lightning``; all others serve both packages."""

from __future__ import annotations

from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_compress.callbacks.checkpoint import OnlyCompressed

__all__ = ["CompressedCheckpoint"]


class CompressedCheckpoint(OnlyCompressed, ModelCheckpoint):  # type: ignore[misc]
    """``lightning_compress.callbacks.CompressedCheckpoint`` for a Trainer of ``pytorch_lightning``.

    Example:
        >>> CompressedCheckpoint(monitor="val/acc", mode="max").save_top_k
        1
    """
