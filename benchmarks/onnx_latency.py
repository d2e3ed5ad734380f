"""Latency of our int8 ONNX files beside the float model and ONNX Runtime's own quantization of it, in one run.

    python benchmarks/onnx_latency.py                            # four networks, batch 32, one thread
    python benchmarks/onnx_latency.py --networks resnet20 --batch 1 --seconds 5 --json
    python benchmarks/onnx_latency.py --networks encoder --kernels        # what ONNX Runtime runs

The rival is ``onnxruntime.quantization.quantize_static`` of the same float file: QDQ, unsigned activations, signed
weights, per channel, after its own pre-processing. All sessions have the same options, exact 8-bit kernels
(``session.x64quantprecision=1``) among them: without VNNI, which the first line tells, ONNX Runtime's default ones
saturate. Calls are interleaved in blocks, and a ratio is the median over blocks with its quartiles.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import results
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from lightning_compress import quantization
from lightning_compress.export import to_onnx
from lightning_compress.export.latency import Ratio, measure
from lightning_compress.export.onnx.session import open_session
from lightning_compress.foundation.processor import has_vnni
from lightning_compress.models import ResNet, TransformerEncoder
from lightning_compress.models.resnet import Block


class ImageNetResNet18(nn.Module):
    """He and others 2016, table 1, 18 layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        widths = (64, 64, 128, 256, 512)
        blocks: list[nn.Module] = []
        for index, (inside, outside) in enumerate(itertools.pairwise(widths)):
            blocks += [Block(inside, outside, 2 if index else 1), Block(outside, outside, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.mean, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [B, 3, H, W] to logits [B, 1000]."""
        logits: Tensor = self.fc(self.flatten(self.mean(self.blocks(self.pool(self.stem(x))))))
        return logits


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (lambda: ResNet(3, 10, depth=20), (3, 32, 32)),
    "resnet20x64": (lambda: ResNet(3, 10, depth=20, width=64), (3, 32, 32)),
    "resnet18": (ImageNetResNet18, (3, 224, 224)),
    "encoder": (
        lambda: TransformerEncoder(3, 32, 10, patch=4, dim=256, depth=4, heads=4, expansion=4),
        (3, 32, 32),
    ),
}


class _Calibration(CalibrationDataReader):
    """Batches of the inputs that our ranges saw, too."""

    def __init__(self, name: str, batches: list[Tensor]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([{name: batch.numpy()} for batch in batches])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def calibrated(model: nn.Module, batches: list[Tensor], **settings: Any) -> nn.Module:
    """A quantized copy whose ranges are those of the batches; batch norm keeps its statistics."""
    model = quantization.prepare(copy.deepcopy(model), example_inputs=batches[0][:2], **settings).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return model.eval()


def write(network: str, folder: Path) -> dict[str, Path]:
    """The float file, the rival's and ours."""
    torch.manual_seed(0)
    build, shape = NETWORKS[network]
    model, batches = build().eval(), [torch.randn(8, *shape) for _ in range(4)]
    paths = {name: folder / f"{network}_{name}.onnx" for name in ("float", "static", "ours")}
    # As in a trained network, no two norms are equal: the rival's encoder shares tensors where they are, and exact
    # kernels, which rewrite int8 weights, then refuse its file.
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1.0, 0.1)
            nn.init.normal_(module.bias, 0.0, 0.1)
    # Statistics of batch norm as well, before the float file is written.
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    to_onnx(model.eval(), batches[0], paths["float"])
    prepared = folder / f"{network}_prepared.onnx"
    quant_pre_process(str(paths["float"]), str(prepared))
    name = open_session(prepared).get_inputs()[0].name
    quantize_static(
        str(prepared),
        str(paths["static"]),
        _Calibration(name, batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    to_onnx(calibrated(model, batches), batches[0], paths["ours"])
    return paths


def kernels(path: Path, folder: Path) -> Counter[str]:
    """What ONNX Runtime makes of a file."""
    optimized = folder / "optimized.onnx"
    open_session(path, optimized_path=str(optimized))
    return Counter(node.op_type for node in onnx.load(optimized).graph.node)


def compare(paths: dict[str, Path], shape: tuple[int, ...], batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """Latencies and ratios of the files, interleaved."""
    x = torch.randn(batch, *shape).numpy()
    calls: dict[str, Callable[[], Any]] = {}
    for name, path in paths.items():
        session = open_session(path, threads=threads)
        feed = {session.get_inputs()[0].name: x}
        calls[name] = lambda session=session, feed=feed: session.run(None, feed)
    timings = measure(calls, seconds=seconds, blocks=12, warmup=2)
    ratios = {
        "ours / float": Ratio.between(timings["ours"], timings["float"]),
        "static / float": Ratio.between(timings["static"], timings["float"]),
        "ours / static": Ratio.between(timings["ours"], timings["static"]),
    }
    outputs = {name: torch.from_numpy(call()[0]) for name, call in calls.items()}
    return {
        "bytes": {name: path.stat().st_size for name, path in paths.items()},
        "ms": {name: timing.as_dict() for name, timing in timings.items()},
        "ratios": {name: {"median": r.median, "low": r.low, "high": r.high} for name, r in ratios.items()},
        "same top class as float": {
            name: float((outputs[name].argmax(1) == outputs["float"].argmax(1)).float().mean())
            for name in ("ours", "static")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each file is timed")
    parser.add_argument("--files", type=Path, help="folder for the files, taken from there where they exist")
    parser.add_argument("--kernels", action="store_true", help="print what ONNX Runtime runs, and time nothing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/onnx_latency.json")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    vnni = {True: "VNNI", False: "no VNNI", None: "VNNI unknown"}[has_vnni()]
    if not options.json:
        print(f"ONNX Runtime {onnxruntime.__version__}, {vnni}, batch {options.batch}, {options.threads} thread(s)")
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.files or Path(temporary)
        folder.mkdir(exist_ok=True)
        for network in options.networks:
            paths = {name: folder / f"{network}_{name}.onnx" for name in ("float", "static", "ours")}
            if not all(path.exists() for path in paths.values()):
                paths = write(network, folder)
            if options.kernels:
                for name, path in paths.items():
                    print(network, name, dict(kernels(path, folder).most_common()))
                continue
            found = compare(paths, NETWORKS[network][1], options.batch, options.threads, options.seconds)
            measured[network] = found
            if not options.json:
                sizes = ", ".join(f"{name} {count:,}" for name, count in found["bytes"].items())
                times = ", ".join(f"{name} {ms['median']:.2f} ms" for name, ms in found["ms"].items())
                print(f"{network}: {times}; bytes: {sizes}")
                for name, ratio in found["ratios"].items():
                    print(f"  {name:15}{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})")
                same = ", ".join(f"{name} {share:.3f}" for name, share in found["same top class as float"].items())
                print(f"  same top class as float: {same}", flush=True)
    if options.json:
        print(json.dumps({"onnxruntime": onnxruntime.__version__, "vnni": has_vnni(), "results": measured}, indent=1))
    if options.write and measured:
        keep(measured, options.batch, options.threads)


def keep(measured: dict[str, dict[str, Any]], batch: int, threads: int) -> None:
    """Write the result file: ratios, since times alone say little of a machine that others use, too."""
    columns = {
        "network": "network",
        "ours / float": ("ours ÷ float", ".2f"),
        "quartiles": "quartiles",
        "static / float": ("ORT's own quantization ÷ float", ".2f"),
        "ours / static": ("ours ÷ ORT's own", ".2f"),
        "bytes": "bytes, ours",
        "bytes_static": "bytes, ORT's own",
        "bytes_float": "bytes, float",
    }
    rows = []
    for network, found in measured.items():
        ratios = found["ratios"]
        low, high = (ratios["ours / float"][key] for key in ("low", "high"))
        rows.append(
            {
                "network": network,
                **{name: ratio["median"] for name, ratio in ratios.items()},
                "quartiles": f"{low:.2f} to {high:.2f}",
                "bytes": found["bytes"]["ours"],
                "bytes_static": found["bytes"]["static"],
                "bytes_float": found["bytes"]["float"],
            }
        )
    kernels = "exact 8-bit kernels (session.x64quantprecision=1), calls interleaved in blocks, medians over blocks"
    notes = [f"Latency at batch {batch}, {kernels}. The weights are not trained."]
    results.write("onnx_latency", rows, columns=columns, seeds=[0], threads=threads, notes=notes)


if __name__ == "__main__":
    main()
