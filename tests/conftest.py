from __future__ import annotations

import os
import sys
from pathlib import Path

# Before PyTorch starts its pool of threads, which a forked rank of a distributed test would wait for for ever.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
