"""Memory for what backward needs, used again at the next step.

The operating system takes back what a step frees and hands it out again page by page; on a virtual machine that
costs as much as filling it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Buffer = NDArray[np.int32]


class StepMemory:
    """Buffers of one quantizer. A tensor made of one gives it back when nothing refers to it any longer.

    Example:
        >>> memory = StepMemory()
        >>> address = memory.take(100).data_ptr()
        >>> memory.take(80).data_ptr() == address
        True
    """

    def __init__(self) -> None:
        self._free: list[Buffer] = []

    def take(self, count: int) -> torch.Tensor:
        """An int32 tensor ``[count]`` with whatever values lie there."""
        buffer: Buffer | None = None
        # Smaller ones are of smaller batches, and go.
        while self._free and (buffer is None or buffer.size < count):
            buffer = self._free.pop()
        if buffer is None or buffer.size < count:
            buffer = np.empty(count, dtype=np.int32)
        tensor = torch.from_numpy(np.asarray(_Loan(buffer, self._free)))
        return tensor if buffer.size == count else tensor[:count]

    def __reduce__(self) -> tuple[type[StepMemory], tuple[()]]:
        # Copies and pickles start without memory.
        return StepMemory, ()


class _Loan:
    """Stands behind an array as its owner, and returns the buffer with it."""

    def __init__(self, buffer: Buffer, free: list[Buffer]) -> None:
        self.buffer, self.free = buffer, free
        self.__array_interface__: dict[str, Any] = buffer.__array_interface__

    def __del__(self) -> None:
        self.free.append(self.buffer)
