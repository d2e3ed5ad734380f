"""The kinds of loggers: the one list of them."""

from __future__ import annotations

from lightning.pytorch.loggers import Logger

from lightning_compress.lightning_packages import is_instance
from lightning_compress.loggers.base import Sink
from lightning_compress.loggers.local_files import Csv, TensorBoard
from lightning_compress.loggers.weights_and_biases import WeightsAndBiases

KINDS: tuple[type[Sink], ...] = (WeightsAndBiases, TensorBoard, Csv)


def sink(logger: Logger) -> Sink:
    """A logger by its kind; one of no kind known here takes the numbers of the report alone."""
    return next((kind for kind in KINDS if is_instance(logger, kind.serves)), Sink)(logger)
