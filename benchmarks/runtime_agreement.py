"""Whether the written files say what the trained model says, in every runtime that is installed.

    python benchmarks/runtime_agreement.py [--root DIRECTORY] [--compile] [--write]

A small convolutional network and a transformer are trained on the bundled digits, and with --root on Fashion-MNIST, too
(DIRECTORY holds its published files): in float first, then for each runtime with the quantizers that it wants, 8 bits
for weights and activations. Each file is run on 512 random inputs and on the test images, beside the fake-quantized
model. --compile adds AOTInductor where a C++ compiler is there. Runtimes that are not installed are listed as such. The
packed and the compressed-tensors file hold weights and are loaded back into PyTorch.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import results
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_compress import data, quantization
from lightning_compress.export import latency, save_packed, to_onnx
from lightning_compress.export.compressed_tensors import save_compressed_tensors
from lightning_compress.export.executorch.write import to_executorch
from lightning_compress.export.openvino import to_openvino
from lightning_compress.export.pt2.aotinductor import load_aot_inductor, to_aot_inductor
from lightning_compress.export.pt2.write import to_torch_export
from lightning_compress.export.verification import deployed_form
from lightning_compress.models.cnn import SmallCNN
from lightning_compress.models.transformer import TransformerEncoder

RANDOM = 512


@dataclass(frozen=True)
class Runtime:
    """A way to deploy: what is written, and for whom the model is trained."""

    name: str
    file: str
    write: Callable[[nn.Module, Tensor, Path], Any]
    settings: dict[str, Any]


PACKAGES = {"OpenVINO": "openvino", "ExecuTorch": "executorch"}


def runtimes(compile: bool) -> Iterator[Runtime]:
    """Those that are installed here."""
    for_ort = {"backend": "onnxruntime"}
    yield Runtime(f"ONNX Runtime {version('onnxruntime')}", "model.onnx", to_onnx, for_ort)
    if installed("OpenVINO"):
        yield Runtime(f"OpenVINO {version('openvino')}", "model.xml", to_openvino, {"backend": "openvino"})
    yield Runtime("torch.export (.pt2)", "model.pt2", to_torch_export, for_ort)
    if compile:
        yield Runtime("AOTInductor", "compiled.pt2", to_aot_inductor, for_ort)
    if installed("ExecuTorch"):
        yield Runtime(f"ExecuTorch {version('executorch')}", "model.pte", to_executorch, {"backend": "executorch"})
    yield Runtime("packed, loaded", "model.packed", lambda net, x, path: save_packed(net, path), for_ort)
    yield Runtime(
        "compressed-tensors, loaded", "model.safetensors", lambda net, x, path: save_compressed_tensors(net, path), {}
    )


def installed(runtime: str) -> bool:
    return importlib.util.find_spec(PACKAGES[runtime]) is not None


@dataclass
class Images:
    """Training and test images in memory."""

    name: str
    x: Tensor
    y: Tensor
    test: Tensor
    labels: Tensor


def loaded(module: Any) -> Images:
    module.setup()
    parts = []
    for loader in (module.train_dataloader(), module.test_dataloader()):
        batches = list(loader)
        parts += [torch.cat([batch[k] for batch in batches]) for k in (0, 1)]
    return Images(module.name, *parts)


def train(net: nn.Module, images: Images, steps: int, rate: float) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), rate)
    net.train()
    for _ in range(steps):
        batch = torch.randint(len(images.x), (64,), generator=generator)
        loss = F.cross_entropy(net(images.x[batch]), images.y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def deployed(net: nn.Module, runtime: Runtime, x: Tensor, folder: Path) -> Callable[[Any, Tensor], Any]:
    """A written file, as a function of the model's own outputs and its input."""
    path = folder / runtime.file
    runtime.write(net, x, path)
    if path.name == "compiled.pt2":
        compiled = load_aot_inductor(path)
        return lambda like, x: compiled(x)
    return deployed_form(path, net)[0]


