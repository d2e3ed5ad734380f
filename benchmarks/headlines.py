"""The README's table of results: one line each, made from the files of ``benchmarks/results/``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Headline:
    """One number of a result file, or a few side by side.

    Attributes:
        text: What was measured.
        chinese: The same in Chinese.
        result: Name of the file.
        row: What the row is known by: column → value, or several values for as many rows.
        form: What is shown of a row, by the names of its columns.
        top: Whether README shows it, too.
    """

    text: str
    chinese: str
    result: str
    row: Mapping[str, str | int | float | tuple[str, ...]]
    form: str
    top: bool = False

    def found(self, folder: Path) -> tuple[str, str] | None:
        """The number as text, several with strokes between, and the script with the dates of these rows.

        Returns:
            ``None`` where it was not measured yet.

        Raises:
            KeyError: The file has no such row.
        """
        path = folder / f"{self.result}.json"
        if not path.is_file():
            return None
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wanted = {key: value if isinstance(value, tuple) else (value,) for key, value in self.row.items()}
        rows = [row for row in content["rows"] if all(row[key] in values for key, values in wanted.items())]
        if len(rows) < max(map(len, wanted.values())):
            raise KeyError(f"{path}: no row with {dict(self.row)}")
        script = content["command"].partition(" --")[0]
        return " / ".join(self.form.format_map(row) for row in rows), f"`{script}`, {', '.join(_dates(content, rows))}"


def _dates(content: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The days on which rows were measured, those of their runs where these were kept."""
    found = set()
    for row in rows:
        runs = [run for run in content.get("runs", []) if run.get("compression") == row.get("compression")]
        found |= {one.get("date", content["date"]) for one in runs or [row]}
    return sorted(found)


_ACCURACY = "{accuracy:.2f} ± {accuracy_std:.2f} % ({drop:.2f} below dense), {times_smaller:.1f} × smaller"

