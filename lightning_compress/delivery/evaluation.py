"""Running a LightningModule's own evaluation with another form of the network, such as a written file."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import Metric
from typing_extensions import override

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.example_inputs import in_float32, in_other_precision
from lightning_compress.foundation.nested import tensors
from lightning_compress.foundation.pytree import tree_leaves
from lightning_compress.lightning_packages import base_of, is_overridden, package_of

Split = Literal["val", "test"]
_STEP = {"val": "validation_step", "test": "test_step"}
_STAGE = {"val": "validation", "test": "test"}
_LOADER = {"val": "val_dataloader", "test": "test_dataloader"}


@dataclass(frozen=True)
class EvaluationData:
    """What an evaluation runs on.

    Attributes:
        split: ``"val"`` runs ``validation_step``, ``"test"`` runs ``test_step``.
        dataloaders: One or several dataloaders; ``None`` takes those of the data module, or the module's own.
        datamodule: A data module that is set up.
        limit: Batches, or share of batches, of each dataloader.
        float32: Whether batches are brought into float32, as ``duplicate`` brought the module.
    """

    split: Split
    dataloaders: Any = None
    datamodule: L.LightningDataModule | None = None
    limit: int | float = 1.0
    float32: bool = False

    @classmethod
    def of(cls, trainer: L.Trainer, split: Split, dataloaders: Any = None) -> EvaluationData:
        """The data of a Trainer that has fitted, without touching the Trainer."""
        datamodule = getattr(trainer, "datamodule", None) if dataloaders is None else None
        module = trainer.lightning_module
        own = datamodule is not None or is_overridden(_LOADER["val"], module, L.LightningModule)
        if dataloaders is None and split == "val" and not own:
            dataloaders = trainer.val_dataloaders
        limit = trainer.limit_val_batches if split == "val" else trainer.limit_test_batches
        return cls(split, _whole(dataloaders), datamodule, limit or 1.0, in_other_precision(module))

    def refuse_missing(self, module: L.LightningModule, field: str) -> None:
        """Check that there is a step to run and data to run it on.

        Raises:
            CompressionError: There is not.
        """
        step, loader = _STEP[self.split], _LOADER[self.split]
        if not is_overridden(step, module, L.LightningModule):
            raise CompressionError.field(
                f"{field}.split",
                expected=f"a split that {type(module).__name__} evaluates",
                got=self.split,
                fix=f"{self._other(module)}Define {step}, or give verify=False.",
            )
        source: Any = module if self.datamodule is None else self.datamodule
        kind: type = L.LightningModule if source is module else L.LightningDataModule
        if self.dataloaders is None and not is_overridden(loader, source, kind):
            raise CompressionError.field(
                f"{field}.split",
                expected="a split that has data",
                got=self.split,
                fix=f"{type(source).__name__} has no {loader}, and fit() was given none, or limit_{self.split}_batches "
                "is 0. Give CompressedExport dataloaders=..., or verify=False.",
            )

    def _other(self, module: L.LightningModule) -> str:
        """The split that the module does evaluate, as advice."""
        other = "val" if self.split == "test" else "test"
        return f"Give split={other!r}. " if is_overridden(_STEP[other], module, L.LightningModule) else ""

    def refuse_empty(self, loaders: Any, field: str) -> None:
        """Check that there is a batch in what the split's loaders are.

        Args:
            loaders: One, or lists and dicts of them; ``None`` where they are not known yet.
            field: Name of the owner, for messages.

        Raises:
            CompressionError: All of them are empty.
        """
        given = tree_leaves(loaders if self.dataloaders is None else self.dataloaders)
        if not any(map(_has_batches, given)):
            raise CompressionError.field(
                f"{field}.split",
                expected=f"a split with data; the {self.split} data has no batch",
                got=self.split,
                fix="Make it longer than a batch, or set drop_last=False; or give verify=False.",
            )


def _has_batches(loader: Any) -> bool:
    """Whether a loader has a batch, as far as it tells."""
    try:
        return len(loader) > 0
    except TypeError:
        return True


def duplicate(module: L.LightningModule) -> L.LightningModule:
    """A deep copy on the CPU in eval mode, in float32 where it was ``in_other_precision``, without the Trainer.

    Tensors that are part of an autograd graph (a loss that a step left on ``self``) are copied as values: PyTorch
    refuses to deep-copy them.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        # Copied straight to the CPU: an accelerator may have no room for a second model.
        for parameter in part._parameters.values():
            if parameter is not None and not parameter.is_cpu:
                memo[id(parameter)] = nn.Parameter(parameter.detach().cpu(), parameter.requires_grad)
        for _, tensor in tensors({key: value for key, value in vars(part).items() if not key.startswith("_")}):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    copied = copy.deepcopy(module, memo).cpu().eval()
    # Lightning finds logged metrics by the identities of the original's; None makes it look again.
    copied._metric_attributes = None
    return copied.float() if in_other_precision(copied) else copied


def in_training_modes(copied: L.LightningModule, module: L.LightningModule, split: Split) -> L.LightningModule:
    """Give a copy the modes of the original, from which the module's own hook goes on, where it has one for its modes.

    Without ``on_validation_model_eval`` or ``on_test_model_eval``, Lightning puts all parts in eval mode itself.
    """
    if is_overridden(f"on_{_STAGE[split]}_model_eval", module, L.LightningModule):
        for name, part in module.named_modules():
            copied.get_submodule(name).training = part.training
    return copied


