"""Machine code of every Triton kernel for GPUs that are not there: Ampere, Hopper and MI300."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_kernels.py")


@pytest.mark.parametrize(("target", "kind"), [("sm_80", "cubin"), ("sm_90", "cubin"), ("gfx942", "hsaco")])
def test_every_kernel_compiles_without_fused_multiply_add(target: str, kind: str) -> None:
    # A process of its own: here the kernels are those of the interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), target, kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 19
