"""What all data modules in memory share: batches, an order that resumes, a record of the split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from lightning_compress.data.batches import EpochShuffle, ResumableLoader, already_a_batch
from lightning_compress.errors import CompressionError


class MemoryData(L.LightningDataModule):
    """Data that fits in memory, in three parts. Subclasses fill them in ``setup``.

    Args:
        batch_size: Samples in a training batch.
        eval_batch_size: Samples in a validation or test batch.
        seed: Seed of split and order.

    Raises:
        CompressionError: A setting is out of its range.
    """

    name = "memory"

    def __init__(self, *, batch_size: int = 64, eval_batch_size: int = 512, seed: int = 0) -> None:
        super().__init__()
        for field, count in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if count < 1:
                raise CompressionError.field(f"data.{field}", expected="a positive integer", got=count)
        if seed < 0:
            raise CompressionError.field("data.seed", expected="at least 0", got=seed)
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self._sets: dict[str, Any] = {}
        self._record: dict[str, Any] = {}
        self._position: dict[str, Any] | None = None

    def split_record(self) -> dict[str, Any]:
        """Where the data came from and how it was split, for the report; made of JSON types.

        Raises:
            CompressionError: :meth:`setup` has not been called.
        """
        self._dataset("train")
        return dict(self._record)

    def train_dataloader(self) -> ResumableLoader:
        """Training samples in an order that depends on the seed and the epoch."""
        data = self._dataset("train")
        loader = ResumableLoader(
            data,
            batch_size=self.batch_size,
            sampler=EpochShuffle(len(data), self.seed),
            collate_fn=already_a_batch,
            drop_last=len(data) >= self.batch_size,
        )
        if self._position is not None:
            loader.load_state_dict(self._position)
            self._position = None
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Position in the epoch, for checkpoints.

        Lightning restores a loader's own state too late when a scheduler has asked for the length of the run.
        """
        loader = self.trainer.train_dataloader if self.trainer is not None else None
        return loader.state_dict() if isinstance(loader, ResumableLoader) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next training loader go on from a position."""
        self._position = state_dict

    def val_dataloader(self) -> ResumableLoader:
        """Validation samples in order."""
        return ResumableLoader(self._dataset("val"), batch_size=self.eval_batch_size, collate_fn=already_a_batch)

    def test_dataloader(self) -> ResumableLoader:
        """Test samples in order."""
        return ResumableLoader(self._dataset("test"), batch_size=self.eval_batch_size, collate_fn=already_a_batch)

    def _dataset(self, part: str) -> Any:
        if part not in self._sets:
            raise CompressionError(f"{type(self).__name__}: call setup() before asking for the {part} data.")
        return self._sets[part]


def find_file(root: Path, name: str, file: str) -> Path | None:
    """A file in the root, or in the folder of the data set's name."""
    return next((path for path in (root / name / file, root / file) if path.is_file()), None)


def missing_files(root: Path, name: str, missing: list[str], download: str) -> CompressionError:
    """The error for a data root without the files."""
    return CompressionError(
        f"data.root: {name} needs {', '.join(missing)}, found neither in {root / name} nor in {root} itself. "
        f"Point data.root at the directory that holds the files{download}."
    )
