"""Text as token numbers: intents of bank queries by words, and Shakespeare by characters."""

from __future__ import annotations

import collections
import csv
import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_compress.data.batches import Batch
from lightning_compress.data.images import stratified_split
from lightning_compress.data.memory import MemoryData, find_file, missing_files
from lightning_compress.errors import CompressionError

PAD, UNKNOWN = 0, 1
_WORD = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")


class TokenDataset(Dataset[Batch]):
    """Token numbers and targets, a batch at a time.

    Args:
        tokens: int64 [N, T].
        targets: int64 [N], or [N, T] with a target for every token.
    """

    def __init__(self, tokens: Tensor, targets: Tensor) -> None:
        self.tokens, self.targets = tokens, targets

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Batch:
        """One sample: tokens [T] and its target [] or [T]."""
        return self.tokens[index], self.targets[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        """A whole batch: tokens int64 [B, T] and targets int64 [B] or [B, T]."""
        index = torch.tensor(indices)
        return self.tokens[index], self.targets[index]


class TextData(MemoryData):
    """Text in memory. Subclasses read it.

    Args:
        root: Directory that holds the files, or a directory of the data set's name with them.
        length: Tokens of a sample.
        batch_size: Samples in a training batch.
        eval_batch_size: Samples in a validation or test batch.
        seed: Seed of split and order.

    Raises:
        CompressionError: A setting is out of its range.
    """

    files: tuple[str, ...] = ()

    def __init__(
        self, root: str | Path, *, length: int, batch_size: int = 64, eval_batch_size: int = 512, seed: int = 0
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        if length < 1:
            raise CompressionError.field("data.length", expected="a positive integer", got=length)
        self.root, self.length = Path(root).expanduser(), length

    def prepare_data(self) -> None:
        """Find the files.

        Raises:
            CompressionError: They are missing.
        """
        self._found()

    def _found(self) -> list[Path]:
        found = [find_file(self.root, self.name, file) for file in self.files]
        missing = [file for file, path in zip(self.files, found, strict=True) if path is None]
        if missing:
            raise missing_files(self.root, self.name, missing, "")
        return [path for path in found if path is not None]

    def _keep(self, parts: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]], **record: Any) -> None:
        """Make the data sets, and the record of where they came from."""
        self._sets = {part: TokenDataset(torch.from_numpy(x), torch.from_numpy(y)) for part, (x, y) in parts.items()}
        self._record = {
            "name": self.name,
            "seed": self.seed,
            "length": self.length,
            **{part: len(x) for part, (x, _) in parts.items()},
            **record,
            "sha256": {part: hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest() for part, (x, y) in parts.items()},
        }


class Banking77(TextData):
    """Queries to a bank and what they are about, 77 intents (I. Casanueva and others 2020).

    Words and punctuation in lower case; the most frequent ones of the training queries have numbers of their own.

    Args:
        root: Directory that holds the published ``train.csv`` and ``test.csv``, or a directory ``text_banking77/``
            with them.
        vocabulary: Numbers of tokens: padding, unknown, and the most frequent words.
        val_fraction: Share of the training queries, of every intent, set aside for validation.
        options: See :class:`TextData`.

    Raises:
        CompressionError: A setting is out of its range.
    """

    name = "text_banking77"
    files = ("train.csv", "test.csv")

    def __init__(self, root: str | Path, *, vocabulary: int, val_fraction: float = 0.1, **options: Any) -> None:
        super().__init__(root, **options)
        if vocabulary < 3:
            raise CompressionError.field("data.vocabulary", expected="at least 3", got=vocabulary)
        if not 0 < val_fraction < 1:
            raise CompressionError.field("data.val_fraction", expected="a share between 0 and 1", got=val_fraction)
        self.vocabulary, self.val_fraction = vocabulary, val_fraction

    def setup(self, stage: str | None = None) -> None:
        """Read, split and number the words, once."""
        if self._sets:
            return
        (texts, names), (test_texts, test_names) = (_read_queries(path) for path in self._found())
        numbers = {name: number for number, name in enumerate(sorted(set(names)))}
        if unseen := sorted(set(test_names) - set(numbers)):
            raise CompressionError(f"{self.root}: test.csv has the intent {unseen[0]!r}, which train.csv lacks.")
        labels, test_labels = (np.array([numbers[n] for n in part], np.int64) for part in (names, test_names))
        train, val = stratified_split(labels, self.val_fraction, self.seed + 1)
        # Of the training queries alone.
        known = frequent_words((texts[i] for i in train), self.vocabulary - 2)
        tokens, test_tokens = (encode(part, known, self.length) for part in (texts, test_texts))
        parts = {
            "train": (tokens[train], labels[train]),
            "val": (tokens[val], labels[val]),
            "test": (test_tokens, test_labels),
        }
        self._keep(parts, source="Banking77, the published csv files", classes=len(numbers), words=len(known))


