"""One architecture of the zoo, in a process of its own: prune, train, write, run, compare, load again.

    python benchmarks/zoo_job.py "timm: test_resnet" result.json

``zoo.py`` starts this with a limit of time and memory, and merges what it wrote.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import Architecture, all_architectures
from torch import nn
from torch.utils._pytree import tree_leaves
from zoo_layers import layerwise

from lightning_compress import CompressionError, quantization
from lightning_compress.export import load_packed, save_packed, to_onnx
from lightning_compress.export.onnx.integer_share import integer_share
from lightning_compress.export.onnx.session import OnnxModel
from lightning_compress.export.rehearsal import refusals
from lightning_compress.foundation.example_inputs import call_arguments
from lightning_compress.pruning import Pruner

STEPS, BATCH, SPARSITY = 16, 4, 0.7
UNSEEN = 5
"""Samples on which files are compared: another number than in training, where the file leaves it free."""

NEAR = 0.99
"""Share of the outputs' values that are at most one 8-bit step away in an equal file.

Runtimes multiply by the inverse of a scale where PyTorch divides, so that a tie may round to the other side; later
layers carry such a step on. Where a network carries it far, as one with many norms and random weights does, a file is
equal if each of its layers is, given the trained model's own integers.
"""

Row = dict[str, Any]


def measure(architecture: Architecture, folder: Path, row: Row) -> None:
    """Fill ``row`` with what happened; ``row["stage"]`` says how far it came if this raises."""
    row["stage"] = "build"
    network, batches = build(architecture), training_batches(architecture)
    row["weights"] = sum(parameter.numel() for parameter in network.parameters())
    keys, classes = list(network.state_dict()), [type(module) for module in network.modules()]

    row["stage"] = "prepare"
    times = {"start": 0, "end": STEPS // 2, "total_steps": STEPS}
    pruner = Pruner(network, final_sparsity=SPARSITY, example_inputs=batches[0], **times)
    quantization.prepare(network, example_inputs=batches[0])
    row["stage"] = "train"
    train(network, batches, pruner)
    row |= sparsity(network, pruner)
    row["keys"] = list(network.state_dict()) == keys and [type(module) for module in network.modules()] == classes
    row["stays_float"] = "; ".join(quantization.find(network).unreached)

    row["stage"] = "write packed"
    save_packed(network, folder / "model.packed")
    row["packed"] = True
    row["stage"] = "load packed"
    fresh = load_packed(folder / "model.packed", build(architecture)).eval()
    inputs = batch(architecture, BATCH, seed=1)
    row["loaded"] = float(differences(outputs(fresh, inputs), outputs(network, inputs)).max()) <= 1e-3

    row["stage"] = "write onnx"
    file, row["batch"] = written(network, batches[0], folder / "model.onnx")
    row["stage"] = "run onnx"
    inputs = batch(architecture, BATCH if row["batch"] == "fixed" else UNSEEN, seed=2)
    expected = outputs(network, inputs)
    session = OnnxModel(file, network.forward)
    args, kwargs = call_arguments(inputs)
    exact = differences(session(*args, **kwargs), expected)
    default = differences(default_session(file, session.feed(*args, **kwargs)), expected)
    row["steps"], row["default_steps"] = round(float(exact.max()), 4), round(float(default.max()), 4)
    row["near"], row["default_near"] = round(near(exact), 5), round(near(default), 5)
    row["equal"] = row["near"] >= NEAR
    if not row["equal"]:
        found = layerwise(file, network, inputs, session.feed(*args, **kwargs))
        row |= {"layers": found.tensors, "layers_other": round(found.other, 5), "layers_off": found.off}
        row["layers_wrong"] = ", ".join(found.wrong)
        row["equal"] = not found.wrong and near(differences(found.outputs, expected)) >= NEAR

    row["stage"] = "count"
    counted = integer_share(file, session.feed(*args, **kwargs))
    row["share"] = round(counted.share, 4)
    row["reasons"] = "; ".join(line for line in counted.lines() if "of the multiply-adds" in line)
    row["float_kernels"] = ", ".join(
        f"{kernel} {count / counted.total:.2f}" for kernel, count in counted.floats.items() if count
    )
    row["stage"] = "done"


def build(architecture: Architecture) -> nn.Module:
    torch.manual_seed(0)
    return architecture.build()


def batch(architecture: Architecture, samples: int, seed: int) -> Any:
    torch.manual_seed(seed)
    return architecture.inputs(samples)


def training_batches(architecture: Architecture) -> list[Any]:
    return [batch(architecture, BATCH, seed=10 + index) for index in range(4)]


def train(network: nn.Module, batches: list[Any], pruner: Pruner) -> None:
    """Towards random numbers, the same for a batch whenever it comes back."""
    network.train()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-3)
    for step in range(STEPS):
        optimizer.zero_grad()
        args, kwargs = call_arguments(batches[step % len(batches)])
        given = [leaf for leaf in floats(network(*args, **kwargs)) if leaf.requires_grad]
        generator = torch.Generator().manual_seed(step % len(batches))
        loss = sum((leaf.float() - torch.randn(leaf.shape, generator=generator)).square().mean() for leaf in given)
        loss.backward()
        optimizer.step()
        pruner.step(step + 1)
    network.eval()


def sparsity(network: nn.Module, pruner: Pruner) -> Row:
    """Share of zeros in what the pruner took, and in all parameters of two dimensions or more."""
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    zeros = sum(int((matrix == 0).sum()) for matrix in matrices)
    return {
        "sparsity": round(pruner.sparsity(), 3),
        "sparsity_of_all": round(zeros / sum(matrix.numel() for matrix in matrices), 3),
    }


def written(network: nn.Module, inputs: Any, path: Path) -> tuple[Path, str]:
    """The ONNX file, with a free batch if that can be."""
    try:
        return to_onnx(network, inputs, path).path, "free"
    except CompressionError as free:
        try:
            return to_onnx(network, inputs, path, dynamic_batch=False).path, "fixed"
        except CompressionError:
            raise free from None


def outputs(network: nn.Module, inputs: Any) -> list[torch.Tensor]:
    args, kwargs = call_arguments(inputs)
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(network(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]


def floats(structure: Any) -> Iterator[torch.Tensor]:
    for leaf in tree_leaves(structure):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            yield leaf


def differences(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> torch.Tensor:
    """How far every value of every output is off, in 255ths of that output's span: steps of an 8-bit grid over it."""
    if len(actual) != len(expected):
        raise ValueError(f"{len(actual)} outputs where the network gives {len(expected)}")
    steps = [torch.zeros(1, dtype=torch.float64)]
    for ours, theirs in zip(actual, expected, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(f"an output of shape {list(ours.shape)} where the network gives {list(theirs.shape)}")
        values, wanted = ours.double().flatten(), theirs.double().flatten()
        same = (values == wanted) | (values.isnan() & wanted.isnan())
        finite = wanted[wanted.isfinite()]
        if not theirs.is_floating_point() or not finite.numel():
            steps.append(torch.zeros_like(wanted).masked_fill(~same, float("inf")))
            continue
        span = max(float(finite.max() - finite.min()), 1e-6 * float(finite.abs().max()), 1e-9)
        apart = (values - wanted).abs().nan_to_num(nan=float("inf"), posinf=float("inf")) / span * 255
        steps.append(apart.masked_fill(same, 0.0))
    return torch.cat(steps)


def near(steps: torch.Tensor) -> float:
    """Share of values that are at most one step away."""
    return float((steps <= 1).double().mean())


def default_session(path: Path, feed: dict[str, np.ndarray]) -> list[torch.Tensor]:
    """What a session with default options gives: the one that a user opens who read no note."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(array) for array in session.run(None, feed)]


def why(error: BaseException) -> Row:
    """The error in one line, and the last line of this package that it went through."""
    package = [frame for frame in traceback.extract_tb(error.__traceback__) if "lightning_compress" in frame.filename]
    text = " ".join(str(error).split())[:600]
    row: Row = {"error": f"{type(error).__name__}: {text}"}
    if package:
        name = package[-1].filename.partition("lightning_compress/")[2]
        row["at"] = f"{name}:{package[-1].lineno}"
    return row


def refused_before_training(architecture: Architecture) -> bool:
    """Whether the callback, which rehearses the export before the first step, refuses the network with a reason."""
    network, inputs = build(architecture), training_batches(architecture)[0]
    quantization.prepare(network, example_inputs=inputs)
    return "onnx" in refusals(network, inputs, ["onnx"])


def main(name: str, target: Path) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    architecture = all_architectures()[name]
    torch.set_num_threads(1)
    row: Row = {"network": name, "version": f"{architecture.distribution} {version(architecture.distribution)}"}
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(architecture, Path(folder), row)
    except Exception as error:  # whatever a network does, its row says it
        row |= why(error)
        row["refused"] = row["stage"] == "prepare" and isinstance(error, CompressionError)
        if "--trace" in sys.argv:
            traceback.print_exc()
    if row["stage"] == "write onnx" and "error" in row:
        row["refused"] = refused_before_training(architecture)
    row["seconds"] = round(time.perf_counter() - start, 1)
    target.write_text(json.dumps(row), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
