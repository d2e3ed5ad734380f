"""The words of the tables in Chinese."""

from __future__ import annotations

import re
from collections.abc import Callable

WORDS = {
    "what": "内容",
    "measured": "测得",
    "how": "命令与日期",
    "test accuracy, %": "测试准确率（%）",
    "perplexity": "困惑度",
    "file, kB": "文件大小（kB）",
    "times smaller": "压缩倍数",
    "latency at batch 1, µs": "批大小为 1 的延迟（µs）",
    "Dense": "稠密模型",
    "Fake-quantized": "伪量化模型（训练结果）",
    "Deployed": "部署模型",
    "Packed file of the same weights": "相同权重的 packed 文件",
    "as deployed": "与部署模型相同",
    "recipe": "配方",
    "seeds": "种子数",
    "dense, %": "稠密（%）",
    "deployed, %": "部署（%）",
    "dense − deployed, points": "稠密减部署（百分点）",
    "ONNX, × smaller": "ONNX 压缩倍数",
    "packed, × smaller": "packed 压缩倍数",
    "How this was measured": "测量方法",
    "date": "日期",
    "CPU": "CPU",
    "1 thread": "单线程",
    "compression": "压缩方法",
    "dense − this, points": "与稠密之差（百分点）",
    "packed file, × smaller": "packed 文件压缩倍数",
    "packed file, bytes": "packed 文件（字节）",
    "most that the file differs from its plan": "文件与方案的最大偏差",
    "setting": "设置",
    "network": "网络",
    "batch": "批大小",
    "8-bit ranges": "8 位量化范围",
    "step, ms": "每步（ms）",
    "float step, ms": "浮点每步（ms）",
    "step ÷ float step": "每步 ÷ 浮点每步",
    "step ÷ plain step": "每步 ÷ 普通每步",
    "quantized step ÷ its float step": "量化每步 ÷ 自身浮点每步",
    "memory that training adds ÷ float": "训练所增内存 ÷ 浮点",
    "training memory ÷ float": "训练所增内存 ÷ 浮点",
    "library": "库",
    "way": "方法",
    "÷ dense step, or ÷ selection alone": "÷ 稠密每步，或 ÷ 仅选择",
    "bytes a weight at the peak": "峰值每权重字节数",
    "beside the step": "附加的损失",
    "loss": "附加的损失",
    "multiply-adds": "乘加数",
    "parameters": "参数量",
    "ONNX file, bytes": "ONNX 文件（字节）",
    "batch 1, ms": "批大小 1（ms）",
    "batch 32, ms": "批大小 32（ms）",
    "÷ dense": "÷ 稠密",
    "ours ÷ float": "本包 ÷ 浮点",
    "quartiles": "四分位数",
    "ORT's own quantization ÷ float": "ORT 自带量化 ÷ 浮点",
    "ours ÷ ORT's own": "本包 ÷ ORT 自带",
    "bytes, ours": "字节，本包",
    "bytes, ORT's own": "字节，ORT 自带",
    "bytes, float": "字节，浮点",
    "bytes, peer": "字节，对比库",
    "runtime": "运行时",
    "peer": "对比库",
    "peer ÷ float": "对比库 ÷ 浮点",
    "ours ÷ peer": "本包 ÷ 对比库",
    "sparsity": "稀疏度",
    "bits": "位宽",
    "whole file, bytes": "整个文件（字节）",
    "× smaller than float32": "相对 float32 的压缩倍数",
    "integers ÷ their entropy": "整数 ÷ 其熵",
    "file ÷ (bit mask + values)": "文件 ÷（位掩码 + 数值）",
    "integers ÷ zip -9": "整数 ÷ zip -9",
    "integers ÷ lzma -9e": "整数 ÷ lzma -9e",
    "dense": "稠密",
    "pruned": "剪枝后",
    "float": "浮点",
    "observed": "持续观测",
    "frozen": "冻结",
    "learned": "可学习",
    "encoder": "编码器",
    "half the multiply-adds": "乘加数减半",
    "all": "全部",
    "teacher alone": "仅教师",
    "features": "特征",
    "attention": "注意力",
    "relations": "关系",
    "logits": "logits",
    "trainer, logits": "Trainer，logits",
    "float mask": "浮点掩码",
    "byte mask, plain": "字节掩码，未优化",
    "selection and masks alone": "仅选择与写掩码",
    "mask update, 100M weights": "更新掩码，1 亿权重",
}
"""A heading or a whole cell → the same in Chinese."""

