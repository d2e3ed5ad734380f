"""What ``accuracy.py`` measures: a network on a data set, and the ways it is compressed."""

from __future__ import annotations

from dataclasses import dataclass, field

Rows = dict[str, list[str]]
"""Name of a row → what it adds to the settings of its task."""


@dataclass(frozen=True)
class Task:
    """A network on a data set, and the ways it is compressed.

    Attributes:
        title: What tables call it.
        settings: Of all its runs.
        epochs: Of the dense control and of every row.
        rows: Name → what a row adds to the settings.
        pretraining: Epochs of the control that the dense control and the rows start from; 0 starts from random weights.
        fine_tuning: What the dense control and the rows add after a pretraining.
    """

    title: str
    settings: list[str]
    epochs: int
    rows: Rows
    pretraining: int = 0
    fine_tuning: list[str] = field(default_factory=list)


def pruned(percent: float, *more: str) -> list[str]:
    """Global magnitude pruning on the cubic schedule."""
    return ["pruning=global", f"pruning.final_sparsity={percent / 100:.4g}", *more]


def quantized(bits: int, *more: str) -> list[str]:
    """Quantization-aware training; below 8 bits with learned steps."""
    return [f"quantization=w{bits}a{bits}", *([] if bits == 8 else ["quantization.range=learned"]), *more]


DISTILLATION = "distillation=logits"
FROM_TRAINED = "quantization.start=0"
"""A network that is trained already is quantized from the first step on."""

JOINT: Rows = {
    "80 % sparse, 8 bits": pruned(80, *quantized(8)),
    "90 % sparse, 4 bits": pruned(90, *quantized(4)),
}
BITS: Rows = {f"{bits} bits": quantized(bits) for bits in (8, 4, 3, 2)}
DISTILLED: Rows = {
    "2 bits, distilled": quantized(2, DISTILLATION),
    "95 % sparse, distilled": pruned(95, DISTILLATION),
}
LENET5 = (
    "{_target_: lightning_compress.models.Classifier.load_from_checkpoint, checkpoint_path: CHECKPOINT, "
    "num_classes: 10, "
    "net: {_target_: lightning_compress.models.LeNet5, in_channels: 1, image_size: 28, num_classes: 10}}"
)
TAUGHT: Rows = {"95 % sparse, taught by LeNet-5": pruned(95, DISTILLATION, f"distillation.teacher={LENET5}")}
"""Rows with a better network as the teacher: the dense control of the LeNet-5 task, of the same seed."""


def descent(widths: list[int]) -> list[str]:
    """Weights and activations whose bits fall in equal stages of the run."""
    stages = ", ".join(f"{stage / len(widths):.2f}: {bits}" for stage, bits in enumerate(widths))
    plan = [f"quantization.{what}_bits={{{stages}}}" for what in ("weight", "activation")]
    return [*quantized(widths[-1], FROM_TRAINED), *plan]


BASIC: Rows = {
    "8 bits": quantized(8, FROM_TRAINED),
    "4 bits": quantized(4, FROM_TRAINED),
    "80 % sparse": pruned(80),
    "80 % sparse, 8 bits": pruned(80, *quantized(8, FROM_TRAINED)),
}
"""The rows of every task that starts from a trained control, most important first."""

HALF: Rows = {
    "half the multiply-adds": [
        "pruning=channel",
        "pruning.final_sparsity=0.3",
        "pruning.distribution=uniform",
        "pruning.channel_multiple=8",
    ],
}
SPARSE_90: Rows = {
    "90 % sparse, uniform": pruned(90, "pruning.distribution=uniform"),
    "90 % sparse, ERK": pruned(90, "pruning.distribution=erk"),
    "90 % sparse, one-shot": pruned(90, "pruning.schedule=constant"),
    "90 % sparse, ERK, RigL": pruned(90, "pruning.distribution=erk", "pruning.regrow=gradient"),
}

CONVOLUTIONAL: Rows = BASIC | {
    "3 bits": quantized(3, FROM_TRAINED),
    "2 bits": quantized(2, FROM_TRAINED),
    "90 % sparse": pruned(90),
    "95 % sparse": pruned(95),
    "70 % sparse": pruned(70),
    "90 % sparse, 4 bits": pruned(90, *quantized(4, FROM_TRAINED)),
    **HALF,
    **{f"{name}, 8 bits": [*row, *quantized(8, FROM_TRAINED)] for name, row in HALF.items()},
    "2:4": ["pruning=2to4"],
    "4 bits, distilled": quantized(4, FROM_TRAINED, DISTILLATION),
    "3 bits, 8 → 4 → 3, distilled": [*descent([8, 4, 3]), DISTILLATION],
    "2 bits, 8 → 4 → 3 → 2, distilled": [*descent([8, 4, 3, 2]), DISTILLATION],
    "90 % sparse, distilled": pruned(90, DISTILLATION),
    "95 % sparse, distilled": pruned(95, DISTILLATION),
    **SPARSE_90,
    "4 bits, observed ranges": ["quantization=w4a4", FROM_TRAINED],
    "8 bits, learned ranges": quantized(8, FROM_TRAINED, "quantization.range=learned"),
}
"""The rows of a network of convolutions that starts from a trained control."""


def keeping_depthwise(rows: Rows) -> Rows:
    """Rows whose pruning leaves depthwise convolutions alone, which have few weights."""
    return {
        name: [*row, 'pruning.ignore=["re:.*depthwise"]'] if "sparse" in name else row for name, row in rows.items()
    }


