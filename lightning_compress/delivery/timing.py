"""Latency of the deployed file, compared with the trained model and the dense one in the same runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.delivery.network_call import Entry
from lightning_compress.export.file_format import FileFormat, GraphFormat
from lightning_compress.export.formats import DENSE_ONNX, FORMATS
from lightning_compress.export.latency import Timing, measure
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
    kind = FORMATS[deployed]
    timed["deployed"] = _file(kind, folder / kind.file, reference, call, threads)
    if dense is not None and kind.dense == "pytorch":
        timed["dense"] = _eager(dense, call)
    elif dense is not None and kind.dense == "own" and isinstance(kind, GraphFormat):
        with tempfile.TemporaryDirectory() as temporary:
            kind.write(dense, call.example_inputs, file := Path(temporary) / kind.file)
            timed["dense"] = _file(kind, file, dense, call, threads)
    elif dense is not None and (folder / DENSE_ONNX).is_file():
        timed["dense"] = _file(kind, folder / DENSE_ONNX, reference, call, threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return measure(timed, seconds=0.5)
    finally:
        torch.set_num_threads(before)


def _eager(module: nn.Module, call: Entry) -> Callable[[], Any]:
    return lambda: module(*call.args, **call.kwargs)


def _file(kind: FileFormat, path: Path, reference: nn.Module, call: Entry, threads: int) -> Callable[[], Any]:
    if isinstance(kind, GraphFormat):
        return kind.open(path, reference.forward, threads).prepare(*call.args, **call.kwargs)
    form, _ = deployed_form(path, reference, threads=threads)
    return lambda: form(None, *call.args, **call.kwargs)
