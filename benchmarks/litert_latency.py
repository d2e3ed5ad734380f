"""Latency of int8 files ÷ float files in LiteRT, ONNX Runtime and OpenVINO, in one run.

    python benchmarks/litert_latency.py --write

Each network is calibrated for each runtime's backend on the same random batches, written by us in int8 and in float,
and all files of a network run in turn, block by block, with one sample and one thread. A ratio is the median over
blocks with its quartiles. Needs the extras ``litert`` and ``openvino``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results
import torch
from torch import Tensor, nn

from lightning_compress.export.formats import FORMATS
from lightning_compress.export.latency import Ratio, measure
from lightning_compress.models import SmallCNN
from lightning_compress.models.dscnn import DSCNN
from lightning_compress.models.resnet import ResNet
from lightning_compress.quantization import calibrate

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "SmallCNN, 8×8": (lambda: SmallCNN(1, 10), (1, 8, 8)),
    "DS-CNN, 49×10": (lambda: DSCNN(1, 12), (1, 49, 10)),
    "ResNet-20, 32×32": (lambda: ResNet(3, 10, depth=20), (3, 32, 32)),
}
RUNTIMES = {"litert": "LiteRT", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}
BACKENDS = {"litert": "litert", "onnx": "onnxruntime", "openvino": "openvino"}


def files(build: Callable[[], nn.Module], batches: list[Tensor], folder: Path) -> dict[str, Callable[[], Any]]:
    """Name → a call of a file with one sample."""
    found: dict[str, Callable[[], Any]] = {}
    x = batches[0][:1]
    for name in RUNTIMES:
        kind = FORMATS[name]
        for form in ("float", "int8"):
            torch.manual_seed(0)
            model = build().eval()
            if form == "int8":
                calibrate(model, batches, backend=BACKENDS[name])
            path = folder / f"{name}_{form}" / kind.file
            path.parent.mkdir()
            kind.write(model, x, path, **({} if kind.fixed_batch else {"dynamic_batch": False}))
            found[f"{name} {form}"] = kind.open(path, model.forward, 1).prepare(x)
    return found


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long to time each file")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/litert_latency.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    load = os.getloadavg()[0]
    for network, (build, shape) in NETWORKS.items():
        torch.manual_seed(1)
        batches = [torch.randn(8, *shape) for _ in range(4)]
        with tempfile.TemporaryDirectory() as folder:
            timings = measure(files(build, batches, Path(folder)), seconds=arguments.seconds)
        row: dict[str, Any] = {"network": network}
        for name, runtime in RUNTIMES.items():
            ratio = Ratio.between(timings[f"{name} int8"], timings[f"{name} float"])
            row |= {f"{name}_int8_ms": timings[f"{name} int8"].median_ms, f"{name}_ratio": ratio.median}
            row |= {f"{name}_low": ratio.low, f"{name}_high": ratio.high}
            print(f"{network}: {runtime} int8 {timings[f'{name} int8'].median_ms:.3f} ms, ÷ float {ratio}", flush=True)
        rows.append(row)
    if arguments.write:
        columns: dict[str, Any] = {"network": "network"}
        for name, runtime in RUNTIMES.items():
            columns[f"{name}_ratio"] = (f"{runtime}: int8 ÷ float", ".2f")
        for name, runtime in RUNTIMES.items():
            columns[f"{name}_int8_ms"] = (f"{runtime}: int8, ms", ".3f")
        notes = [
            "One sample, one thread, all files of a network interleaved; medians over blocks.",
            f"Other processes ran on the machine (load {load:.1f} on {os.cpu_count()} cores): take the ratios, not the "
            f"times.",
        ]
        versions = {"LiteRT": "ai-edge-litert", "OpenVINO": "openvino", "ONNX Runtime": "onnxruntime"}
        results.write(
            "litert_latency", rows, columns=columns, seeds=[0], threads=1, versions=_versions(versions), notes=notes
        )


def _versions(packages: dict[str, str]) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(package) for name, package in packages.items()}


if __name__ == "__main__":
    main()
