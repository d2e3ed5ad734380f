"""What writing and verifying a network costs, by format and network, in seconds of the processor.

ResNet-20 holds 270 thousand weights. A chain of quantized Linear layers of 32 × 32 weights and ReLUs shows how the cost
grows: if it is proportional to the layers, seconds per layer stay the same from row to row. 200 of them hold 200
thousand weights. A first export pays for imports and is not counted.

    python benchmarks/export_time.py --write
    python benchmarks/export_time.py --layers 10 50
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results
import torch
from torch import nn
from torchmetrics import MeanSquaredError

from lightning_compress.export import save_packed, to_onnx, verify
from lightning_compress.export.pt2.write import to_torch_export
from lightning_compress.models.resnet import ResNet
from lightning_compress.quantization import prepare

WIDTH = 32
LAYERS = (10, 50, 200, 500)
WRITERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "onnx": ("model.onnx", to_onnx),
    "torch_export": ("model.pt2", to_torch_export),
    "packed": ("model.packed", lambda model, _, path: save_packed(model, path)),
}
COLUMNS = {
    "network": "network",
    "weights": "weights",
    **{f"{item}_{part}": (f"{item}: {part}, s", ".2f") for item in WRITERS for part in ("write", "verify")},
}


def chain(layers: int) -> nn.Module:
    """Linear layers and ReLUs."""
    return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))


def measured(name: str, model: nn.Module, x: torch.Tensor, folder: Path) -> dict[str, Any]:
    """A row: processor seconds of each format."""
    prepare(model, weight_bits=8, activation_bits=8, example_inputs=(x,))
    model.train()(x)
    data = [(x, model.eval()(x).detach())]
    row: dict[str, Any] = {"network": name, "weights": sum(p.numel() for p in model.parameters())}
    for item, (file, write) in WRITERS.items():
        start = time.process_time()
        write(model, (x,), folder / file)
        written = time.process_time()
        verify(folder / file, model, data, MeanSquaredError())
        row[f"{item}_write"] = round(written - start, 2)
        row[f"{item}_verify"] = round(time.process_time() - written, 2)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", type=int, default=LAYERS)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/export_time.json")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        measured("first", chain(2), torch.randn(8, WIDTH), Path(folder))
        networks = [("ResNet-20", ResNet(3, 10, depth=20), torch.randn(8, 3, 32, 32))]
        networks += [(f"{layers} × Linear, ReLU", chain(layers), torch.randn(8, WIDTH)) for layers in options.layers]
        for name, model, x in networks:
            rows.append(measured(name, model, x, Path(folder)))
            print(rows[-1], flush=True)
    if options.write:
        results.write("export_time", rows, columns=COLUMNS, threads=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
