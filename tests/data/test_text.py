from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from lightning_compress.data import Banking77, Shakespeare
from lightning_compress.errors import CompressionError

TEXT = "to be, or not to be. " * 40


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """Two intents of ten queries; two queries have a comma and a line end within quotes."""
    rows = [f"is my card number {i} lost?,lost_card" for i in range(10)]
    rows += [f'"send {i} euro,\nplease",transfer' for i in range(10)]
    (tmp_path / "train.csv").write_text("text,category\n" + "\n".join(rows) + "\n")
    (tmp_path / "test.csv").write_text("text,category\nWhere is my Card,lost_card\nsend money,transfer\n")
    return tmp_path


@pytest.fixture
def shakespeare(tmp_path: Path) -> Path:
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text(TEXT)
    return tmp_path


def test_queries_are_split_by_intent_and_the_published_test_set_stays(bank: Path) -> None:
    data = Banking77(bank, length=8, vocabulary=20, val_fraction=0.2)
    data.setup()
    record = data.split_record()
    assert (record["train"], record["val"], record["test"], record["classes"]) == (16, 4, 2, 2)
    assert Counter(data._dataset("val").targets.tolist()) == {0: 2, 1: 2}
    assert data._dataset("test").targets.tolist() == [0, 1]


def test_a_known_word_has_one_number_whatever_its_case_and_unknown_ones_share_one(bank: Path) -> None:
    data = Banking77(bank, length=6, vocabulary=50)
    data.setup()
    where, is_, my, card, *padding = data._dataset("test").tokens[0].tolist()
    assert where == 1
    assert padding == [0, 0]
    train = data._dataset("train").tokens[0].tolist()
    assert train[:3] == [is_, my, card]
    assert len({is_, my, card}) == 3
    assert min(is_, my, card) >= 2


def test_the_vocabulary_is_no_larger_than_asked_for(bank: Path) -> None:
    data = Banking77(bank, length=8, vocabulary=5)
    data.setup()
    assert int(max(data._dataset(part).tokens.max() for part in ("train", "val", "test"))) == 4


def test_words_of_validation_and_test_queries_are_not_learned(bank: Path) -> None:
    (bank / "test.csv").write_text("text,category\n" + "zebra zebra zebra zebra,transfer\n" * 50)
    data = Banking77(bank, length=8, vocabulary=1000)
    data.setup()
    assert data._dataset("test").tokens[0, :4].tolist() == [1, 1, 1, 1]


def test_every_character_is_to_predict_the_next_one(shakespeare: Path) -> None:
    data = Shakespeare(shakespeare, length=7)
    data.setup()
    letters = sorted(set(TEXT))
    parts = [data._dataset(part) for part in ("train", "val", "test")]
    for part in parts:
        assert torch.equal(part.tokens.flatten()[1:], part.targets.flatten()[:-1])
    text = "".join(letters[token] for token in parts[0].tokens.flatten())
    assert TEXT.startswith(text)
    assert len(text) == (int(0.9 * len(TEXT)) - 1) // 7 * 7


def test_the_three_parts_of_the_text_do_not_overlap(shakespeare: Path) -> None:
    data = Shakespeare(shakespeare, length=3)
    data.setup()
    total = sum(part.tokens.numel() for part in (data._dataset(p) for p in ("train", "val", "test")))
    assert total <= len(TEXT) - 3
    assert data.split_record()["classes"] == len(set(TEXT))


def test_a_batch_has_tokens_and_targets_of_whole_numbers(shakespeare: Path) -> None:
    data = Shakespeare(shakespeare, length=5, batch_size=4)
    data.setup()
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape, y.shape, x.dtype, y.dtype) == ((4, 5), (4, 5), torch.int64, torch.int64)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lambda root: Banking77(root, length=8, vocabulary=20), r"needs train\.csv, test\.csv, found neither"),
        (lambda root: Shakespeare(root, length=8), r"needs input\.txt, found neither"),
    ],
)
def test_absent_files_are_named_with_the_way_out(tmp_path: Path, data: object, says: str) -> None:
    with pytest.raises(CompressionError, match=rf"data\.root: .*{says}.*Point data\.root"):
        data(tmp_path).prepare_data()  # type: ignore[operator]


def test_a_csv_file_with_other_columns_is_refused(bank: Path) -> None:
    (bank / "test.csv").write_text("query,intent\na,b\n")
    with pytest.raises(CompressionError, match=r"test\.csv: expected a csv file with columns text,category"):
        Banking77(bank, length=8, vocabulary=20).setup()


def test_an_intent_that_training_lacks_is_refused(bank: Path) -> None:
    (bank / "test.csv").write_text("text,category\nhello,greeting\n")
    with pytest.raises(CompressionError, match=r"'greeting', which train\.csv lacks"):
        Banking77(bank, length=8, vocabulary=20).setup()


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"length": 0}, "length"), ({"vocabulary": 2}, "vocabulary"), ({"val_fraction": 1.0}, "val_fraction")],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict[str, float], field: str) -> None:
    with pytest.raises(CompressionError, match=rf"data\.{field}: expected"):
        Banking77(tmp_path, **{"length": 8, "vocabulary": 20, **settings})  # type: ignore[arg-type]


def test_a_text_shorter_than_a_sample_is_refused(shakespeare: Path) -> None:
    with pytest.raises(CompressionError, match=r"data\.length: expected less than the 42 characters"):
        Shakespeare(shakespeare, length=50).setup()
