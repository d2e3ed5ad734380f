"""Recording the first training batch, which shows where activations are quantized."""

from __future__ import annotations

from contextlib import AbstractContextManager

import lightning as L

from lightning_compress.foundation.recorded_forward import Tape, recording
from lightning_compress.quantization import Quantization


class FirstBatch:
    """Records training batches until one has gone through the network; meanwhile it runs in float."""

    def __init__(self) -> None:
        self._recording: AbstractContextManager[Tape] | None = None
        self._tape: Tape | None = None

    def begin(self, quantization: Quantization, module: L.LightningModule) -> None:
        """Record the batch that begins, where nothing has been recorded yet."""
        if quantization.gains_by_recording and self._recording is None:
            quantization.enabled = False
            self._recording = recording(module)
            self._tape = self._recording.__enter__()

    def loss_is_there(self, quantization: Quantization) -> bool:
        """Place the quantizers by what a step has recorded whose loss is about to be back-propagated."""
        return self._place(quantization, passed_over=False)

    def end(self, quantization: Quantization, *, automatic: bool) -> bool:
        """Place them by a step that has ended, or record the next one if this one passed its batch over.

        Args:
            quantization: The quantizers.
            automatic: Whether Lightning optimizes: then such a step has shown its loss before.

        Returns:
            Whether they were placed.
        """
        return self._place(quantization, passed_over=automatic or not _reads_parameters(self._tape))

    def close(self) -> None:
        """Stop recording."""
        if self._recording is not None:
            self._recording.__exit__(None, None, None)
        self._recording = self._tape = None

    def _place(self, quantization: Quantization, *, passed_over: bool) -> bool:
        tape = self._tape
        self.close()
        if tape is None or passed_over:
            return False
        quantization.place(tape)
        return True


def _reads_parameters(tape: Tape | None) -> bool:
    return tape is not None and any(value.parameter for op in tape.ops for value in op.inputs)
