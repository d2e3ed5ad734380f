"""Loggers that write to a local folder: what they have no room for becomes a file beside theirs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from numpy.typing import NDArray

from lightning_compress.foundation.atomic_write import replacing
from lightning_compress.loggers.base import Sink


class Csv(Sink):
    """The plan, tables and pictures as files."""

    serves: ClassVar[type] = CSVLogger

    @property
    def folder(self) -> Path:
        """Where the logger writes."""
        folder = Path(self.logger.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def plan(self, plan: Mapping[str, Any]) -> None:
        """``compress_plan.json``."""
        with replacing(self.folder / "compress_plan.json") as path:
            path.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A CSV file."""
        with (
            replacing(self.folder / f"{key.replace('/', '_')}.csv") as path,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows([columns, *rows])

    def image(self, key: str, png: bytes) -> None:
        """A PNG file."""
        with replacing(self.folder / f"{key.replace('/', '_')}.png") as path:
            path.write_bytes(png)


class TensorBoard(Csv):
    """Histograms and pictures where TensorBoard shows them, the rest as files."""

    serves = TensorBoardLogger

    def histogram(self, key: str, values: NDArray[np.float32], step: int) -> None:
        """A histogram of the step."""
        self.logger.experiment.add_histogram(key, values, step)

    def image(self, key: str, png: bytes) -> None:
        """An image."""
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self.logger.experiment.add_image(key, pixels, dataformats="HWC")
