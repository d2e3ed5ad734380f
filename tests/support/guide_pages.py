"""The deployment guide's pages, run in a process of their own beside an export of the digits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from patience import HANG_SECONDS
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress import data
from lightning_compress.quantization import prepare

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "deployment"


@dataclass(frozen=True)
class Digits:
    """A network trained for a moment, the images it is asked about, and its answers."""

    model: nn.Module
    x: Tensor
    answers: np.ndarray[Any, Any]


def trained_digits(folder: Path, model: nn.Module, steps: int = 40, **settings: Any) -> Digits:
    """Train under quantization, and write what the pages read besides the exported file: pixels and report."""
    module = data.Digits()
    module.setup()
    images, labels = next(iter(module.test_dataloader()))
    x, y = images[:256], labels[:256]
    prepare(model, example_inputs=x[:2], **settings).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _, (batch, targets) in zip(
        range(steps), [b for _ in range(9) for b in module.train_dataloader()], strict=False
    ):
        optimizer.zero_grad()
        F.cross_entropy(model(batch), targets).backward()
        optimizer.step()
    with torch.no_grad():
        answers = model.eval()(x).argmax(1)
    assert (answers == y).float().mean() > 0.5, "the network has learned something that a wrong page would lose"
    record = module.split_record()
    (folder / "compressed").mkdir()
    (folder / "compressed" / "report.json").write_text(json.dumps({"data": record}))
    mean, std = (torch.tensor(record[key])[:, None, None] for key in ("mean", "std"))
    np.save(folder / "pixels.npy", ((x * std + mean) * 255).round().to(torch.uint8).numpy())
    return Digits(model, x, answers.numpy())


def code(page: str) -> str:
    """All Python of a page."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), flags=re.DOTALL))


def run(program: str, folder: Path, *, without: Sequence[str] = (), arguments: Sequence[str] = ()) -> str:
    """What a program prints, in a process in which some packages cannot be imported."""
    block = "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    (folder / "page.py").write_text(f"import sys\n{block}{program}")
    done = subprocess.run(
        [sys.executable, "page.py", *arguments], cwd=folder, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
