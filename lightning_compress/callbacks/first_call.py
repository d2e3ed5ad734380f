"""The call of the network that is exported, found in a fit's first step, and each format tried with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from lightning_compress.delivery.evaluation import duplicate, undisturbed
from lightning_compress.delivery.network_call import Entry, EntryWatch
from lightning_compress.errors import CompressionError, reason
from lightning_compress.export.formats import traced
from lightning_compress.export.rehearsal import refusals
from lightning_compress.export.signatures import called_through
from lightning_compress.foundation.example_inputs import in_float32, in_other_precision


class FirstCall:
    """Watches the steps of a fit until one has called the network, and rehearses the export with that call.

    Args:
        formats: What will be written.
        example_inputs: Inputs to export with, where they are not those of the call.
        module: Full name of the module to export, where the steps call several.
        dynamic_batch: Whether the batch is left free where that can be.
        refuses: Whether a format that cannot be written ends the fit; otherwise it is left out, with a warning.
        field: Name of the owner, for messages.

    Attributes:
        refused: Format that is left out → reason.
    """

    def __init__(
        self,
        formats: Sequence[str],
        example_inputs: Any,
        module: str | None,
        *,
        dynamic_batch: bool,
        refuses: bool,
        field: str,
    ) -> None:
        self.refused: dict[str, str] = {}
        self._formats = formats
        self._traced = traced(formats)
        self._example_inputs, self._module = example_inputs, module
        self._dynamic_batch, self._refuses, self._field = dynamic_batch, refuses, field
        self._entry: Entry | None = None
        self._watch: EntryWatch | None = None
        self._rehearsed = False

    def forget(self) -> None:
        """Start over, for another fit."""
        self._entry, self._rehearsed, self.refused = None, False, {}

    def watch(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Watch the step that begins, unless the call is known."""
        if self._entry is None and self._watch is None and trainer.state.fn == "fit":
            redirected = trainer.strategy.model is not module
            self._watch = EntryWatch(module, module=self._module, redirected=redirected, field=self._field)

    def found(self, *, required: bool) -> None:
        """Take what the step has called.

        Args:
            required: Whether a step that called nothing is refused.
        """
        watch = self._watch
        self.close()
        if watch is not None and (watch.names or required):
            try:
                self._entry = watch.entry()
            except CompressionError as error:
                # A file that holds the module whole needs no call of it.
                self._entry, self._rehearsed = Entry("", (), {}), True
                self._refuse(dict.fromkeys(self._traced, str(error)))

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def seen(self) -> Entry:
        """The call as a step made it.

        Raises:
            CompressionError: No step ran.
        """
        if self._entry is None:
            raise CompressionError(
                f"{self._field}: no step ran, so it is not known what to export. Train for at least one batch."
            )
        return self._entry

    def exported(self, module: L.LightningModule) -> Entry:
        """The call that is exported: with the inputs that were given, or ``example_input_array``, or its own."""
        seen, given = self.seen(), self._example_inputs
        if not seen.known:
            return seen
        if given is None and seen.name == "":
            given = module.example_input_array
        network = called_through(duplicate(module), seen.name)
        if given is None:
            return seen.without_labels(network)
        return seen.with_inputs(in_float32(given) if in_other_precision(module) else given, network)

    def rehearse(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Trace a copy of the network for each format, once a fit, in one process for all.

        Raises:
            CompressionError: A format cannot be written, and that is to be refused.
        """
        if self._rehearsed or self._entry is None or not self._traced:
            return
        self._rehearsed, refused = True, dict[str, str]()
        if trainer.is_global_zero:
            with undisturbed():
                try:
                    entry = self.exported(module)
                    copied = called_through(duplicate(module), entry.name)
                    refused = refusals(copied, entry.example_inputs, self._traced, dynamic_batch=self._dynamic_batch)
                except Exception as error:  # Of any kind: the module is the user's.
                    refused = dict.fromkeys(self._traced, reason(error))
        self._refuse(trainer.strategy.broadcast(refused))

    def _refuse(self, refused: dict[str, str]) -> None:
        """End the fit for formats that cannot be written, or leave them out."""
        if not refused:
            return
        why = " ".join(dict.fromkeys(refused.values()))
        if self._refuses:
            left = [item for item in self._formats if item not in refused]
            raise CompressionError(
                f"{self._field}.formats: {', '.join(refused)} cannot be written for this network, which was found "
                f"before the first optimizer step: {why} To train all the same, give formats={left or ['packed']}, or "
                f"on_error='warn'."
            )
        rank_zero_warn(f"{self._field}: the fit goes on without {', '.join(refused)}: {why}")
        self.refused = refused