ABLATIONS: Rows = {
    **{
        f"{bits} bits, {how} ranges": [f"quantization=w{bits}a{bits}", FROM_TRAINED, f"quantization.range={method}"]
        for bits in (8, 4, 2)
        for how, method in (("observed", "minmax"), ("learned", "learned"))
    },
    # With a learning rate of zero, ranges are observed and weights stay: calibration alone.
    **{
        f"{bits} bits, calibrated": [*quantized(bits, FROM_TRAINED), "quantization.range=mse", "model.lr=0"]
        for bits in (8, 4, 2)
    },
    **{
        f"80 % sparse, 4 bits from {start:.0%}": pruned(80, *quantized(4, f"quantization.start={start}"))
        for start in (0, 0.3, 0.6, 0.8)
    },
    **{
        f"{percent} % sparse, {name}": pruned(percent, f"pruning.distribution={name}")
        for percent in (90, 95)
        for name in ("global", "erk")
    },
    **{f"95 % sparse, {epochs} epochs": pruned(95, f"trainer.max_epochs={epochs}") for epochs in (1, 4, 8)},
    **{f"2 bits, {epochs} epochs": quantized(2, FROM_TRAINED, f"trainer.max_epochs={epochs}") for epochs in (1, 4, 8)},
    "2 bits, distilled": quantized(2, FROM_TRAINED, DISTILLATION),
    "95 % sparse, distilled": pruned(95, DISTILLATION),
}
"""One choice changed at a time."""


def _cifar10(title: str, model: str, pretraining: int, more: list[str]) -> Task:
    """A network on the JPEG copies of CIFAR-10, from a control of a one-cycle schedule."""
    settings = [
        "data=cifar10",
        f"model={model}",
        "data.augment=crop_flip",
        "data.val_fraction=0.02",
        "model.channels_last=true",
        "model.label_smoothing=0.05",
        *more,
    ]
    return Task(f"CIFAR-10 (JPEG q75), {title}", settings, 3, CONVOLUTIONAL, pretraining, ["model.lr=0.02"])


TASKS = {
    "fashion_mnist_mlp": Task(
        "Fashion-MNIST, MLP",
        ["data=fashion_mnist", "model=mlp", "data.batch_size=256", "model.lr=0.002", "model.label_smoothing=0.1"],
        15,
        {f"{p:g} % sparse": pruned(p) for p in (73.4, 81.5, 87.2, 91.1, 93.7, 95, 98)}
        | BITS
        | JOINT
        | DISTILLED
        | TAUGHT,
    ),
    "fashion_mnist_lenet5": Task(
        "Fashion-MNIST, LeNet-5",
        [
            "data=fashion_mnist",
            "model=lenet5",
            "model.lr=0.002",
            "model.label_smoothing=0.05",
            "model.channels_last=true",
        ],
        6,
        {f"{p:g} % sparse": pruned(p) for p in (70, 80, 90, 95)} | BITS | JOINT | DISTILLED,
    ),
    "ablations_fashion_mnist_lenet5": Task(
        "Fashion-MNIST, LeNet-5, one choice at a time",
        [
            "data=fashion_mnist",
            "model=lenet5",
            "model.lr=0.002",
            "model.label_smoothing=0.05",
            "model.channels_last=true",
        ],
        2,
        ABLATIONS,
        pretraining=6,
        fine_tuning=["model.lr=0.0005"],
    ),
    "banking77_encoder": Task(
        "Banking77, two-block transformer encoder",
        ["data=text_banking77", "model=text_encoder"],
        4,
        BASIC,
        pretraining=12,
        fine_tuning=["model.lr=0.001"],
    ),
    "clinc150_encoder": Task(
        "CLINC150, two-block transformer encoder",
        ["data=text_clinc150", "model=text_encoder"],
        4,
        BASIC,
        pretraining=12,
        fine_tuning=["model.lr=0.001"],
    ),
    "fsdd_dscnn": Task(
        "Spoken digits, DS-CNN",
        ["data=fsdd", "model=dscnn", "model.channels_last=true"],
        8,
        {name: [*row, 'pruning.ignore=["re:.*depthwise"]'] if "sparse" in name else row for name, row in BASIC.items()},
        pretraining=24,
        fine_tuning=["model.lr=0.001"],
    ),
    "shakespeare_gpt": Task(
        "Shakespeare by characters, two-block GPT",
        ["data=tinyshakespeare", "model=gpt", "model.net.dim=96", "model.net.depth=2"],
        2,
        BASIC,
        pretraining=6,
        fine_tuning=["model.lr=0.001"],
    ),
    "cifar10_resnet20": Task(
        "CIFAR-10 (JPEG q75), ResNet-20, four epochs in all",
        ["data=cifar10", "model=resnet20", "data.augment=crop_flip", "model.channels_last=true"],
        1,
        {f"{p} % sparse": pruned(p) for p in (70, 80, 90, 95)}
        | {f"{bits} bits": quantized(bits, FROM_TRAINED) for bits in (8, 4, 3, 2)}
        | HALF
        | SPARSE_90
        | JOINT
        | DISTILLED,
        pretraining=3,
        fine_tuning=["model.lr=0.03"],
    ),
    "cifar10_jpeg_resnet20": _cifar10("ResNet-20", "resnet20", 24, ["trainer.precision=bf16-mixed"]),
    "cifar10_jpeg_resnet8": _cifar10("ResNet-8", "resnet8", 36, ["trainer.precision=bf16-mixed"]),
    "cifar10_jpeg_dscnn": Task(
        "CIFAR-10 (JPEG q75), DS-CNN",
        [
            "data=cifar10",
            "model=dscnn",
            "model.net.width=96",
            "data.augment=crop_flip",
            "data.val_fraction=0.02",
            "model.channels_last=true",
        ],
        3,
        keeping_depthwise(BASIC),
        pretraining=36,
        fine_tuning=["model.lr=0.0005"],
    ),
}