_PARTS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\bours\b", "本包"),
    (r"\branges (observed|frozen|learned)", lambda found: f"范围{WORDS[found[1]]}"),
    (r"([\d.]+) % sparse", r"\1 % 稀疏"),
    (r"\b(\d+) bits\b", r"\1 位"),
    (r"\bdistilled\b", "蒸馏"),
    (r"taught by (\S+)", r"以 \1 为教师"),
    (r"\bone-shot\b", "一次性"),
    (r"\badvised, by loss", "advise 按损失"),
    (r"\badvised, by hessian", "advise 按 Hessian"),
    (r"\bglobal threshold\b", "全局阈值"),
    (r"\buniform\b", "各层相同"),
    (r"\bstep, ", "训练步，"),
    (r"\btransformer encoder\b", "Transformer 编码器"),
    (r"\bbatch (\d+(?:×\d+)?)", r"批大小 \1"),
    (r" at (\d+×\d+)", r"，\1 像素"),
    (r"([\d.]+) to ([\d.]+)$", r"\1 至 \2"),
    (r"\(([\d.]+) below dense\)", r"（比稠密低 \1）"),
    (r"([\d.]+) × smaller", r"压缩 \1 倍"),
    (r", ", "，"),
]
_NOTES = [
    (r"^(\d+)% of the channels in every group removed\.$", r"每组去掉 \1% 的通道。"),
    (r"^(\d+)% unstructured; compiled masks on\.$", r"\1% 非结构化稀疏；启用编译的掩码。"),
    (r"^After one epoch, after 3 of dense training .*$",
     "所有行先共享 3 个 epoch 的稠密训练，再各训练 1 个 epoch；"
     "写出的 ONNX 文件，在 ONNX Runtime 中测得；稠密对照组训练同样久。"),
    (r"^Last of (\d+) epochs, .*$",
     r"\1 个 epoch 中的最后一个；写出的 ONNX 文件，在 ONNX Runtime 中测得；稠密对照组训练同样久。"),
    (r"^(.*), budget ([\d,]+) bytes, (\S+) epochs? of fine-tuning from the same dense weights\.$",
     r"\1，预算 \2 字节，从相同的稠密权重微调（epoch 数：\3）。"),
    (r"^Each library with its default recipe.*$", "每个库使用其默认的 8 位配置，在独立进程中运行；"
     "每两步为一块，交替进行。"),
    (r"^Latency at batch 32, exact 8-bit kernels.*$",
     "批大小 32 的延迟，使用精确的 8 位内核（session.x64quantprecision=1），"
     "各调用分块交替，取各块的中位数。权重未经训练。"),
    (r"^Latency of ONNX Runtime on one thread\.$", "ONNX Runtime 单线程的延迟。"),
    (r"^Latency of the same untrained weights.*$",
     "相同的未训练权重的延迟，各调用分块交替，取各块的中位数。"
     "即使会饱和（没有 VNNI）也运行 8 位内核：这里比较的是时间，不是结果。"),
    (r"^Medians of (\d+) blocks of (\d+) steps that alternate, compiled kernels on\.$",
     r"\1 个交替的块的中位数，每块 \2 步；启用编译的内核。"),
    (r"^The teacher has the student's size\. .*$", "教师与学生大小相同。交替的块的中位数。"),
    (r"^Untrained\.$", "未经训练。"),
]  # fmt: skip


def of_cell(text: str) -> str:
    """A heading or a cell of a table.

    Example:
        >>> of_cell("80 % sparse, 8 bits"), of_cell("how")
        ('80 % 稀疏，8 位', '命令与日期')
    """
    if text in WORDS:
        return WORDS[text]
    for pattern, chinese in _PARTS:
        text = re.sub(pattern, chinese, text)
    return text


def of_note(text: str) -> str:
    """A note below a table; one that is not known stays as it is."""
    for pattern, chinese in _NOTES:
        text = re.sub(pattern, chinese, text)
    return text
