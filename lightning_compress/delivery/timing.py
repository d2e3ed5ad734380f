"""Latency of what was written, beside the trained model and the dense one in the same runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.delivery.network_call import Entry
from lightning_compress.export.executorch.write import ExecuTorchModel, to_executorch
from lightning_compress.export.formats import DENSE_ONNX, FILES
from lightning_compress.export.latency import Timing, measure
from lightning_compress.export.litert.run import LiteRTModel
from lightning_compress.export.litert.write import to_litert
from lightning_compress.export.onnx.session import OnnxModel
from lightning_compress.export.openvino import OpenVinoModel
from lightning_compress.export.verification import deployed_form


def timings(
    deployed: str, folder: Path, reference: nn.Module, dense: nn.Module | None, call: Entry, *, threads: int
) -> dict[str, Timing]:
    """Measure the forms of a model alternately.

    Args:
        deployed: The format whose file counts as deployed.
        folder: Where the files are.
        reference: The trained model.
        dense: The dense model, if there is one.
        call: A call with one sample.
        threads: Threads of the runtimes.

    Returns:
        ``"fake_quantized"``, ``"deployed"`` and, where there is a dense model, ``"dense"``.
    """
    timed: dict[str, Callable[[], Any]] = {"fake_quantized": _eager(reference, call)}
    path = folder / FILES[deployed]
    beside = folder / DENSE_ONNX if dense is not None and (folder / DENSE_ONNX).is_file() else None
    if deployed == "onnx":
        timed["deployed"] = _session(path, reference, call, threads)
        if beside is not None:
            timed["dense"] = _session(beside, reference, call, threads)
    elif deployed == "openvino":
        timed["deployed"] = _openvino(path, reference, call, threads)
        if beside is not None:
            timed["dense"] = _openvino(beside, reference, call, threads)
    elif deployed == "executorch":
        timed["deployed"] = _executorch(path, reference, call)
        if dense is not None:
            with tempfile.TemporaryDirectory() as temporary:
                to_executorch(dense, call.example_inputs, file := Path(temporary) / "dense.pte")
                timed["dense"] = _executorch(file, dense, call)
    elif deployed == "litert":
        timed["deployed"] = _litert(path, reference, call, threads)
        if dense is not None:
            with tempfile.TemporaryDirectory() as temporary:
                to_litert(dense, call.example_inputs, file := Path(temporary) / "dense.tflite")
                timed["dense"] = _litert(file, dense, call, threads)
    else:
        form, _ = deployed_form(path, reference, threads=threads)
        timed["deployed"] = lambda: form(None, *call.args, **call.kwargs)
        if dense is not None:
            timed["dense"] = _eager(dense, call)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return measure(timed, seconds=0.5)
    finally:
        torch.set_num_threads(before)


def _eager(module: nn.Module, call: Entry) -> Callable[[], Any]:
    return lambda: module(*call.args, **call.kwargs)


def _session(path: Path, reference: nn.Module, call: Entry, threads: int) -> Callable[[], Any]:
    model = OnnxModel(path, reference.forward, threads=threads)
    feed = model.feed(*call.args, **call.kwargs)
    return lambda: model.session.run(None, feed)


def _executorch(path: Path, reference: nn.Module, call: Entry) -> Callable[[], Any]:
    model = ExecuTorchModel(path, reference.forward)
    return lambda: model(*call.args, **call.kwargs)


def _litert(path: Path, reference: nn.Module, call: Entry, threads: int) -> Callable[[], Any]:
    model = LiteRTModel(path, reference.forward, threads=threads)
    return model.prepared(*call.args, **call.kwargs)


def _openvino(path: Path, reference: nn.Module, call: Entry, threads: int) -> Callable[[], Any]:
    model = OpenVinoModel(path, reference.forward, threads=threads)
    feed = model.feed(*call.args, **call.kwargs)
    return lambda: model.run(feed)