HEADLINES = [
    Headline(
        "QAT step ÷ float step, ResNet-20, residual adds quantized; ranges observed / frozen / learned",
        "量化感知训练步 ÷ 浮点训练步，ResNet-20，残差加法已量化；范围：持续观测 / 冻结 / 可学习",
        "quantization_step",
        {"network": "resnet20", "ranges": ("observed", "frozen", "learned")},
        "{ratio:.2f}",
        top=True,
    ),
    Headline(
        "Extra training memory of QAT ÷ that of float training, ResNet-20",
        "量化感知训练所增内存 ÷ 浮点训练所增内存，ResNet-20",
        "quantization_step",
        {"network": "resnet20", "ranges": ("observed", "frozen", "learned")},
        "{memory_ratio:.2f}",
    ),
    Headline(
        "QAT step ÷ float step, transformer encoder",
        "量化感知训练步 ÷ 浮点训练步，Transformer 编码器",
        "quantization_step",
        {"network": "encoder", "ranges": ("observed", "frozen", "learned")},
        "{ratio:.2f}",
    ),
    Headline(
        "QAT step of ModelOpt / torchao / NNCF ÷ float step, ResNet-20",
        "ModelOpt / torchao / NNCF 的训练步 ÷ 浮点训练步，ResNet-20",
        "quantization_peers",
        {"network": "resnet20", "library": ("nvidia-modelopt==0.47.0", "torchao==0.18.0", "nncf==3.4.0")},
        "{ratio:.2f}",
        top=True,
    ),
    Headline(
        "Exact global mask update of 100M weights ÷ bare selection and masks; torch.nn.utils.prune ÷ the same",
        "1 亿权重的精确全局掩码更新 ÷ 仅选择与写掩码；torch.nn.utils.prune ÷ 同一基准",
        "pruning_cost",
        {"measured": "mask update, 100M weights", "way": ("lightning-compress", "torch.nn.utils.prune")},
        "{ratio:.2f}",
        top=True,
    ),
    Headline(
        "Training step with pruning ÷ dense step, ResNet-18 / transformer encoder / 100M MLP",
        "带剪枝的训练步 ÷ 稠密训练步，ResNet-18 / Transformer 编码器 / 1 亿权重 MLP",
        "pruning_cost",
        {
            "measured": (
                "step, ResNet-18, batch 4 at 64×64",
                "step, transformer encoder, batch 8×64",
                "step, 100M MLP, batch 32",
            ),
            "way": "lightning-compress",
        },
        "{ratio:.3f}",
    ),
    Headline(
        "Training step with a teacher of the same size ÷ plain step, ResNet-20",
        "带同规模教师的训练步 ÷ 普通训练步，ResNet-20",
        "distillation_step",
        {"network": "resnet20", "variant": "logits"},
        "{ratio:.2f}",
    ),
    Headline(
        "Fashion-MNIST, MLP: 80 % sparse and 8 bits",
        "Fashion-MNIST，MLP：80 % 稀疏 + 8 位",
        "accuracy_fashion_mnist_mlp",
        {"compression": "80 % sparse, 8 bits"},
        _ACCURACY,
        top=True,
    ),
    Headline(
        "Fashion-MNIST, MLP: 90 % sparse and 4 bits",
        "Fashion-MNIST，MLP：90 % 稀疏 + 4 位",
        "accuracy_fashion_mnist_mlp",
        {"compression": "90 % sparse, 4 bits"},
        _ACCURACY,
    ),
    Headline(
        "Fashion-MNIST, MLP: dense / 73.4 / 81.5 / 87.2 / 91.1 / 93.7 / 95 / 98 % sparse, accuracy in %",
        "Fashion-MNIST，MLP：稠密 / 73.4 / 81.5 / 87.2 / 91.1 / 93.7 / 95 / 98 % 稀疏，准确率 %",
        "accuracy_fashion_mnist_mlp",
        {"compression": ("dense", *(f"{p} % sparse" for p in (73.4, 81.5, 87.2, 91.1, 93.7, 95, 98)))},
        "{accuracy:.2f}",
    ),
    Headline(
        "Fashion-MNIST, MLP, 95 % sparse: alone / taught by the dense control / by LeNet-5, accuracy in %",
        "Fashion-MNIST，MLP，95 % 稀疏：单独训练 / 以稠密对照组为教师 / 以 LeNet-5 为教师，准确率 %",
        "accuracy_fashion_mnist_mlp",
        {"compression": ("95 % sparse", "95 % sparse, distilled", "95 % sparse, taught by LeNet-5")},
        "{accuracy:.2f}",
    ),
    Headline(
        "Fashion-MNIST, LeNet-5: dense / 70 / 80 / 90 / 95 % sparse",
        "Fashion-MNIST，LeNet-5：稠密 / 70 / 80 / 90 / 95 % 稀疏",
        "accuracy_fashion_mnist_lenet5",
        {"compression": ("dense", *(f"{p} % sparse" for p in (70, 80, 90, 95)))},
        "{accuracy:.2f}",
    ),
    *(
        Headline(
            f"{english}: dense / 8 / 4 / 3 / 2 bits",
            f"{chinese}：稠密 / 8 / 4 / 3 / 2 位",
            f"accuracy_{name}",
            {"compression": ("dense", "8 bits", "4 bits", "3 bits", "2 bits")},
            "{accuracy:.2f}",
        )
        for name, english, chinese in (
            ("fashion_mnist_mlp", "Fashion-MNIST, MLP", "Fashion-MNIST，MLP"),
            ("fashion_mnist_lenet5", "Fashion-MNIST, LeNet-5", "Fashion-MNIST，LeNet-5"),
            ("cifar10_resnet20", "CIFAR-10, ResNet-20, four epochs in all", "CIFAR-10，ResNet-20，共四个 epoch"),
        )
    ),
    Headline(
        "CIFAR-10, ResNet-20, four epochs in all: dense / 70 / 80 / 90 / 95 % sparse",
        "CIFAR-10，ResNet-20，共四个 epoch：稠密 / 70 / 80 / 90 / 95 % 稀疏",
        "accuracy_cifar10_resnet20",
        {"compression": ("dense", *(f"{p} % sparse" for p in (70, 80, 90, 95)))},
        "{accuracy:.2f}",
    ),
    Headline(
        "The same, 90 % sparse: global / uniform / ERK / one-shot / ERK with RigL",
        "同上，90 % 稀疏：全局 / 均匀 / ERK / 一次性 / ERK + RigL",
        "accuracy_cifar10_resnet20",
        {
            "compression": (
                "90 % sparse",
                *(f"90 % sparse, {how}" for how in ("uniform", "ERK", "one-shot", "ERK, RigL")),
            )
        },
        "{accuracy:.2f}",
    ),
    Headline(
        "The same, half the multiply-adds by whole channels",
        "同上，按整通道剪去一半乘加",
        "accuracy_cifar10_resnet20",
        {"compression": "half the multiply-adds"},
        "{accuracy:.2f}",
    ),
    Headline(
        "Digits, CNN in a file of 12 kB: sparsity and bits of each layer by `advise`",
        "手写数字，12 kB 的 CNN 文件：由 `advise` 决定各层稀疏度和位宽",
        "advised_digits_cnn",
        {"setting": "advised, by loss"},
        "{accuracy:.2f} ± {accuracy_std:.2f} %",
    ),
    Headline(
        "The same, one threshold and 4 bits for all layers",
        "同上，所有层同一阈值、4 位",
        "advised_digits_cnn",
        {"setting": "global threshold, 4 bits"},
        "{accuracy:.2f} ± {accuracy_std:.2f} %",
    ),
    Headline(
        "Integers in a packed file ÷ their entropy, ResNet-20, 80 % sparse, 8 bits",
        "packed 文件中的整数 ÷ 其熵，ResNet-20，80 % 稀疏，8 位",
        "packed_size",
        {"network": "ResNet-20", "bits": 8},
        "{of_bound:.3f}",
        top=True,
    ),
    Headline(
        "100M weights, 80 % sparse, 8 bits: MB of float32 packed / loaded in a second, one thread",
        "1 亿权重，80 % 稀疏，8 位：单线程每秒打包 / 加载的 float32 MB 数",
        "packed_speed",
        {"sparsity": 0.8, "values": "8 bits"},
        "{pack:.0f} / {load:.0f}",
    ),
    Headline(
        "Latency in ONNX Runtime, ResNet-20 pruned to half its multiply-adds ÷ dense, batch 32",
        "ONNX Runtime 中的延迟，ResNet-20 乘加减半 ÷ 稠密，批大小 32",
        "channel_pruning_cifar10",
        {"network": "pruned"},
        "{ratio_32:.2f}",
    ),
    Headline(
        "Latency of the int8 ONNX file ÷ ONNX Runtime's own static quantization, ResNet-18, batch 32",
        "int8 ONNX 文件的延迟 ÷ ONNX Runtime 自带静态量化，ResNet-18，批大小 32",
        "onnx_latency",
        {"network": "resnet18"},
        "{ours / static:.2f}; ÷ float {ours / float:.2f}",
    ),
    Headline(
        "Latency of our 8-bit files ÷ NNCF's in OpenVINO / torchao's in AOTInductor, ResNet-20, batch 32",
        "我们的 8 位文件的延迟 ÷ NNCF 的（OpenVINO）/ torchao 的（AOTInductor），ResNet-20，批大小 32",
        "runtime_peers",
        {"runtime": ("OpenVINO", "AOTInductor"), "network": "resnet20", "batch": 32},
        "{ours_to_peer:.2f}",
        top=True,
    ),
]
