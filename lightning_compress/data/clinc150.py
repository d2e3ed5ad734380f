"""Queries to an assistant, by intent, as token numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.data.text import TextData, encode, frequent_words
from lightning_compress.errors import CompressionError


class Clinc150(TextData):
    """Queries to an assistant and what they are about, 150 intents of ten domains (S. Larson and others 2019).

    The published split: 100 training, 20 validation and 30 test queries of each intent. Queries that are out of scope
    are left out. Words and punctuation in lower case; the most frequent ones of the training queries have numbers of
    their own.

    Args:
        root: Directory that holds the published ``data_full.json``, or a directory ``text_clinc150/`` with it.
        vocabulary: Numbers of tokens: padding, unknown, and the most frequent words.
        options: See :class:`~lightning_compress.data.text.TextData`.

    Raises:
        CompressionError: A setting is out of its range.

    Example:
        >>> Clinc150("data", length=32, vocabulary=1024).vocabulary
        1024
    """

    name = "text_clinc150"
    files = ("data_full.json",)

    def __init__(self, root: str | Path, *, vocabulary: int, **options: Any) -> None:
        super().__init__(root, **options)
        if vocabulary < 3:
            raise CompressionError.field("data.vocabulary", expected="at least 3", got=vocabulary)
        self.vocabulary = vocabulary

    def setup(self, stage: str | None = None) -> None:
        """Read and number the words, once."""
        if self._sets:
            return
        (path,) = self._found()
        queries = _read(path)
        numbers = {intent: number for number, intent in enumerate(sorted({i for _, i in queries["train"]}))}
        known = frequent_words((text for text, _ in queries["train"]), self.vocabulary - 2)
        parts: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        for part, pairs in queries.items():
            if unseen := sorted({intent for _, intent in pairs} - set(numbers)):
                raise CompressionError(f"{path}: {part} has the intent {unseen[0]!r}, which train lacks.")
            labels = np.array([numbers[intent] for _, intent in pairs], np.int64)
            parts[part] = encode([text for text, _ in pairs], known, self.length), labels
        self._keep(parts, source="CLINC150, data_full.json", classes=len(numbers), words=len(known))


def _read(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Queries with their intents, by part."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {part: [(str(text), str(intent)) for text, intent in content[part]] for part in ("train", "val", "test")}
    except (ValueError, KeyError, TypeError) as error:
        raise CompressionError(
            f"{path}: expected lists train, val and test of [query, intent], got something else ({error})."
        ) from error
