"""Post-training quantization by us and by ONNX Runtime's ``quantize_static``, on five networks.

    python benchmarks/calibration_peers.py --root ~/data/fashion_mnist --write

Each network trains on Fashion-MNIST in float, a few hundred steps. Then each method sees the same 512 training images:
ours with minimum and maximum, percentiles and least squared error (8 bits, bias correction), written to ONNX; ONNX
Runtime's own with its methods MinMax, Percentile and Entropy on the same float file (QDQ, per channel). All run in ONNX
Runtime's exact 8-bit kernels on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import results
import torch
from onnx_latency import _Calibration
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress import data, models
from lightning_compress.export import to_onnx
from lightning_compress.export.onnx.session import open_session
from lightning_compress.quantization import calibrate

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP": lambda: models.MLP(1, 28, 10, hidden=(300, 100)),
    "LeNet-5": lambda: models.LeNet5(1, 28, 10),
    "SmallCNN": lambda: models.SmallCNN(1, 10, width=16),
    "DS-CNN": lambda: models.DSCNN(1, 10),
    "ResNet-8": lambda: models.ResNet(1, 10, depth=8),
}
OURS = ("minmax", "percentile", "mse")
ORT = ("MinMax", "Percentile", "Entropy")


def trained(build: Callable[[], nn.Module], x: Tensor, y: Tensor, steps: int) -> nn.Module:
    """A network after some steps of Adam, whose rate falls to zero."""
    torch.manual_seed(0)
    model = build().train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        batch = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def accuracy(run: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """Share of right answers, in percent."""
    with torch.no_grad():
        right = [(run(a).argmax(1) == b).sum() for a, b in zip(x.split(250), y.split(250), strict=True)]
    return 100 * float(sum(right)) / len(y)


def of_file(path: Path) -> Callable[[Tensor], Tensor]:
    """An ONNX file in ONNX Runtime, with exact 8-bit kernels: on x86 without VNNI the default ones saturate."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def static(dense: Path, folder: Path, batches: list[Tensor], method: str) -> Path:
    """ONNX Runtime's own quantization of a float file."""
    prepared, path = folder / "prepared.onnx", folder / f"{method}.onnx"
    quant_pre_process(str(dense), str(prepared))
    name = open_session(prepared).get_inputs()[0].name
    quantize_static(
        str(prepared),
        str(path),
        _Calibration(name, batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
    )
    return path


def measured(name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], steps: int) -> dict[str, Any]:
    """One network's row."""
    model = trained(NETWORKS[name], *train, steps)
    batches = list(train[0][:512].split(32))
    row: dict[str, Any] = {"network": name, "float": accuracy(model, *test)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        to_onnx(model, batches[0], dense := folder / "dense.onnx")
        for method in OURS:
            began = time.perf_counter()
            quantized = calibrate(copy.deepcopy(model), batches, range=method)
            row[f"ours_{method}_seconds"] = time.perf_counter() - began
            to_onnx(quantized, batches[0], path := folder / f"{method}.onnx")
            row[f"ours_{method}"] = accuracy(of_file(path), *test)
        for method in ORT:
            row[f"ort_{method.lower()}"] = accuracy(of_file(static(dense, folder, batches, method)), *test)
    row["ort_best"] = max(row[f"ort_{method.lower()}"] for method in ORT)
    row["ours_best"] = max(row[f"ours_{method}"] for method in OURS)
    row["behind"] = row["ort_best"] - row["ours_minmax"]
    return row


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="~/data/fashion_mnist", help="directory of Fashion-MNIST")
    parser.add_argument("--steps", type=int, default=200, help="training steps of each network")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/calibration_peers.json")
    options = parser.parse_args()
    module = data.FashionMNIST(root=str(Path(options.root).expanduser()))
    module.prepare_data()
    module.setup()
    train, test = (
        tuple(torch.cat(parts) for parts in zip(*loader, strict=True))
        for loader in (module.train_dataloader(), module.test_dataloader())
    )
    rows = []
    for name in options.networks:
        rows.append(measured(name, train, test, options.steps))
        shown = {key: round(value, 2) if isinstance(value, float) else value for key, value in rows[-1].items()}
        print(shown, flush=True)
    if options.write:
        columns: dict[str, Any] = {
            "network": "network",
            "float": ("float, %", ".2f"),
            "ours_minmax": ("ours (default)", ".2f"),
            "ours_best": ("ours, best of 3", ".2f"),
            "ort_best": ("ONNX Runtime, best of 3", ".2f"),
            "behind": ("ONNX Runtime's best − ours (default), points", ".2f"),
        }
        notes = [
            "Accuracy on the 10,000 test images of Fashion-MNIST, 8 bits, calibrated on 512 training images; one seed.",
            "The best of several methods is chosen on the test images themselves, for ONNX Runtime as for us.",
        ]
        results.write("calibration_peers", rows, columns=columns, seeds=[0], notes=notes)


if __name__ == "__main__":
    main()
