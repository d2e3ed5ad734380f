"""What a logger of any kind takes; each kind that takes more has a class and a module of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray


@dataclass(frozen=True)
class Delivery:
    """What an export leaves for loggers.

    Attributes:
        report: The report (``lightning_compress.report``).
        numbers: Its numbers by which runs are compared.
        files: The exported files and the report's.
        dense: Weights of the dense model that compression began from or is compared with.
        checkpoint: Newest checkpoint of the compressed model.
    """

    report: Mapping[str, Any]
    numbers: Mapping[str, float]
    files: Sequence[Path]
    dense: Path | None = None
    checkpoint: Path | None = None


class Sink:
    """Any logger: it takes the numbers of the report as metrics, and nothing else.

    A new kind is a class made from this one, in a module of its own, and an entry in ``KINDS`` of ``loggers.kinds``.

    Args:
        logger: The logger.

    Attributes:
        serves: The class of loggers that it is for.
    """

    serves: ClassVar[type] = object

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """What its server or disk raises."""
        return OSError, TimeoutError

    @contextmanager
    def kept_going(self, what: str) -> Iterator[None]:
        """Turn what its server or disk does wrong into a warning."""
        try:
            yield
        except self.failures as error:
            rank_zero_warn(f"{type(self.logger).__name__} did not take {what}: {error}. The run goes on.")

    def connect(self, *, silent: bool = False) -> str | None:
        """Connect to its server, where it has one.

        Args:
            silent: Whether its own lines stay off the screen.

        Returns:
            Why it cannot be used; ``None`` if it can.
        """
        return None

    @property
    def place(self) -> str | None:
        """Where its run can be seen; ``None`` where nobody has to be told."""
        return None

    def plan(self, plan: Mapping[str, Any]) -> None:
        """Take what a run is going to do, in JSON types."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Take a table."""

    def histogram(self, key: str, values: NDArray[np.float32], step: int) -> None:
        """Take how numbers are spread, at an optimizer step."""

    def image(self, key: str, png: bytes) -> None:
        """Take a picture."""

    def alert(self, title: str, text: str) -> None:
        """Take what goes wrong in a run."""

    def delivery(self, found: Delivery) -> None:
        """Take what an export leaves."""
        self.logger.log_metrics(dict(found.numbers))
        self.logger.save()
