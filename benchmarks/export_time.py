"""What writing and verifying a network costs, by format and number of layers, in seconds of the processor.

A chain of quantized Linear layers of 32 × 32 weights and ReLUs is written and run in each format, after a first export
that pays for imports. 200 layers hold 200 thousand weights. If the cost is proportional to the layers, seconds per
layer stay the same from row to row.

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
from lightning_compress.quantization import prepare

WIDTH = 32
LAYERS = (10, 50, 200, 500)
WRITERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "onnx": ("model.onnx", to_onnx),
    "torch_export": ("model.pt2", to_torch_export),
    "packed": ("model.packed", lambda model, _, path: save_packed(model, path)),
}
COLUMNS = {
    "layers": "layers",
    **{f"{item}_{part}": (f"{item}: {part}, s", ".2f") for item in WRITERS for part in ("write", "verify")},
}


def measured(layers: int, folder: Path) -> dict[str, float]:
    """A row: processor seconds of each format."""
    x = torch.randn(8, WIDTH)
    model = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))
    prepare(model, weight_bits=8, activation_bits=8, example_inputs=(x,))
    model.train()(x)
    data = [(x, model.eval()(x).detach())]
    row: dict[str, float] = {"layers": layers}
    for item, (name, write) in WRITERS.items():
        start = time.process_time()
        write(model, (x,), folder / name)
        written = time.process_time()
        verify(folder / name, model, data, MeanSquaredError())
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
        measured(2, Path(folder))
        for layers in options.layers:
            rows.append(measured(layers, Path(folder)))
            print(rows[-1], flush=True)
    if options.write:
        results.write("export_time", rows, columns=COLUMNS, threads=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
