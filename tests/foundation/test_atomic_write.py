from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.atomic_write import replacing

OLD, NEW = b"old!" * 100, b"new!" * 4096 * 64


def write_for_ever(target: Path) -> None:
    while True:
        with replacing(target) as temporary, open(temporary, "wb") as file:
            for start in range(0, len(NEW), 4096):
                file.write(NEW[start : start + 4096])
                file.flush()


def test_the_new_content_takes_the_place_of_the_old(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with replacing(target) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_keeps_the_old_content_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail_halfway() -> None:
        with replacing(target) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["with space", "Größe 模型 файл", "x" * 250])
def test_directories_are_made_and_any_name_works(tmp_path: Path, name: str) -> None:
    target = tmp_path / "new dir" / "δ" / name
    with replacing(target) as temporary:
        temporary.write_bytes(b"1")
    assert target.read_bytes() == b"1"


def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="this is a directory"), replacing(tmp_path):
        pass


def test_a_directory_below_a_file_is_refused_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CompressionError, match=r"file/below: cannot be written"), replacing(tmp_path / "file/below"):
        pass


def test_a_directory_that_cannot_be_written_is_refused_with_the_path() -> None:
    # /proc takes no files from anyone, root included, which a chmod does not keep out.
    with pytest.raises(CompressionError, match=r"/proc/weights: cannot"), replacing("/proc/weights") as temporary:
        temporary.write_bytes(b"1")


def test_a_full_disk_is_reported_with_the_path_and_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fill_the_disk() -> None:
        # The kernel's own full disk takes the place of the temporary file.
        with replacing(target) as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"new")

    with pytest.raises(CompressionError, match=r"file: cannot be written \(No space left on device\)"):
        fill_the_disk()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_killed_writer_leaves_the_old_file_or_the_new_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "file"
    left_behind = 0
    for attempt in range(8):
        target.write_bytes(OLD)
        before = set(os.listdir(tmp_path))
        child = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(target,))
        child.start()
        # A writer that wrote in place would have no other file; it is killed as well, and found out below.
        while set(os.listdir(tmp_path)) <= before and target.read_bytes() == OLD:
            assert child.is_alive(), "the writer ended before it wrote"
            time.sleep(0.001)
        time.sleep(0.003 * attempt)
        child.kill()
        child.join()
        assert target.read_bytes() in (OLD, NEW)
        left_behind = max(left_behind, len(os.listdir(tmp_path)) - 1)
    assert left_behind > 0
    # What the killed writers left is gone once another writes.
    with replacing(target) as temporary:
        temporary.write_bytes(b"fine")
    assert os.listdir(tmp_path) == ["file"]


def test_a_writer_that_is_alive_keeps_its_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with replacing(target) as slow:
        slow.write_bytes(b"slow")
        with replacing(target) as quick:
            quick.write_bytes(b"quick")
        assert slow.exists()
    assert target.read_bytes() == b"slow"


def test_an_abandoned_file_of_another_target_is_left_alone(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with replacing(tmp_path / "other") as temporary:
        abandoned = tmp_path / temporary.name.replace(f"-{os.getpid()}-", f"-{child.pid}-")
        temporary.write_bytes(b"")
    abandoned.write_bytes(b"")
    with replacing(tmp_path / "file") as temporary:
        temporary.write_bytes(b"")
    assert abandoned.exists()
    with replacing(tmp_path / "other") as temporary:
        temporary.write_bytes(b"")
    assert not abandoned.exists()


def test_leaving_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=os.strerror(errno.ENOENT)), replacing(tmp_path / "file"):
        pass


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, events = tmp_path / "file", []
    flush, replace = os.fsync, os.replace

    def flushed(handle: int) -> None:
        place = os.readlink(f"/proc/self/fd/{handle}")
        events.append("content" if place.endswith(".partial") else "directory" if place == str(tmp_path) else place)
        flush(handle)

    def replaced(source: Path, destination: Path) -> None:
        events.append("name")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    with replacing(target) as temporary:
        temporary.write_bytes(NEW)
    assert events == ["content", "name", "directory"]
