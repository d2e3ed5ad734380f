"""Compiling a source: kept, rebuilt where it is damaged, done without in bare places, with one line that says so."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.compile_cpp import CompiledSource, compiler
from lightning_compress.quantization.fake_quantize.cpu_library import KERNELS

INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)
SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lightning_compress"


def source(tmp_path: Path) -> CompiledSource:
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return CompiledSource(path, lambda lib: lib.answer, name="The answer", without="It is 42 in any case.")


def answer(compiled: CompiledSource) -> int:
    lib = compiled.load()
    assert isinstance(lib, ctypes.CDLL), compiled.failure
    return int(lib.answer())


def test_the_first_compile_says_what_it_does_and_the_next_process_finds_it(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert answer(source(tmp_path)) == 42
    (line,) = caplog.messages
    assert line.startswith("The answer: compiling for this processor with ")
    assert str(cache) in line
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    caplog.clear()
    assert answer(source(tmp_path)) == 42
    assert not caplog.messages


def test_a_changed_header_is_compiled_again(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "answer.cpp").write_text('#include "number.h"\nextern "C" int answer() { return NUMBER; }\n')
    for number in (42, 43, 42):
        (tmp_path / "number.h").write_text(f"#define NUMBER {number}\n")
        compiled = CompiledSource(
            tmp_path / "answer.cpp", lambda lib: lib.answer, name="The answer", without="", headers=["number.h"]
        )
        assert answer(compiled) == number
    assert len(list(cache.iterdir())) == 2


def test_every_header_of_the_kernels_is_part_of_their_identity() -> None:
    folder = KERNELS.path.parent
    included = {name for file in (KERNELS.path, *folder.glob("*.h")) for name in INCLUDE.findall(file.read_text())}
    assert {source.name for source in KERNELS.sources} == {KERNELS.path.name, *included}


@pytest.mark.parametrize("left", [0, 1000, -1])
def test_a_damaged_library_is_built_again(left: int, cache: Path, tmp_path: Path) -> None:
    # Loading a library that was cut in half ends the process: it must be seen before.
    answer(source(tmp_path))
    (kept,) = cache.iterdir()
    data = kept.read_bytes()
    kept.unlink()  # not written over: this process has it mapped
    kept.write_bytes(data[:left])
    kept.chmod(0o700)
    assert answer(source(tmp_path)) == 42
    (again,) = cache.iterdir()
    assert again.read_bytes() == data


def test_a_library_that_others_could_have_written_is_not_loaded(cache: Path, tmp_path: Path) -> None:
    answer(source(tmp_path))
    (kept,) = cache.iterdir()
    kept.chmod(0o777)
    before = kept.stat().st_mtime_ns
    assert answer(source(tmp_path)) == 42
    (again,) = cache.iterdir()
    assert again.stat().st_mtime_ns > before
    assert not again.stat().st_mode & 0o022


def test_the_compiler_may_be_a_command_of_several_words(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / "ccache"
    wrapper.write_text(f'#!/bin/sh\ntouch "{tmp_path}/called"\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", f"{wrapper} {shutil.which('g++') or shutil.which('c++')}")
    assert answer(source(tmp_path)) == 42
    assert (tmp_path / "called").exists()


@pytest.mark.parametrize(("given", "said"), [("no-such-compiler", "no such program"), ("'", "a command")])
def test_a_compiler_that_is_none_is_refused(given: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", given)
    with pytest.raises(CompressionError, match=said):
        compiler()


def test_without_a_compiler_one_line_says_what_helps_and_what_it_costs(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    compiled = source(tmp_path)
    assert compiled.load() is None
    assert compiled.load() is None
    assert caplog.messages == [
        "The answer: unavailable. No C++ compiler is on the PATH. Install g++ (apt-get install g++) or clang++, or "
        "name one in CXX. It is 42 in any case."
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_a_compiler_that_fails_is_quoted(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = source(tmp_path)
    compiled.path.write_text("this is no C++")
    assert compiled.load() is None
    assert "error" in str(compiled.failure)


def test_a_cache_that_cannot_be_written_compiles_for_this_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert answer(source(tmp_path)) == 42
    assert "Set XDG_CACHE_HOME to a directory that can be written" in caplog.messages[-1]


def test_a_process_without_a_home_a_passwd_entry_or_a_compiler_trains(tmp_path: Path) -> None:
    code = (
        "import posixpath; posixpath.expanduser = lambda path: path\n"
        "import torch; from torch import nn\n"
        "from lightning_compress import quantization\n"
        "from lightning_compress.pruning import Pruner\n"
        "net = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 64)); x = torch.randn(256, 256)\n"
        "pruner = Pruner(net, final_sparsity=0.5, start=0, end=1, every=1, total_steps=2)\n"
        "quantization.prepare(net, example_inputs=x); net.train()(x).sum().backward(); pruner.step(1); print('FINE')\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME", "CXX")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**environment, "PATH": str(tmp_path)}
    )
    assert "FINE" in done.stdout, done.stderr
    assert done.stderr.count("No C++ compiler is on the PATH") == 2
    assert "1.5 times a float step" in done.stderr