def measure(network: str, runtime: Runtime, dense: nn.Module, images: Images, steps: int) -> dict[str, Any]:
    """One row: a file written, and run beside the model that it was written from."""
    net = quantization.prepare(copy.deepcopy(dense), example_inputs=images.x[:2], **runtime.settings)
    train(net, images, steps, 3e-4)
    random = torch.randn(RANDOM, *images.x.shape[1:], generator=torch.Generator().manual_seed(1))
    row: dict[str, Any] = {"network": network, "data": images.name, "runtime": runtime.name}
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second, torch.no_grad():
        form = deployed(net, runtime, images.x[:64], Path(first))
        for part, x in (("random", random), ("real", images.test)):
            expected = torch.cat([net(piece) for piece in x.split(500)])
            actual = torch.cat([form(net(piece), piece) for piece in x.split(500)])
            row[part] = float((actual.argmax(1) == expected.argmax(1)).float().mean())
            row[f"{part}_error"] = float((actual - expected).abs().mean() / expected.abs().mean())
        row["trained"] = 100 * float((expected.argmax(1) == images.labels).float().mean())
        row["deployed"] = 100 * float((actual.argmax(1) == images.labels).float().mean())
        row["bytes"] = sum(item.stat().st_size for item in Path(first).iterdir())
        row["zeros"] = speed_of_zeros(net, form, runtime, images, Path(second))
    return row


def speed_of_zeros(
    net: nn.Module, form: Callable[[Any, Tensor], Any], runtime: Runtime, images: Images, folder: Path
) -> float:
    """Latency of the same network with nine of ten weights zero ÷ latency as it is, in turns, batch 64."""
    generator = torch.Generator().manual_seed(2)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.mul_(torch.rand(parameter.shape, generator=generator) < 0.1)
    x = images.x[:64]
    like = net(x)
    sparse = deployed(net, runtime, x, folder)
    timings = latency.measure({"sparse": lambda: sparse(like, x), "dense": lambda: form(like, x)}, seconds=1.0)
    return latency.Ratio.between(timings["sparse"], timings["dense"]).median


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder with the published files of Fashion-MNIST")
    parser.add_argument("--steps", type=int, default=400, help="training steps in float; a quarter of it quantized")
    parser.add_argument("--compile", action="store_true", help="AOTInductor, too, which takes a minute a network")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/runtime_agreement.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sets = [loaded(data.Digits())]
    if arguments.root:
        sets.append(loaded(data.FashionMNIST(root=arguments.root)))
    rows = []
    for images in sets:
        channels, size = images.x.shape[1], images.x.shape[2]
        for network, make in (
            ("convolutional", lambda c=channels: SmallCNN(c, 10, 32)),
            ("transformer", lambda c=channels, s=size: TransformerEncoder(c, s, 10, patch=s // 4)),
        ):
            torch.manual_seed(0)
            dense = train(make(), images, arguments.steps, 2e-3)
            for runtime in runtimes(arguments.compile):
                if network == "convolutional" and runtime.file == "model.safetensors":
                    continue
                rows.append(measure(network, runtime, dense, images, arguments.steps // 4))
                row = rows[-1]
                print(
                    f"{row['network']:14s} {row['data']:14s} {row['runtime']:32s} random {row['random']:.4f} "
                    f"({row['random_error']:.4f})  real {row['real']:.4f} ({row['real_error']:.4f})  "
                    f"{row['trained']:.2f} -> {row['deployed']:.2f} %  {row['bytes'] / 1000:.1f} kB  "
                    f"zeros {row['zeros']:.2f}",
                    flush=True,
                )
    absent = [name for name in PACKAGES if not installed(name)] + ["AOTInductor"] * (not arguments.compile)
    for name in absent:
        print(f"{name}: not run")
    if arguments.write:
        columns = {
            "network": "network",
            "data": "data",
            "runtime": "runtime",
            "random": ("agreement, 512 random inputs", ".4f"),
            "real": ("agreement, test images", ".4f"),
            "trained": ("accuracy as trained, %", ".2f"),
            "deployed": ("in the runtime, %", ".2f"),
            "bytes": "bytes",
            "zeros": ("latency, 90 % zeros ÷ none", ".2f"),
        }
        notes = [
            "Agreement: share of inputs with the same top class as the fake-quantized model in PyTorch.",
            f"{arguments.steps} training steps in float, {arguments.steps // 4} quantized, of 64 images each.",
            "compressed-tensors quantizes inputs of linear layers alone: the trained transformer cuts images off at "
            "the range of its training data before its first convolution, the loaded file does not, and random inputs "
            "lie outside of that range.",
        ]
        notes += [f"Not run: {', '.join(absent)}."] if absent else []
        results.write("runtime_agreement", rows, columns=columns, seeds=[0], threads=1, notes=notes)


if __name__ == "__main__":
    main()
