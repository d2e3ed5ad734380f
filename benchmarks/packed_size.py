"""How small and how fast the packed format is, beside the bound, bit mask + values, zip and lzma of the same.

    python benchmarks/packed_size.py [--quick]

Sizes are those of whole files, every byte counted, of networks trained for a minute on the bundled digits while the
package's own pruner prunes them. Speeds are megabytes of float32 weights a second, on layers of 4096 x 4096 Gaussian
weights, 100 million in all (17 with --quick), on one thread; median of three, by wall time and by processor time.
"""

from __future__ import annotations

import argparse
import io
import lzma
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from lightning_compress import quantization
from lightning_compress.export.packed.save_load import load_packed, save_packed
from lightning_compress.models.resnet import ResNet
from lightning_compress.pruning import Pruner


def trained(net: nn.Module, sparsity: float, steps: int) -> nn.Module:
    """Train on the digits, pruned globally by magnitude along the cubic schedule."""
    torch.manual_seed(0)
    images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    images = images.float().reshape(-1, 1, 8, 8) / 16
    pruner = Pruner(net, final_sparsity=sparsity, start=0.1, end=0.7, every=10, total_steps=steps)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    net.train()
    for step in range(1, steps + 1):
        batch = torch.randint(len(images), (64,))
        loss = F.cross_entropy(net(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.step(step)
    return net


def sizes(
    name: str, make: Callable[[], nn.Module], sparsity: float, steps: int, directory: Path
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    torch.manual_seed(0)
    net = trained(make(), sparsity, steps)
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    for bits in (8, 4):
        quantization.strip(net)
        net.load_state_dict(state)
        quantization.prepare(net, weight_bits=bits, example_inputs=torch.rand(1, 1, 8, 8))
        net.train()(torch.rand(64, 1, 8, 8))
        net.load_state_dict(state)
        net.eval()
        file = save_packed(net, directory / "net.packed")
        integers = [layer.integers().numpy() for layer in quantization.find(net).layers.values()]
        count, kept = sum(i.size for i in integers), sum(int((i != 0).sum()) for i in integers)
        masked = count / 8 + kept * bits / 8
        # The rivals get the integers alone, at their best: one stream, no names, no scales, no batch norm.
        raw = b"".join(i.tobytes() for i in integers)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
            zipped.writestr("integers", raw)
        coded = file.breakdown["positions"] + file.breakdown["values"]
        x = torch.rand(16, 1, 8, 8)
        loaded = load_packed(file.path, make()).eval()
        with torch.no_grad():
            expected = net(x)
            error = float((loaded(x) - expected).abs().max() / expected.abs().max())
        print(f"{name}, {1 - kept / count:.1%} sparse, {bits} bits")
        print(f"  whole file            {file.bytes:9,d} bytes   {file.compression_ratio:6.1f} x smaller than float32")
        print(f"  / (mask + values)     {file.bytes / masked:9.3f}   (integers alone {coded / masked:.3f})")
        print(f"  integers / entropy    {coded / file.entropy_bound:9.4f}   ({coded:,d} / {file.entropy_bound:,.0f})")
        print(f"  integers / zip -9     {coded / len(archive.getvalue()):9.3f}   ({len(archive.getvalue()):,d})")
        packed_lzma = len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
        print(f"  integers / lzma -9e   {coded / packed_lzma:9.3f}   ({packed_lzma:,d})")
        print(f"  parts                 {dict(file.breakdown)}")
        print(f"  loaded outputs differ by {error:.1e} relative", flush=True)
        rows.append(
            {
                "network": name,
                "sparsity": 1 - kept / count,
                "bits": bits,
                "bytes": file.bytes,
                "ratio": file.compression_ratio,
                "of_bound": coded / file.entropy_bound,
                "of_mask": file.bytes / masked,
                "of_zip": coded / len(archive.getvalue()),
                "of_lzma": coded / packed_lzma,
            }
        )
    return rows


def speed(sparsity: float, bits: int | None, layers: int, directory: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    width = 4096

    def make() -> nn.Module:
        with torch.device("meta"):
            net = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(layers)])
        return net.to_empty(device="cpu")

    net = make()
    with torch.no_grad():
        for layer in net:
            layer.weight.normal_().mul_(torch.rand(width, width) >= sparsity)
    if bits:
        quantization.prepare(net, weight_bits=bits, activation_bits=None)
    megabytes = 4e-6 * layers * width**2
    times: dict[str, list[tuple[float, float]]] = {"pack": [], "load": []}
    for _ in range(3):
        fresh = make()
        for what in times:
            wall, processor = time.perf_counter(), time.process_time()
            if what == "pack":
                file = save_packed(net, directory / "large.packed")
            else:
                load_packed(file.path, fresh, quantized=False)
            times[what].append((time.perf_counter() - wall, time.process_time() - processor))
    text = ", ".join(
        f"{what} {megabytes / statistics.median(w for w, _ in found):4.0f} MB/s "
        f"({megabytes / statistics.median(p for _, p in found):4.0f} by processor time)"
        for what, found in times.items()
    )
    kind = f"{bits} bits" if bits else "float32"
    print(f"{sparsity:.0%} sparse, {kind}: {text}; {file.bytes:,d} bytes", flush=True)
    speeds = {what: megabytes / statistics.median(w for w, _ in found) for what, found in times.items()}
    return {"sparsity": sparsity, "values": kind, "bytes": file.bytes, **speeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="17 million weights for the speeds")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/packed_size.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:

        def mlp() -> nn.Module:
            return nn.Sequential(
                nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
            )

        rows = sizes("ResNet-20", lambda: ResNet(1, 10), 0.8, 150, Path(directory))
        rows += sizes("MLP 300-100", mlp, 0.9, 600, Path(directory))
        speeds = []
        for sparsity, bits in ((0.8, 8), (0.9, 4), (0.0, 8), (0.0, 4), (0.8, None), (0.0, None)):
            speeds.append(speed(sparsity, bits, 1 if arguments.quick else 6, Path(directory)))
    if arguments.write:
        results.write(
            "packed_size",
            rows,
            columns={
                "network": "network",
                "sparsity": ("sparsity", ".1%"),
                "bits": "bits",
                "bytes": "whole file, bytes",
                "ratio": ("× smaller than float32", ".1f"),
                "of_bound": ("integers ÷ their entropy", ".3f"),
                "of_mask": ("file ÷ (bit mask + values)", ".3f"),
                "of_zip": ("integers ÷ zip -9", ".3f"),
                "of_lzma": ("integers ÷ lzma -9e", ".3f"),
            },
            seeds=[0],
        )
        results.write(
            "packed_speed",
            speeds,
            columns={
                "sparsity": ("sparsity", ".0%"),
                "values": "values",
                "pack": ("pack, MB/s of float32", ".0f"),
                "load": ("load, MB/s of float32", ".0f"),
                "bytes": "bytes",
            },
            seeds=[0],
        )


if __name__ == "__main__":
    main()
