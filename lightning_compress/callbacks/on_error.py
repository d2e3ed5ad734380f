"""The setting ``on_error``: whether a failed export ends the fit or warns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from lightning.pytorch.utilities import rank_zero_warn

from lightning_compress.errors import CompressionError, DoesNotHold, reason

OnError = Literal["refuse", "warn", "raise"]


class FailurePolicy:
    """Raises or warns, as ``on_error`` says.

    Args:
        on_error: The setting.
        field: Name of the callback, for messages.

    Raises:
        CompressionError: It is no such setting.
    """

    def __init__(self, on_error: OnError, field: str) -> None:
        if on_error not in get_args(OnError):
            expected = f"one of {', '.join(get_args(OnError))}"
            raise CompressionError.field(f"{field}.on_error", expected=expected, got=on_error)
        self._on_error, self._field = on_error, field

    @property
    def refuses(self) -> bool:
        """Whether a format that cannot be written ends the fit before its first optimizer step."""
        return self._on_error != "warn"

    def unexpected(self, error: Exception) -> str:
        """The failure that an exception of the export is; raises it if it is to end the fit."""
        if self._on_error == "raise":
            raise error
        return f"The export did not end: {reason(error)}"

    def conclude(self, failures: Sequence[str], broken: Sequence[str], directory: Path) -> None:
        """End an export, once all that could be written is.

        Args:
            failures: What went wrong.
            broken: The limits among it.
            directory: Where the files are.

        Raises:
            DoesNotHold: A limit does not hold.
            CompressionError: Something else went wrong, with ``on_error="raise"``.
        """
        if not failures:
            return
        text = f"{self._field}: {' '.join(failures)} Everything else was written to {directory}."
        if broken and self._on_error != "warn":
            raise DoesNotHold(text)
        if self._on_error == "raise":
            raise CompressionError(text)
        rank_zero_warn(f"{text} The fit itself is complete.")
