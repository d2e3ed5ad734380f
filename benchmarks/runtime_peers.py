"""Latency of our 8-bit files in OpenVINO and Inductor beside those of NNCF and torchao, of the same float model.

    python benchmarks/runtime_peers.py                     # what is installed of openvino, nncf and torchao
    python benchmarks/runtime_peers.py --networks resnet20 --batches 32 --seconds 5

OpenVINO runs three files: float, NNCF's own quantization, ours. AOTInductor compiles three programs, frozen: float,
torchao's PT2E with the x86 quantizer, ours; it needs a C++ compiler. All are calibrated on the same random inputs.
8-bit kernels are let to run everywhere, so that the times are those of integers; without VNNI, which the first line
tells, they may saturate, so that weights take 7 bits there in Inductor, ours and torchao's. Calls are interleaved in
blocks, and a ratio is the median over blocks.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import results
import torch
from onnx_latency import NETWORKS, calibrated
from torch import Tensor, nn

from lightning_compress.export.latency import Ratio, measure
from lightning_compress.export.openvino import OpenVinoModel, to_openvino
from lightning_compress.export.pt2.aotinductor import load_aot_inductor, to_aot_inductor
from lightning_compress.foundation.processor import has_vnni

Calls = dict[str, Callable[[Tensor], Any]]
PEERS = {"OpenVINO": "NNCF", "AOTInductor": "torchao"}


def in_openvino(network: str, model: nn.Module, batches: list[Tensor], folder: Path, threads: int) -> Calls:
    """The float file, NNCF's and ours."""
    import nncf
    import openvino

    to_openvino(model, batches[0], folder / "float.xml")
    to_openvino(calibrated(model, batches, backend="openvino"), batches[0], folder / "ours.xml")
    kind = {"model_type": nncf.ModelType.TRANSFORMER} if network == "encoder" else {}
    quantized = nncf.quantize(
        openvino.Core().read_model(folder / "float.xml"), nncf.Dataset(batches, to_arrays), **kind
    )
    openvino.save_model(quantized, folder / "peer.xml", compress_to_fp16=False)
    return {
        name: OpenVinoModel(folder / f"{name}.xml", model.forward, threads=threads, exact=False)
        for name in ("float", "peer", "ours")
    }


def to_arrays(batch: Tensor) -> Any:
    """A batch as NNCF wants it."""
    return batch.numpy()


def in_inductor(network: str, model: nn.Module, batches: list[Tensor], folder: Path, threads: int) -> Calls:
    """The float program, torchao's and ours, compiled for one batch size."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    narrow = not has_vnni()
    ours = calibrated(model, batches, backend="inductor", reduce_range=narrow)
    for name, own in (("float", model), ("ours", ours)):
        to_aot_inductor(own, batches[0], folder / f"{name}.pt2", dynamic_batch=False, integers=True)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=narrow))
    prepared = prepare_pt2e(torch.export.export(model, (batches[0],)).module(), quantizer)
    for batch in batches:
        prepared(batch)
    program = torch.export.export(convert_pt2e(prepared), (batches[0],))
    with (folder / "peer.pt2").open("wb") as file:
        torch._inductor.aoti_compile_and_package(program, package_path=file, inductor_configs={"freezing": True})
    return {name: load_aot_inductor(folder / f"{name}.pt2") for name in ("float", "peer", "ours")}


def missing(runtime: str) -> str | None:
    """What a runtime lacks here, in words."""
    packages = {"OpenVINO": ("openvino", "nncf"), "AOTInductor": ("torchao",)}[runtime]
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if runtime == "AOTInductor" and shutil.which("g++") is None and shutil.which("clang++") is None:
        absent.append("a C++ compiler")
    return f"{' and '.join(absent)} missing" if absent else None


def compare(runtime: str, network: str, batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """One row: three files of a network in a runtime, timed by turns."""
    torch.manual_seed(0)
    build, shape = NETWORKS[network]
    model, batches = build(), [torch.randn(batch, *shape) for _ in range(4)]
    with torch.no_grad():
        for x in batches:
            model(x)  # statistics of batch norm
        make = {"OpenVINO": in_openvino, "AOTInductor": in_inductor}[runtime]
        with tempfile.TemporaryDirectory() as folder:
            forms = make(network, model.eval(), batches, Path(folder), threads)
            calls = {name: lambda form=form: form(batches[0]) for name, form in forms.items()}
            timings = measure(calls, seconds=seconds, blocks=12, warmup=2)
            sizes = {name: sum(p.stat().st_size for p in Path(folder).glob(f"{name}.*")) for name in forms}
    ours, peer = (Ratio.between(timings[name], timings["float"]) for name in ("ours", "peer"))
    beside = Ratio.between(timings["ours"], timings["peer"])
    return {
        "runtime": runtime,
        "network": network,
        "batch": batch,
        "peer": PEERS[runtime],
        "float_ms": timings["float"].median_ms,
        "ours_to_float": ours.median,
        "peer_to_float": peer.median,
        "ours_to_peer": beside.median,
        "quartiles": f"{beside.low:.2f} to {beside.high:.2f}",
        "bytes": sizes["ours"],
        "bytes_peer": sizes["peer"],
    }


def main() -> None:
    """Run, print, and keep where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20", "encoder"])
    parser.add_argument("--runtimes", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each file is timed")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/runtime_peers.json")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    print({True: "VNNI", False: "no VNNI", None: "VNNI unknown"}[has_vnni()])
    rows, notes = [], []
    for runtime in options.runtimes:
        if why := missing(runtime):
            notes.append(f"{runtime}: not run, {why}.")
            print(notes[-1])
            continue
        for network in options.networks:
            for batch in options.batches:
                row = compare(runtime, network, batch, options.threads, options.seconds)
                rows.append(row)
                print(
                    f"{runtime:12}{network:9} batch {batch:3}: float {row['float_ms']:.2f} ms, ours ÷ float "
                    f"{row['ours_to_float']:.3f}, {row['peer']} ÷ float {row['peer_to_float']:.3f}, ours ÷ "
                    f"{row['peer']} {row['ours_to_peer']:.3f} ({row['quartiles']})",
                    flush=True,
                )
    if options.write and rows:
        columns = {
            "runtime": "runtime",
            "network": "network",
            "batch": "batch",
            "peer": "peer",
            "ours_to_float": ("ours ÷ float", ".2f"),
            "peer_to_float": ("peer ÷ float", ".2f"),
            "ours_to_peer": ("ours ÷ peer", ".2f"),
            "quartiles": "quartiles",
            "bytes": "bytes, ours",
            "bytes_peer": "bytes, peer",
        }
        packages = ("openvino", "nncf", "torchao")
        installed = {name: version(name) for name in packages if importlib.util.find_spec(name)}
        notes.append(
            "Latency of the same untrained weights, calls interleaved in blocks, medians over blocks. 8-bit kernels "
            "run even where they saturate (no VNNI): these are times, not answers."
        )
        results.write("runtime_peers", rows, columns=columns, threads=options.threads, versions=installed, notes=notes)


if __name__ == "__main__":
    main()
