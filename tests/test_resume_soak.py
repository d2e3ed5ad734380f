"""A short run of the soak: a training process is stopped in every way, and ends as if it had not been."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from patience import HANG_SECONDS

SOAK = Path(__file__).parents[1] / "benchmarks" / "resume_soak.py"


def test_a_stopped_process_goes_on_to_the_same_bits() -> None:
    found = subprocess.run(
        [sys.executable, str(SOAK), "--stops", "4", "--seed", "5"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("after step") == 4
    assert "4 stops (1 SIGINT, 1 SIGKILL, 1 SIGTERM, 1 exception)" in found.stdout
