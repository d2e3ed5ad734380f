"""``benchmarks/gpu.py`` ends in time, and keeps what it found until then."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402 - neighbours, not installed
import results  # noqa: E402


def stuck(device: str, small: bool) -> Iterator[gpu.Row]:
    yield gpu.row("found before", 0.5, 1.0, "float")
    time.sleep(600)


def broken(device: str, small: bool) -> Iterator[gpu.Row]:
    yield gpu.row("found, too", None, 0.25, "all", 7.0)
    raise RuntimeError("out of memory")


def missing(device: str, small: bool) -> Iterator[gpu.Row]:
    raise ImportError("No module named 'torchvision'")
    yield


def test_a_part_that_hangs_or_fails_is_ended_and_the_others_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = {"stuck": stuck, "broken": broken, "missing": missing}
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    old = {"what": "found, too", "ms": None, "ratio": 0.5, "of": "all", "peak_mb": None}
    (tmp_path / "gpu.json").write_text(json.dumps({"rows": [old, {**old, "what": "of another day"}]}))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--write", "--seconds", "15"])
    begin = time.monotonic()
    with pytest.raises(SystemExit, match="failed: broken"):
        gpu.main()
    assert time.monotonic() - begin < 120
    rows = {row["what"]: row for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]}
    assert rows.keys() == {"of another day", "found before", "found, too"}
    assert (rows["found before"]["ms"], rows["found, too"]["ratio"], rows["found, too"]["peak_mb"]) == (500, 0.25, 7)
    printed = capfd.readouterr().out
    assert "stuck: ended after its 5 s" in printed
    assert "missing: No module named 'torchvision'" in printed


def test_it_runs_small_on_a_cpu() -> None:
    parts = ["equality", "masks", "semi-structured", "ViT-S, eager", "GPT-124M, eager"]
    command = [sys.executable, "gpu.py", "--device", "cpu", "--small", "--seconds", "900", "--parts", *parts]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {line[:44].strip(): line[44:].split() for line in done.stdout.splitlines()}
    for what in ("masks", "scales and 4-bit weights", "losses"):
        assert rows[f"{what} equal to the CPU's"] == ["1.000", "of", "all"]
    assert "mask update, 1M weights" in rows
    for name in ("ViT-S", "GPT-124M"):
        for variant in ("float", *gpu.OURS, "torch's fused observers", "masks"):
            ms, unit, ratio, *_ = rows[f"{name}, eager, {variant}"]
            assert (float(ms) > 0, unit, float(ratio) > 0) == (True, "ms", True)
