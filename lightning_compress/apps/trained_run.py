"""Reading a trained run from its directory: config, data, checkpoints and report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from typing_extensions import override

from lightning_compress.apps.configuration.instantiate import instantiate
from lightning_compress.apps.configuration.saved_config import CONFIG
from lightning_compress.apps.regular_file import regular_text
from lightning_compress.apps.train.outcome import RESULT_FILE
from lightning_compress.delivery.dense_baseline import read_dense
from lightning_compress.delivery.evaluation import EvaluationData, duplicate, quiet_trainer, undisturbed
from lightning_compress.delivery.network_call import Entry, EntryWatch
from lightning_compress.errors import CompressionError
from lightning_compress.export.formats import DENSE_STATE, FORMATS
from lightning_compress.export.packed.layout import PLAIN
from lightning_compress.export.packed.reader import PackedReader
from lightning_compress.export.packed.save_load import load_packed
from lightning_compress.export.signatures import called_through
from lightning_compress.lightning_packages import is_instance

Split = Literal["val", "test"]


@dataclass
class TrainedRun:
    """What a run trained, and what it trained on.

    Attributes:
        folder: The run's directory.
        cfg: Its config, with the overrides that were given since.
        module: The module as it was trained, fake-quantized.
        source: Where the module's weights are from.
        dense: ``state_dict`` of the dense control, if there is one.
        dense_source: Where it is from.
        data: What to evaluate on.
        entry: The call of the network in a step.
        notes: What a reader should know.
    """

    folder: Path
    cfg: DictConfig
    module: L.LightningModule
    source: Path
    dense: dict[str, Tensor] | None
    dense_source: Path | None
    data: EvaluationData
    entry: Entry
    notes: list[str] = field(default_factory=list)


def find_run(path: Path) -> Path:
    """The directory of the run that a file belongs to: the file's own, or the one that this one lies in.

    A config further up may be of anybody who can write there, and is not looked for.

    Raises:
        CompressionError: There is none.
    """
    for folder in path.absolute().parents[:2]:
        if (folder / CONFIG).is_file():
            return folder
    raise CompressionError.field(
        "verify PATH",
        expected=f"a file that lies in the directory of a run of lightning-compress train, or one below it ({CONFIG})",
        got=str(path),
        fix="Name the run's directory with --run. Without one, call lightning_compress.export.verification with the "
        "model and its data.",
    )


def read_run(folder: Path, path: Path, cfg: DictConfig, split: Split, *, trust: bool = False) -> TrainedRun:
    """Build the module and its data, and load what was trained.

    Args:
        folder: The run's directory.
        path: The file that is verified.
        cfg: The run's config.
        split: Which data.
        trust: Whether its checkpoint may be loaded if it holds more than tensors and primitives.

    Raises:
        CompressionError: There is no checkpoint, or it does not fit the config.
    """
    L.seed_everything(int(cfg.get("seed") or 0), workers=True, verbose=False)
    data = instantiate(cfg.data, "data")
    module = instantiate(cfg.model, "model")
    if not is_instance(module, L.LightningModule):
        raise CompressionError.field("model._target_", expected="a LightningModule", got=type(module).__name__)
    notes: list[str] = []
    checkpoint, packed = _trained(folder, path, notes)
    callbacks = [instantiate(cfg[group], group) for group in ("pruning", "quantization") if cfg.get(group)]
    if packed is not None:
        load_packed(packed, module)
        callbacks = []
    entry = _restored(module, data, split, callbacks, checkpoint, cfg, trust)
    if split == "val":
        data.setup("fit")
    dense = next((p for p in _dense_candidates(folder, path) if p.is_file()), None)
    return TrainedRun(
        folder=folder,
        cfg=cfg,
        module=module,
        source=packed or checkpoint or path,
        dense=None if dense is None else read_dense(dense, "verify: the dense control"),
        dense_source=dense,
        data=EvaluationData(split, datamodule=data),
        entry=entry,
        notes=notes,
    )


class _Watch(Callback):
    """Sees which module a step calls, and with what."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self._watch: EntryWatch | None = None
        self.entry: Entry | None = None

    @override
    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._watch = EntryWatch(pl_module, module=self.name, field="verify")

    @override
    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._watch is not None:
            self._watch.close()
            self.entry = self._watch.entry()

    @override
    def on_test_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.on_validation_batch_start(trainer, pl_module)

    @override
    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.on_validation_batch_end(trainer, pl_module)


def _restored(
    module: L.LightningModule,
    data: Any,
    split: Split,
    callbacks: list[Callback],
    checkpoint: Path | None,
    cfg: Any,
    trust: bool,
) -> Entry:
    """Let Lightning load the checkpoint, callbacks and all, and run one batch."""
    watch = _Watch(OmegaConf.select(cfg, "export.module"))
    with undisturbed():
        trainer = quiet_trainer(module, EvaluationData(split, limit=1), [*callbacks, watch])
        run = trainer.validate if split == "val" else trainer.test
        try:
            run(module, datamodule=data, ckpt_path=checkpoint, weights_only=not trust, verbose=False)
        except UnpicklingError as error:
            raise CompressionError(
                f"{checkpoint}: holds more than tensors and primitives, and loading that runs its code. If it is "
                f"yours, add --trust (in Python: trust=True)."
            ) from error
        except (RuntimeError, KeyError) as error:
            raise CompressionError(f"{checkpoint}: does not fit the config of its run: {error}") from error
    if watch.entry is None:
        raise CompressionError(f"verify: there is no {split} data to run on.")
    return watch.entry.without_labels(called_through(duplicate(module), watch.entry.name))


def _trained(folder: Path, path: Path, notes: list[str]) -> tuple[Path | None, Path | None]:
    """A checkpoint of what was exported, or else the packed file of the same export."""
    packed = path.parent / FORMATS["packed"].file
    named = _result(folder).get("checkpoint")
    # A directory that was moved has its checkpoints still, elsewhere than its result says.
    checkpoints = [folder / "checkpoints" / Path(named).name, Path(named)] if named else []
    checkpoints += sorted((folder / "checkpoints").glob("*.ckpt"))
    checkpoints = [item for item in dict.fromkeys(checkpoints) if item.is_file()]
    if packed.is_file() and packed != path:
        # A checkpoint that was best may be of an earlier step than what the fit ended with, which was exported.
        same = next((item for item in checkpoints if _same_floats(item, packed)), None)
        if same is None:
            notes.append(
                f"No checkpoint holds the weights that were exported: {packed.name} stands for the trained model."
            )
            return None, packed
        return same, None
    if not checkpoints:
        raise CompressionError(
            f"{folder}: there is no checkpoint of the trained model, nor another packed file, to compare with."
        )
    return checkpoints[0], None


def _same_floats(checkpoint: Path, packed: Path) -> bool:
    """Whether a checkpoint has, bit for bit, the tensors that the packed file stores as they are."""
    state = read_dense(checkpoint, "verify: the checkpoint")
    with PackedReader(packed) as reader:
        names = [name for name, entry in reader.entries.items() if entry.kind == PLAIN]
        return reader.entries.keys() == state.keys() and all(
            torch.equal(state[name], reader.tensor(name)) for name in names
        )


def _dense_candidates(folder: Path, path: Path) -> Iterator[Path]:
    if (text := _result(folder).get("dense_checkpoint")) is not None:
        yield folder / "dense" / Path(text).name
        yield Path(text)
    yield folder / "dense" / "dense.ckpt"
    yield path.parent / DENSE_STATE


def _result(folder: Path) -> dict[str, Any]:
    path = folder / RESULT_FILE
    try:
        content = json.loads(regular_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
