"""The core where Lightning, Hydra and W&B are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BLOCKED = ("lightning", "pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "wandb")
PROGRAM = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")

sys.meta_path.insert(0, Missing())
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy
from lightning_compress.export import load_packed, save_packed, to_onnx, verify
from lightning_compress.metrics import Sparsity
from lightning_compress.pruning import Pruner
from lightning_compress.quantization import prepare

torch.manual_seed(0)
model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(6, 8)
pruner = Pruner(model, final_sparsity=0.5, start=0, end=2, every=1)
prepare(model, example_inputs=x)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(1, 4):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    pruner.step(step)
model.eval()
to_onnx(model, x, "model.onnx")
save_packed(model, "model.packed")
again = load_packed("model.packed", nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
print("zeros", int((again[0].weight == 0).sum() + (again[2].weight == 0).sum()))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, model(x).argmax(1)), batch_size=3)
found = verify("model.onnx", model, loader, MulticlassAccuracy(4))
print("agrees", found.agreement, list(found.metrics))
share = Sparsity(pruner)
share.update(model)
print("sparsity", round(share.compute().item(), 3))
print("blocked", sorted(set(sys.modules) & set({BLOCKED!r})))
"""


def test_a_plain_loop_prunes_quantizes_exports_and_verifies(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "zeros 96",
        "agrees 1.0 ['deployed', 'fake_quantized']",
        "sparsity 0.5",
        "blocked []",
    ]
