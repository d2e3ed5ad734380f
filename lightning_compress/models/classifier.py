"""A plain classifier in Lightning. It knows nothing of compression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress.errors import CompressionError

Batch = tuple[Tensor, Tensor]


class Classifier(L.LightningModule):
    """Cross-entropy training of a network, with accuracy on validation and test data.

    Args:
        net: Maps float32 [B, ...] to logits float32 [B, num_classes].
        num_classes: Number of classes.
        lr: Highest learning rate.
        weight_decay: Decay of weights; biases and norms are left alone.
        optimizer: ``"sgd"`` (Nesterov momentum 0.9) or ``"adamw"``.
        scheduler: ``"cosine"`` to 0 over the run, step by step, or ``"constant"``.
        warmup: Share of the run over which the rate rises linearly from 0.
        label_smoothing: Share of the target spread over all classes.
        input_shape: Shape of one sample; gives the module its ``example_input_array``.
        tokens: Whether samples are token numbers (int64) and not float32.
        channels_last: Whether weights of 2-d convolutions, and so all their results, lie channels last in memory.

    Raises:
        CompressionError: A setting is out of its range.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        num_classes: int,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: Literal["sgd", "adamw"] = "adamw",
        scheduler: Literal["cosine", "constant"] = "cosine",
        warmup: float = 0.05,
        label_smoothing: float = 0.0,
        input_shape: Sequence[int] | None = None,
        tokens: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        choices = {
            "optimizer": (optimizer, ("sgd", "adamw")),
            "scheduler": (scheduler, ("cosine", "constant")),
        }
        for field, (value, allowed) in choices.items():
            if value not in allowed:
                raise CompressionError.field(f"model.{field}", expected=f"one of {', '.join(allowed)}", got=value)
        for field, number in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= number < math.inf:
                raise CompressionError.field(f"model.{field}", expected="a finite number, at least 0", got=number)
        for field, number in (("warmup", warmup), ("label_smoothing", label_smoothing)):
            if not 0 <= number < 1:
                raise CompressionError.field(f"model.{field}", expected="a share in [0, 1)", got=number)
        self.net = net.to(memory_format=torch.channels_last) if channels_last else net  # type: ignore[call-overload]
        self.lr, self.weight_decay, self.optimizer, self.scheduler = lr, weight_decay, optimizer, scheduler
        self.warmup, self.label_smoothing = warmup, label_smoothing
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")
        if input_shape is not None:
            self.example_input_array = torch.zeros(1, *input_shape, dtype=torch.int64 if tokens else torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 [B, num_classes]."""
        logits: Tensor = self.net(x)
        return logits

    def scores(self, batch: Batch) -> Batch:
        """Logits float32 [N, num_classes] of a batch, and its classes int64 [N].

        Args:
            batch: Inputs [N, ...] and classes int64 [N].
        """
        x, y = batch
        return self(x), y

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        logits, y = self.scores(batch)
        loss = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``val/loss`` and ``val/acc``."""
        self._evaluate(batch, "val", self.val_acc)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``test/loss`` and ``test/acc``."""
        self._evaluate(batch, "test", self.test_acc)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, and a learning rate that changes at every optimizer step."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.lr)
        steps = float(self.trainer.estimated_stepping_batches)
        if self.scheduler == "cosine" and not math.isfinite(steps):
            raise CompressionError(
                "model.scheduler: 'cosine' needs a run of known length; set trainer.max_steps or "
                "trainer.max_epochs, or use model.scheduler=constant."
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, step: int, steps: float) -> float:
        warmup = self.warmup * steps if math.isfinite(steps) else 0.0
        rise = min(1.0, (step + 1) / warmup) if warmup >= 1 else 1.0
        fall = (1 + math.cos(math.pi * min(1.0, step / steps))) / 2 if self.scheduler == "cosine" else 1.0
        return rise * fall

    def _evaluate(self, batch: Batch, part: str, accuracy: MulticlassAccuracy) -> Batch:
        logits, y = self.scores(batch)
        accuracy(logits, y)
        self.log(f"{part}/acc", accuracy, on_step=False, on_epoch=True, prog_bar=True)
        loss = F.cross_entropy(logits, y)
        self.log(f"{part}/loss", loss, on_step=False, on_epoch=True, batch_size=len(y), sync_dist=True)
        return logits, y
