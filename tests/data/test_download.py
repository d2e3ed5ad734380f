from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lightning_compress.data.download import fetch
from lightning_compress.errors import CompressionError


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "published.gz"
    path.write_bytes(b"the published file" * 1000)
    return path


def test_the_file_arrives_whole(published: Path, tmp_path: Path) -> None:
    target = tmp_path / "root" / "data.gz"
    fetch(published.as_uri(), target, "sha256", hashlib.sha256(published.read_bytes()).hexdigest())
    assert target.read_bytes() == published.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["data.gz"]


def test_another_file_than_the_published_one_is_refused_and_leaves_nothing(published: Path, tmp_path: Path) -> None:
    target = tmp_path / "root" / "data.gz"
    with pytest.raises(CompressionError, match="the published file has 0123"):
        fetch(published.as_uri(), target, "md5", "0123")
    assert list(target.parent.iterdir()) == []


def test_an_address_without_the_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    target = tmp_path / "data.gz"
    with pytest.raises(CompressionError, match=r"cannot be fetched .* put the file at .*data\.gz by hand"):
        fetch((tmp_path / "absent.gz").as_uri(), target, "md5", "0123")
    assert not target.exists()
