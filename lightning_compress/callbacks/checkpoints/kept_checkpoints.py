"""What other checkpoint callbacks keep as best, and whether it is compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from lightning_compress.callbacks.checkpoint import OnlyCompressed
from lightning_compress.callbacks.monitor import compression
from lightning_compress.callbacks.quantization import QuantizationAwareTraining
from lightning_compress.delivery.evaluation import duplicate
from lightning_compress.errors import CompressionError
from lightning_compress.lightning_packages import is_instance
from lightning_compress.monitoring.phases import ready
from lightning_compress.quantization import find


class Kept(NamedTuple):
    """A best checkpoint when it was kept.

    Attributes:
        step: Optimizer steps done.
        ready: Whether target sparsity and bits were live.
        quantized: Whether the last bits were live.
        sparsity: Share of zeros among the weights that are pruned; ``None`` where nothing is.
    """

    step: int
    ready: bool
    quantized: bool
    sparsity: float | None


class KeptCheckpoints:
    """Notes at which step, and how far compressed, each best checkpoint of a run was kept.

    Attributes:
        known: Path → what it was; ``None`` where it is from before the run that this one resumes.
    """

    def __init__(self) -> None:
        self.known: dict[str, Kept | None] = {}

    def state_dict(self) -> dict[str, Any]:
        """What is known, as primitives."""
        return {path: None if kept is None else list(kept) for path, kept in self.known.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.known = {path: kept and Kept(*kept) for path, kept in state.items()}

    def look(self, trainer: L.Trainer, *, begins: bool = False) -> None:
        """Take note of new ones; the model must still be as it was when they were kept.

        Args:
            trainer: Whose checkpoint callbacks are looked at.
            begins: Whether the fit only begins, so that what is there is older.
        """
        for callback in _monitoring(trainer):
            path = callback.best_model_path
            if path and path not in self.known:
                pruner, quantization = compression(trainer)
                sparsity = None if pruner is None else pruner.sparsity()
                live = (ready(pruner, quantization), ready(None, quantization))
                self.known[path] = None if begins else Kept(trainer.global_step, *live, sparsity)

    def warn_of_early(self, trainer: L.Trainer, field: str, *, exported: Path | None) -> list[str]:
        """Warn of each best checkpoint that was kept before the targets were reached.

        Args:
            trainer: Whose checkpoint callbacks are looked at.
            field: Name of the callback, for messages.
            exported: The checkpoint that is exported, where it is not the last weights.

        Returns:
            The warnings, without the callback's name.
        """
        pruner, _ = compression(trainer)
        found = []
        for callback in _monitoring(trainer):
            kept = self.known.get(callback.best_model_path)
            if kept is None or kept.ready or isinstance(callback, OnlyCompressed):
                continue
            lacks = []
            if pruner is not None and kept.sparsity is not None:
                lacks.append(
                    f"{kept.sparsity:.1%} of its prunable weights are zero, {pruner.sparsity():.1%} at the end"
                )
            if not kept.quantized:
                lacks.append("its bits were not those of the end yet")
            what = "is what was exported" if exported == Path(callback.best_model_path) else "was not exported"
            found.append(
                f"The best checkpoint by {callback.monitor!r}, {callback.best_model_path} of optimizer step "
                f"{kept.step}, is from before the targets were reached ({'; '.join(lacks)}), and {what}. "
                f"CompressedCheckpoint(monitor={callback.monitor!r}) keeps no such epoch as best."
            )
        for note in found:
            rank_zero_warn(f"{field}: {note}")
        return found


def chosen_checkpoint(trainer: L.Trainer, which: Literal["last", "best"], field: str) -> Path | None:
    """The best checkpoint of the Trainer's first checkpoint callback that has one; ``None`` for the last weights.

    Raises:
        CompressionError: The best one is asked for, and there is none.
    """
    if which == "last":
        return None
    path = next((callback.best_model_path for callback in _monitoring(trainer) if callback.best_model_path), "")
    if not path:
        raise CompressionError.field(
            field,
            expected="'last', or a ModelCheckpoint or CompressedCheckpoint with monitor=... that kept a best one",
            got="best",
        )
    return Path(path)


def with_checkpoint(trainer: L.Trainer, module: L.LightningModule, path: Path, notes: list[str]) -> L.LightningModule:
    """A copy of the trained module with a checkpoint's weights and, where it has them, its quantizers' ranges.

    Args:
        trainer: Which wrote the checkpoint.
        module: The module as trained; it is not changed.
        path: The checkpoint.
        notes: Gets what a reader should know.
    """
    content = trainer.strategy.checkpoint_io.load_checkpoint(path)
    copied = duplicate(module)
    copied.load_state_dict(content["state_dict"])
    notes.append(f"The weights are those of the checkpoint {path}, optimizer step {content['global_step']}.")
    quantization = find(copied)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    states = (
        content.get("callbacks", {}).get(c.state_key) for c in callbacks if isinstance(c, QuantizationAwareTraining)
    )
    saved = next((state for state in states if state), None)
    if quantization is None:
        return copied
    if saved is not None and saved["placement"] is not None and saved["enabled"]:
        quantization.load_state_dict(saved)
    else:
        notes.append("It holds no ranges of activations, which are those of the last step.")
    return copied


def newest_checkpoint(trainer: L.Trainer) -> Path | None:
    """The checkpoint that a checkpoint callback holds to be the best, or that it wrote last."""
    callback = trainer.checkpoint_callback
    path = getattr(callback, "best_model_path", "") or getattr(callback, "last_model_path", "")
    return Path(path) if path else None


def _monitoring(trainer: L.Trainer) -> list[Any]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if is_instance(callback, ModelCheckpoint) and callback.monitor]
