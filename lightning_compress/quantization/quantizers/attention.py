"""``nn.MultiheadAttention`` whose four projections can be quantized one by one."""

from __future__ import annotations

from functools import partial

from torch import nn

from lightning_compress.foundation.attention import attend


class SeparateProjections:
    """Stands in for the forward of an attention layer, which one function of PyTorch computes as a whole.

    Args:
        module: The layer.
    """

    def __init__(self, module: nn.MultiheadAttention) -> None:
        self.module = module
        module.__dict__["forward"] = partial(attend, module)

    @staticmethod
    def serves(module: nn.MultiheadAttention) -> bool:
        """Whether the layer's forward is PyTorch's own."""
        return type(module).forward is nn.MultiheadAttention.forward and "forward" not in module.__dict__

    def remove(self) -> None:
        """Give the layer its own forward back, unless somebody set another one since."""
        forward = self.module.__dict__.get("forward")
        if isinstance(forward, partial) and forward.func is attend:
            del self.module.__dict__["forward"]