class Shakespeare(TextData):
    """The million characters of Shakespeare of A. Karpathy's char-rnn; a model predicts the next character.

    The usual split: the first nine tenths train. The last tenth is halved into validation and test.

    Args:
        root: Directory that holds the published ``input.txt``, or a directory ``tinyshakespeare/`` with it.
        options: See :class:`TextData`.
    """

    name = "tinyshakespeare"
    files = ("input.txt",)

    def setup(self, stage: str | None = None) -> None:
        """Read the text and cut it into windows, once."""
        if self._sets:
            return
        text = self._found()[0].read_text(encoding="utf-8")
        numbers = {character: number for number, character in enumerate(sorted(set(text)))}
        stream = np.array([numbers[character] for character in text], np.int64)
        cuts = [int(share * len(stream)) for share in (0, 0.9, 0.95, 1)]
        pieces = [stream[begin:end] for begin, end in pairwise(cuts)]
        if len(pieces[2]) <= self.length:
            raise CompressionError.field(
                "data.length", expected=f"less than the {len(pieces[2])} characters of the test text", got=self.length
            )
        parts = {name: windows(part, self.length) for name, part in zip(("train", "val", "test"), pieces, strict=True)}
        self._keep(parts, source="tinyshakespeare of char-rnn", classes=len(numbers))


def frequent_words(texts: Iterable[str], count: int) -> dict[str, int]:
    """Word → token number, from 2, the most frequent first; equal counts in alphabetical order.

    Example:
        >>> frequent_words(["My card, my card!"], 2)
        {'card': 2, 'my': 3}
    """
    counted = collections.Counter(word for text in texts for word in _WORD.findall(text.lower()))
    ordered = sorted(counted, key=lambda word: (-counted[word], word))
    return {word: number for number, word in enumerate(ordered[:count], start=2)}


def encode(texts: Sequence[str], known: dict[str, int], length: int) -> NDArray[np.int64]:
    """Token numbers, int64 [N, length]: cut where they are longer, padded with 0 where they are shorter.

    Example:
        >>> encode(["My lost card"], {"card": 2, "my": 3}, 4).tolist()
        [[3, 1, 2, 0]]
    """
    tokens = np.full((len(texts), length), PAD, np.int64)
    for row, text in zip(tokens, texts, strict=True):
        words = _WORD.findall(text.lower())[:length]
        row[: len(words)] = [known.get(word, UNKNOWN) for word in words]
    return tokens


def windows(stream: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pieces of a stream that do not overlap, and the same moved on by one: int64 [N, length] each.

    Example:
        >>> inputs, targets = windows(np.arange(8), 3)
        >>> inputs.tolist(), targets.tolist()
        ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    count = (len(stream) - 1) // length
    inputs, targets = (stream[begin : begin + count * length].reshape(count, length) for begin in (0, 1))
    return inputs.copy(), targets.copy()


def _read_queries(path: Path) -> tuple[list[str], list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != ["text", "category"]:
            raise CompressionError(f"{path}: expected a csv file with columns text,category, got {reader.fieldnames}.")
        rows = list(reader)
    return [row["text"] for row in rows], [row["category"] for row in rows]
