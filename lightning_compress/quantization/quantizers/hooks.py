"""Activation quantizers in a live model: at the boundaries of modules, and at functions that modules call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import _global_forward_hooks

from lightning_compress.foundation.attention import attend_in_steps
from lightning_compress.foundation.boundary import Boundary, passed_at
from lightning_compress.foundation.function_calls import CallHook
from lightning_compress.foundation.nested import Key, replaced_arguments, replaced_at
from lightning_compress.quantization.fake_quantize import functional as kernels
from lightning_compress.quantization.quantizers.activation import ActivationQuantizer
from lightning_compress.quantization.quantizers.switch import Switch

# Modules that make a new tensor which autograd does not keep for their own backward: it can be quantized in place.
_UNSAVED = frozenset(
    {
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GELU, nn.Linear,
        nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    }
)  # fmt: skip
_CLIPS: dict[type[nn.Module], kernels.Clip] = {nn.ReLU: (0.0, math.inf), nn.ReLU6: (0.0, 6.0)}


class ActivationHook:
    """Quantizes a tensor at a module's boundary.

    Args:
        quantizer: The quantizer.
        paths: Where the tensor stands in the arguments or the result.
        switch: What the model's quantizers share.
    """

    def __init__(self, quantizer: ActivationQuantizer, paths: Sequence[tuple[Key, ...]], switch: Switch) -> None:
        self.quantizer = quantizer
        self.paths = list(paths)
        self.switch = switch
        # What a ReLU left to do, between its forward and ``leave``.
        self.clip: kernels.Clip | None = None

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the module's forward: quantize an argument."""
        if not self.switch.enabled:
            return None
        return replaced_arguments(args, kwargs, passed_at(module, args, kwargs, self.paths), self.quantizer)

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """After the module's forward: quantize its result."""
        if not self.switch.enabled:
            return None
        clip, self.clip = self.clip, None
        if clip is not None:
            return self.quantizer(output, clip)
        if type(module) in _UNSAVED and isinstance(output, torch.Tensor) and self._alone(module):
            return self.quantizer(output, None, output)
        return replaced_at(output, self.paths, self.quantizer)

    def at_call(self, place: Boundary) -> CallHook:
        """The same at a function that a module's own forward calls."""
        if place.side == "weights":
            return CallHook(place.function, place.call, instead=self._attend)
        if place.side == "input":
            return CallHook(place.function, place.call, before=self._before)
        return CallHook(place.function, place.call, after=self._after)

    def _before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return replaced_arguments(args, kwargs, self.paths, self.quantizer) if self.switch.enabled else (args, kwargs)

    def _attend(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self.switch.enabled:
            return F.scaled_dot_product_attention(*args, **kwargs)
        return attend_in_steps(*args, **kwargs, weights=self.quantizer)

    def _after(self, result: Any) -> Any:
        return replaced_at(result, self.paths, self.quantizer) if self.switch.enabled else result

    def clips(self, module: nn.Module, args: tuple[Any, ...]) -> bool:
        """Whether a ReLU need not do its work in this call, since the quantizer does it as well."""
        if not self.switch.enabled or not torch.is_grad_enabled() or len(args) != 1:
            return False
        return isinstance(args[0], torch.Tensor) and args[0].requires_grad and self._alone(module)

    def _alone(self, module: nn.Module) -> bool:
        """Whether the whole result is quantized, and no other hook sees it before, and may keep it."""
        first = next(iter(module._forward_hooks.values()), None)
        return (
            self.paths == [()]
            and first == self.leave
            and not _global_forward_hooks
            and not torch.compiler.is_compiling()
        )


class ClipForward:
    """Stands in for the forward of a ReLU whose result is quantized: one pass and one mask then serve both.

    Args:
        module: ReLU or ReLU6.
        hook: The one that quantizes its result.
    """

    def __init__(self, module: nn.Module, hook: ActivationHook) -> None:
        self.module = module
        self.hook = hook
        self._called_with: torch.Tensor | None = None
        self._handle = module.register_forward_pre_hook(self.enter)
        # Found before the class's own, like a shadowed weight.
        module.__dict__["forward"] = self.forward

    @staticmethod
    def serves(module: nn.Module) -> bool:
        """Whether a quantizer can do the module's work."""
        return type(module) in _CLIPS and not module.inplace and "forward" not in module.__dict__

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the forward of a call: behind one that is run by itself, no hook would quantize."""
        if self.hook.clips(module, args):
            self._called_with = args[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The input, where the quantizer clips it."""
        x, self._called_with = self._called_with, None
        if x is not None and not kwargs and len(args) == 1 and args[0] is x:
            self.hook.clip = _CLIPS[type(self.module)]
            return x
        return type(self.module).forward(self.module, *args, **kwargs)

    def remove(self) -> None:
        """Give the module its own forward back, unless somebody set another one since."""
        self._handle.remove()
        if self.module.__dict__.get("forward") == self.forward:
            del self.module.__dict__["forward"]


class Unnested:
    """Keeps an encoder from packing padded batches into nested tensors, which no quantizer can take.

    Args:
        encoder: The encoder, which would do so in evaluation.
    """

    def __init__(self, encoder: nn.TransformerEncoder) -> None:
        self._encoder = encoder
        self._before = encoder.use_nested_tensor
        encoder.use_nested_tensor = False

    def remove(self) -> None:
        """Let the encoder do again what it did before."""
        self._encoder.use_nested_tensor = self._before
