"""Commands that run files do so in a child: what ends it is one line and an exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lightning_compress.cli.main as command
from lightning_compress.cli.main import main

FORK = "from lightning_compress.cli.own_process import continue_in_own_process; continue_in_own_process('model.pt2')\n"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", f"import os, sys\n{FORK}{code}"], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["SIGFPE", "SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_signal_is_one_line_and_the_exit_code_1(name: str) -> None:
    done = run(f"import signal; os.kill(os.getpid(), signal.{name})")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: model.pt2: running it ended its process by {name}")
    assert done.stderr.count("\n") == 1


def test_otherwise_the_child_is_the_command() -> None:
    done = run("print('table'); sys.exit(2)")
    assert (done.returncode, done.stdout, done.stderr) == (2, "table\n", "")


def test_more_memory_than_the_machine_has_is_an_error_of_python() -> None:
    done = run(
        "import mmap\n"
        "size = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 16\n"
        "pieces = []\n"
        "try:\n"
        "    for _ in range(64): pieces.append(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))\n"
        "except OSError: print(len(pieces))\n"
    )
    assert int(done.stdout) <= 16


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whoever_ends_the_command_ends_the_child(number: signal.Signals) -> None:
    code = f"import os, time\n{FORK}print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = Path("/proc", process.stdout.readline().strip())
        assert child.name != str(process.pid)
        process.send_signal(number)
        process.wait(10)
        deadline = time.monotonic() + 10
        while child.exists() and "(zombie)" not in (child / "status").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_commands_that_run_files_fork_and_others_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forked: list[str] = []
    monkeypatch.setattr(command, "continue_in_own_process", forked.append)
    missing = str(tmp_path / "model.pt2")
    for name in ("verify", "bench", "inspect"):
        monkeypatch.setattr(sys, "argv", ["lightning-compress", name, missing])
        assert main() == 2
        assert main([name, missing]) == 2
    assert forked == [missing, missing]