def evaluate(
    module: L.LightningModule,
    data: EvaluationData,
    *,
    entry: str = "",
    forward: Callable[..., Any] | None = None,
    on_batch: Callable[[Any], None] | None = None,
) -> dict[str, float]:
    """Run ``validation_step`` or ``test_step`` over the data on the CPU and return what they log.

    Args:
        module: A module that may be used up, as ``duplicate`` makes it.
        data: What to run on.
        entry: Full name of the module whose forward is replaced.
        forward: What runs in its place; ``None`` runs the module as it is.
        on_batch: Called with each batch before its step.

    Returns:
        Name → value of everything that was logged.

    Raises:
        CompressionError: The evaluation never called the entry.
    """
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return cast(Callable[..., Any], forward)(*args, **kwargs)

    _keep_built(module, data.split)
    for part in module.modules():
        if isinstance(part, Metric):
            # Only this process evaluates: a metric that synchronized would wait for the others forever.
            part.distributed_available_fn = _alone
    datamodule = None if data.datamodule is None else _borrowed(data.datamodule, data.split)
    with undisturbed():
        trainer = quiet_trainer(module, data, [_Batches(on_batch)] if on_batch is not None else [])
        if forward is not None:
            module.get_submodule(entry).forward = counted
        run = trainer.validate if data.split == "val" else trainer.test
        run(module, dataloaders=data.dataloaders, datamodule=datamodule, verbose=False)
    if forward is not None and not calls:
        raise CompressionError(
            f"{_STEP[data.split]} never called {entry or 'self'}(...), which training calls and which was exported: "
            f"what it logs would not be of the written file. Call the same module in both steps."
        )
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _keep_built(module: L.LightningModule, split: Split) -> None:
    """Keep the hooks that build layers or data from running again on a module that training has set up."""
    weights = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    set_up = module.setup

    def for_test(stage: str) -> None:
        set_up(stage)
        module.load_state_dict(weights, strict=False)

    base = base_of(module, L.LightningModule)
    _unhook(module, base, ("prepare_data", "configure_model", "configure_callbacks", "teardown"))
    if split == "test":
        module.setup = for_test  # type: ignore[method-assign]
    else:
        # fit has run setup("fit"), which covers validation.
        _unhook(module, base, ("setup",))


def _borrowed(datamodule: L.LightningDataModule, split: Split) -> L.LightningDataModule:
    """A shallow copy that shares the data sets, so that the data module and its Trainer stay as they are.

    It is set up again for testing alone, as ``Trainer.test`` would; a new random split stays in the copy.
    """
    borrowed = copy.copy(datamodule)
    hooks = ("prepare_data", "teardown") if split == "test" else ("prepare_data", "setup", "teardown")
    _unhook(borrowed, base_of(borrowed, L.LightningDataModule), hooks)
    return borrowed


def _unhook(owner: object, base: type, hooks: tuple[str, ...]) -> None:
    """Give an object the empty hooks of its base class.

    They must be those very functions: around a ``prepare_data`` that is overridden, Lightning waits for all ranks.
    """
    for hook in hooks:
        setattr(owner, hook, MethodType(getattr(base, hook), owner))


def quiet_trainer(module: L.LightningModule, data: EvaluationData, callbacks: list[Callback]) -> L.Trainer:
    """A Trainer of the module's package, on the CPU, that evaluates and writes nothing."""
    package = package_of(module)
    precision = package.plugins.precision.Precision()
    if data.float32:
        precision.convert_input = in_float32
    trainer: L.Trainer = package.Trainer(
        plugins=[precision],
        accelerator="cpu",
        devices=1,
        # Steps may use self.logger.experiment: this one takes everything and keeps nothing.
        logger=package.loggers.logger.DummyLogger(),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=data.limit,
        limit_test_batches=data.limit,
    )
    return trainer


class _Batches(Callback):
    def __init__(self, on_batch: Callable[[Any], None]) -> None:
        self.on_batch = on_batch

    @override
    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        self.on_batch(batch)

    @override
    def on_test_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        self.on_batch(batch)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the process's random numbers, and Lightning's advice about a Trainer that the user did not make, aside."""
    names = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with isolate_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _whole(dataloaders: Any) -> Any:
    """Undo the sharding that a distributed Trainer gave to dataloaders: one process evaluates everything."""
    if isinstance(dataloaders, dict):
        return {key: _whole(loader) for key, loader in dataloaders.items()}
    if isinstance(dataloaders, list | tuple):
        return [_whole(loader) for loader in dataloaders]
    if not isinstance(dataloaders, DataLoader) or not isinstance(dataloaders.sampler, DistributedSampler):
        return dataloaders
    return DataLoader(
        dataloaders.dataset,
        batch_size=dataloaders.batch_size,
        collate_fn=dataloaders.collate_fn,
        num_workers=dataloaders.num_workers,
    )


def _alone() -> bool:
    return False


def integer_tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch among which class targets are.

    Example:
        >>> [t.shape for t in integer_tensors((torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)))]
        [torch.Size([4])]
    """
    return [tensor for _, tensor in tensors(batch) if not tensor.is_floating_point()]
