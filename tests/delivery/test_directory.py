"""The files of an export take the places of an earlier one's together, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_compress.delivery.directory import PARTIAL, READY, ExportDirectory
from lightning_compress.errors import CompressionError

FILES = ("model.onnx", "model.packed", "report.html", "report.md", "report.json")


def export(path: Path, text: str, *, stop_after: int = 99) -> None:
    """An export that writes its name to every file, and stops on the way."""
    directory = ExportDirectory(path)
    directory.claim(FILES)
    with directory.new_set():
        for index, name in enumerate(FILES):
            if index == stop_after:
                raise RuntimeError("stopped")
            (directory / name).write_text(text)


def found(path: Path) -> dict[str, str]:
    return {name: (path / name).read_text() for name in FILES if (path / name).exists()}


def test_a_second_export_replaces_the_first_as_a_whole(tmp_path: Path) -> None:
    export(tmp_path, "old")
    export(tmp_path, "new")
    assert found(tmp_path) == dict.fromkeys(FILES, "new")
    assert sorted(os.listdir(tmp_path)) == sorted([*FILES, "manifest.json"])


def test_a_kill_while_files_are_written_leaves_the_old_set(tmp_path: Path) -> None:
    export(tmp_path, "old")
    directory = ExportDirectory(tmp_path)
    directory.claim(FILES)
    block = directory.new_set()
    block.__enter__()
    (directory / "model.onnx").write_text("new")  # and here the process is gone
    assert found(tmp_path) == dict.fromkeys(FILES, "old")
    export(tmp_path, "third")
    assert found(tmp_path) == dict.fromkeys(FILES, "third")
    assert not (tmp_path / PARTIAL).exists()


@pytest.mark.parametrize("moved", range(len(FILES)))
def test_a_kill_while_files_are_moved_leaves_no_report_and_the_next_export_finishes_it(
    moved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path, "old")
    moves = iter(range(moved + 1))
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(source).parent.name == READY and next(moves, None) is None:
            raise SystemExit
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        if moved < len(FILES) - 1:
            with pytest.raises(SystemExit):
                export(tmp_path, "new")
            assert (tmp_path / READY).is_dir()
            assert not (tmp_path / "report.json").exists()
        else:
            export(tmp_path, "new")
    ExportDirectory(tmp_path).claim(FILES)
    assert found(tmp_path) == dict.fromkeys(FILES, "new")
    assert not (tmp_path / READY).exists()


@pytest.mark.parametrize("written", [0, 1, 4])
def test_an_export_that_fails_leaves_the_earlier_one(written: int, tmp_path: Path) -> None:
    export(tmp_path, "old")
    with pytest.raises(RuntimeError, match="stopped"):
        export(tmp_path, "new", stop_after=written)
    assert found(tmp_path) == dict.fromkeys(FILES, "old")
    assert sorted(os.listdir(tmp_path)) == sorted([*FILES, "manifest.json"])


def test_a_first_export_that_fails_keeps_what_it_wrote(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        export(tmp_path, "new", stop_after=1)
    assert found(tmp_path) == {"model.onnx": "new"}


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompressionError, match="file"):
        ExportDirectory(tmp_path / "file").claim(FILES)
