from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.data import Clinc150
from lightning_compress.errors import CompressionError

PUBLISHED = {
    "train": [["Say hi in Latin", "translate"], ["what is my rate", "rate"], ["say it in Greek", "translate"]],
    "val": [["my rate?", "rate"]],
    "test": [["say zebra in Latin", "translate"], ["rate", "rate"]],
    "oos_test": [["how are the markets", "oos"]],
}


def made(folder: Path, content: Any, **settings: int) -> Clinc150:
    (folder / "text_clinc150").mkdir()
    (folder / "text_clinc150" / "data_full.json").write_text(json.dumps(content), encoding="utf-8")
    return Clinc150(folder, **{"length": 4, "vocabulary": 50, **settings})  # type: ignore[arg-type]


def test_the_published_split_is_kept_without_queries_out_of_scope(tmp_path: Path) -> None:
    data = made(tmp_path, PUBLISHED)
    data.setup()
    record = data.split_record()
    assert (record["train"], record["val"], record["test"], record["classes"]) == (3, 1, 2, 2)
    assert data._dataset("train").targets.tolist() == [1, 0, 1]
    assert data._dataset("test").targets.tolist() == [1, 0]


def test_words_are_numbered_by_their_frequency_in_the_training_queries(tmp_path: Path) -> None:
    data = made(tmp_path, PUBLISHED)
    data.setup()
    # "in" and "say" occur twice, and come first in the order of the alphabet; "zebra" is unknown.
    say, zebra, in_, latin = data._dataset("test").tokens[0].tolist()
    assert (in_, say, zebra) == (2, 3, 1)
    assert latin > 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"train": [], "val": []}, r"expected lists train, val and test .*'test'"),
        ([1, 2], r"expected lists train, val and test"),
        ({**PUBLISHED, "test": [["what", "new"]]}, r"test has the intent 'new', which train lacks"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(CompressionError, match=says):
        made(tmp_path, content).setup()


def test_a_vocabulary_without_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"data\.vocabulary: expected at least 3"):
        Clinc150(tmp_path, length=4, vocabulary=2)
    with pytest.raises(CompressionError, match=r"needs data_full\.json, found neither"):
        Clinc150(tmp_path, length=4, vocabulary=20).prepare_data()
