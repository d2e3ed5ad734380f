from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

# Before PyTorch starts its pool of threads, which a forked rank of a distributed test would wait for for ever.
os.environ["OMP_NUM_THREADS"] = "1"
# Before anything imports Triton: its kernels then run on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent / "support"))

if importlib.util.find_spec("triton") is None:
    # There are no wheels of Triton for this system.
    collect_ignore_glob = ["*/test_on_accelerator.py", "*/gpu/*", "*/test_mask_device.py"]

from patience import HANG_SECONDS

# No test may fail because a machine is slow.
os.environ["WANDB__SERVICE_WAIT"] = str(HANG_SECONDS)
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
