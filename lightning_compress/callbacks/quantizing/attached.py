"""The quantizers of the module that is trained: made again, kept from an earlier fit, or taken from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.foundation import pytree
from lightning_compress.foundation.settings_diff import settle
from lightning_compress.quantization.attach import Quantization, find, install, strip
from lightning_compress.quantization.ranges.optimizer import RangeOptimizer
from lightning_compress.quantization.settings import QuantizationSettings


class AttachedQuantizers:
    """Quantizers of one module, and the optimizer of their learned ranges.

    Args:
        settings: What was asked for.
        range_lr: Learning rate of learned ranges.

    Attributes:
        found: The quantizers; ``None`` before the first fit.
        ranges: The optimizer of learned ranges.
        saved: State of a checkpoint that no module has taken yet.
        made_anew: Whether a checkpoint's quantizers were left out, since they are of other settings.

    Raises:
        CompressionError: The learning rate is not positive.
    """

    def __init__(self, settings: QuantizationSettings, range_lr: float) -> None:
        if isinstance(range_lr, bool) or not range_lr > 0:
            raise CompressionError.field(f"{settings.field}.range_lr", expected="a positive number", got=range_lr)
        self.found: Quantization | None = None
        self.ranges = RangeOptimizer(range_lr)
        self.saved: dict[str, Any] | None = None
        self.made_anew = False
        self._settings = settings
        self._said_float: Any = None

    @property
    def needed(self) -> Quantization:
        """The quantizers.

        Raises:
            CompressionError: There are none yet.
        """
        if self.found is None:
            raise CompressionError(f"{self._settings.field} is attached to no module: it works inside Trainer.fit.")
        return self.found

    def settle_changes(self, run: Mapping[str, Any], *, accept: bool) -> None:
        """Compare a checkpoint's settings with ours; quantizers of other settings are not taken over.

        Args:
            run: What decides on the run besides the settings of the quantizers.
            accept: Whether differences are accepted.

        Raises:
            CompressionError: There are differences, and they are not accepted.
        """
        self.made_anew = False
        if self.saved is None:
            return
        saved, now = dict(self.saved["settings"]), self._settings.as_dict()
        settle(
            {**saved, **self.saved["run"]},
            {**now, **run},
            self._settings.field,
            accept=accept,
            fix="start a new run from the weights alone",
        )
        if saved != now:
            self.saved, self.made_anew = None, True

    def restore(self, module: nn.Module) -> bool:
        """Attach what a checkpoint held, or take up what is attached already."""
        if self.saved is not None:
            strip(module)
            self.found = install(module, self._settings)
            self.found.load_state_dict(self.saved)
            self.ranges = RangeOptimizer(self.ranges.lr)
            self.ranges.load_state_dict(self.saved["range_optimizer"])
            self.saved = None
        return self.found is not None and find(module) is self.found

    def attach(self, module: L.LightningModule, example_inputs: Any) -> None:
        """Attach new quantizers, and place those of activations if there are inputs to record a forward with.

        Raises:
            CompressionError: The forward does not run with the inputs.
        """
        strip(module)
        self.found = install(module, self._settings)
        self.ranges = RangeOptimizer(self.ranges.lr)
        example = example_inputs if example_inputs is not None else module.example_input_array
        if example is None or not self.found.gains_by_recording:
            return
        field = f"{self._settings.field}.example_inputs"
        if example_inputs is None:
            field = f"{type(module).__name__}.example_input_array"
        try:
            self.found.record(pytree.tree_map_only(torch.Tensor, lambda t: t.to(module.device), example))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            strip(module)
            raise CompressionError(
                f"{field}: the forward of {type(module).__name__} does not run with it: {type(error).__name__}: {error}"
            ) from error

    def evaluate(self, trainer: L.Trainer, module: nn.Module) -> None:
        """Restore what a checkpoint held; where it held weights alone say once that they are evaluated in float."""
        self.restore(module)
        live = self.found is not None and self.found.enabled
        if trainer.state.fn == "fit" or trainer.ckpt_path is None or live or self._said_float == trainer.ckpt_path:
            return
        self._said_float = trainer.ckpt_path
        rank_zero_warn(
            f"{self._settings.field}: {trainer.ckpt_path} holds no live quantization: it has weights alone "
            f"(save_weights_only), or is from before the start of quantization. The network runs in float here. For "
            f"the quantized one, take a checkpoint with the callbacks' states."
        )

    def track_ranges(self) -> None:
        """Train the learned ranges of all quantizers that there are now."""
        self.ranges.track(self.needed.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Quantizers and optimizer as tensors and primitives; empty without quantizers."""
        if self.found is None:
            return {}
        return {**self.found.state_dict(), "range_optimizer": self.ranges.state_dict()}
