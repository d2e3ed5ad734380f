"""A short run of the soak: a training process is killed, and ends as if it had not been."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parents[1] / "benchmarks" / "resume_soak.py"


def test_a_killed_process_goes_on_to_the_same_bits() -> None:
    found = subprocess.run(
        [sys.executable, str(SOAK), "--kills", "3", "--seed", "5"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("after step") == 3
    assert found.stdout.splitlines()[-1].startswith("3 kills")
