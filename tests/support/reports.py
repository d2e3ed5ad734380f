"""A whole report, written by hand."""

from __future__ import annotations

import copy
from typing import Any


def example_report() -> dict[str, Any]:
    return copy.deepcopy(_REPORT)


def _version(label: str, acc: float, size: int, ratio: float, median: float, runtime: str) -> dict[str, Any]:
    return {
        "label": label,
        "metrics": {"test/acc": acc, "test/loss": round(4 * (1 - acc), 4)},
        "bytes": size,
        "compression_ratio": ratio,
        "latency_ms": {"median": median, "p90": round(median * 1.2, 3)},
        "runtime": runtime,
        "source": f"{label.split()[0]}.bin",
    }


def _layer(name: str, shape: list[int], sparsity: float, bits: int, packed: int) -> dict[str, Any]:
    numel = 1
    for dim in shape:
        numel *= dim
    pruned = len(shape) > 1
    return {
        "name": name,
        "type": "Conv2d" if len(shape) == 4 else "Linear" if len(shape) == 2 else "BatchNorm2d",
        "shape": shape,
        "numel": numel,
        "sparsity_target": 0.8 if pruned else None,
        "sparsity": sparsity,
        "weight_bits": bits,
        "activation_bits": bits,
        "bytes_dense": 4 * numel,
        "bytes_packed": packed,
        "macs": numel * 64 if pruned else 0,
        "pattern": "unstructured" if pruned else "none",
        "dead_channels": 0,
    }


def _history() -> list[dict[str, Any]]:
    points = []
    for step in range(0, 601, 10):
        t = min(1.0, max(0.0, (step - 60) / 300))
        asked = 0.8 * (1 - (1 - t) ** 3)
        words = (["pruning"] if 60 <= step < 360 else ["pruned"] if step >= 360 else []) + ["quantized"] * (step >= 300)
        bits = 8.0 if step >= 300 else 32.0
        points.append(
            {
                "step": step,
                "sparsity": asked,
                "sparsity_target": asked,
                "weight_bits": bits,
                "activation_bits": bits,
                "phase": " + ".join(words) or "dense",
            }
        )
    return points


def _evaluations() -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "metrics": {
                "val/acc": 0.99 - 0.5 * 0.99 ** (step - 20) - (0.03 if 300 <= step < 360 else 0),
                "val/loss": 0.05 + 1.5 * 0.99**step,
                "train/loss_step": 0.1,
                "train/loss_epoch": 0.04 + 1.6 * 0.99**step,
            },
        }
        for step in range(20, 601, 20)
    ]


_REPORT = {
    "format": 1,
    "name": "digits_cnn_sparse80_w8a8",
    "created": "2026-11-24T10:00:00+00:00",
    "environment": {
        "python": "3.11.2",
        "torch": "2.13.0",
        "lightning": "2.6.6",
        "onnxruntime": "1.32.0",
        "cpu": "Intel(R) Xeon(R) Platinum",
        "threads": 2,
        "platform": "Linux x86_64",
    },
    "seed": 42,
    "data": {"source": "scikit-learn digits", "train": 1077, "val": 360, "test": 360, "seed": 42},
    "plan": {
        "pruning": {"final_sparsity": 0.8, "schedule": "cubic", "distribution": "global", "pattern": "unstructured"},
        "quantization": {"weight_bits": 8, "activation_bits": 8, "backend": "onnxruntime"},
        "phases": [
            {"name": "dense", "start": 0, "end": 60},
            {"name": "pruning", "start": 60, "end": 300},
            {"name": "pruning + quantized", "start": 300, "end": 360},
            {"name": "pruned + quantized", "start": 360, "end": 600},
        ],
    },
    "results": {
        "dense": _version("dense float32 model", 0.9861, 310_552, 1.0, 0.061, "ONNX Runtime, float32"),
        "fake_quantized": _version("fake-quantized model in PyTorch", 0.9833, 310_552, 1.0, 0.912, "PyTorch"),
        "deployed": _version("ONNX file with integers", 0.9833, 86_120, 3.606, 0.034, "ONNX Runtime, int8"),
    },
    "agreement": 1.0,
    "samples": 10_000,
    "latency": {"ratio": {"median": 0.56, "low": 0.51, "high": 0.6}},
    "max_abs_difference": 2.4e-06,
    "artifacts": [
        {
            "format": "onnx",
            "file": "model.onnx",
            "bytes": 86_120,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "breakdown": {"integer weights": 73_100, "scales and biases": 4_420, "graph": 8_600},
        },
        {
            "format": "packed",
            "file": "model.packed",
            "bytes": 21_950,
            "sha256": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
            "breakdown": {"values": 12_400, "masks": 6_900, "scales": 1_200, "float parameters": 950, "header": 500},
        },
    ],
    "layers": [
        _layer("net.conv1.weight", [32, 1, 3, 3], 0.41, 8, 240),
        _layer("net.bn1.weight", [32], 0.0, 32, 128),
        _layer("net.bn1.bias", [32], 0.0, 32, 128),
        _layer("net.block1.conv1.weight", [32, 32, 3, 3], 0.76, 8, 3_100),
        _layer("net.block1.conv2.weight", [32, 32, 3, 3], 0.79, 8, 2_900),
        _layer("net.block2.conv1.weight", [64, 32, 3, 3], 0.80, 8, 5_400),
        _layer("net.block2.conv2.weight", [64, 64, 3, 3], 0.86, 8, 8_100),
        _layer("net.block2.shortcut.0.weight", [64, 32, 1, 1], 0.62, 8, 900),
        _layer("net.fc.weight", [10, 64], 0.33, 8, 430),
        _layer("net.fc.bias", [10], 0.0, 32, 40),
    ],
    "history": _history(),
    "evaluations": _evaluations(),
    "stays_float": ["net.pool: its output meets no quantizer (forward, line 48)"],
    "failures": [],
    "notes": [],
}
