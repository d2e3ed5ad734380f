"""The dense weights that a compressed model is compared with: given, or those that the fit starts from."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from lightning_compress.delivery.dense_baseline import read_dense, refuse_other_model, save_dense
from lightning_compress.export.formats import AT_RESUME, AT_START, GIVEN
from lightning_compress.foundation.checksum import sha256


class DenseWeights:
    """Reads the dense weights that were given, or keeps a copy of those at the start of a fit in a file.

    Args:
        given: Checkpoint or ``state_dict`` of a trained dense model; ``None`` keeps the start's.
        target: The file of the copy.
        field: Name of the setting, for messages.

    Attributes:
        given: The file that was given.
        state: The weights by their names; ``None`` before a fit.
        source: Where they are from.
    """

    def __init__(self, given: Path | None, target: Path, field: str) -> None:
        self.given = given
        self.state: dict[str, Tensor] | None = None
        self.source = AT_START
        self._target, self._field = target, field
        self._module: weakref.ref[L.LightningModule] | None = None
        self._restored: dict[str, Any] | None = None

    def read_given(self) -> None:
        """Read the file that was given, if one was.

        Raises:
            CompressionError: It cannot be read.
        """
        if self.given is not None:
            self.state, self.source = read_dense(self.given, self._field), GIVEN

    def begin(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Check that the given weights are of this module; otherwise keep those that its first fit starts from.

        Raises:
            CompressionError: They are of another model.
        """
        if self.given is not None and self.state is not None:
            refuse_other_model(self.state, module, self._field)
        elif trainer.is_global_zero and (self._module is None or self._module() is not module):
            self._keep(trainer, module)
            self._module = weakref.ref(module)

    def _keep(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the weights that training starts from; a resumed run finds those of its beginning."""
        saved, self._restored = self._restored, None
        before = Path(saved["dense"]) if saved else None
        if before is not None and saved is not None and before.exists() and sha256(before) == saved["sha256"]:
            self.source = AT_START
            self.state = read_dense(before, self._field)
        else:
            self.source = AT_RESUME if trainer.ckpt_path is not None else AT_START
            self.state = {
                name: value.detach().cpu().clone()
                for name, value in module.state_dict().items()
                if isinstance(value, Tensor)
            }
        save_dense(self.state, self._target)

    def state_dict(self) -> dict[str, Any]:
        """Where the weights of the start are kept, for a run that resumes; empty where there are none."""
        if self.given is not None or self.source != AT_START or not self._target.exists():
            return {}
        return {"dense": str(self._target.absolute()), "sha256": sha256(self._target)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._restored = state if "dense" in state else None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the module: launchers that spawn processes pickle callbacks."""
        return {**self.__dict__, "_module": None}
