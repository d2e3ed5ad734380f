"""Which classes a config from an untrusted folder may name.

A ``_target_`` is any Python function: building what a config says is running its author's code.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lightning_compress.errors import CompressionError, first_line

_PACKAGES = (
    "lightning_compress.callbacks", "lightning_compress.data", "lightning_compress.models", "torch.nn", "torch.optim",
    "torchmetrics.classification", "torchmetrics.regression",
)  # fmt: skip
# Imported always, with classes that write files where they are told to, or download what they are told to.
_LIBRARIES = frozenset({"lightning", "pytorch_lightning", "torch", "torchmetrics"})


def refuse_untrusted(cfg: DictConfig, groups: Sequence[str], folder: Path, field: str) -> None:
    """Refuse a run's config whose models and data are of classes that are not known, and fix what it says.

    What is checked is what is built: interpolations, whose values the file's author can make depend on the moment, are
    resolved in place once and for all.

    Known are the classes of this package, of ``torch.nn``, ``torch.optim``, torchmetrics' classification and
    regression, and classes of others than PyTorch's and Lightning's libraries that this process has imported already,
    if they are modules, data modules, optimizers, schedulers, or our callbacks for pruning and quantization. Functions
    are not, and nothing else is imported to find out.

    Args:
        cfg: The config; its groups are replaced by what they resolve to.
        groups: What is to be built of it.
        folder: The run's directory, for the message.
        field: What the user called, for the message.

    Raises:
        CompressionError: It names anything else.
    """
    for group in groups:
        node = OmegaConf.select(cfg, group, throw_on_resolution_failure=False)
        try:
            # Resolved, since whole nodes can be interpolations.
            plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        except (OmegaConfBaseException, MemoryError, RecursionError) as error:
            raise CompressionError(f"{folder}: {group} cannot be read ({first_line(error)}).") from error
        if any("${" in text for text in _texts(plain)):
            raise CompressionError(f"{folder}: {group} has an escaped interpolation, which no run writes.")
        for key, target in _targets(plain, group):
            if not _is_known(target):
                raise CompressionError(
                    f"{field}: {key} of {folder} is {str(target)[:100]!r}, which is not among the classes that are "
                    f"built without your word: building it runs its code. If this directory is yours, or you trust "
                    f"whoever made it, add --trust (in Python: trust=True)."
                )
        if node is not None:
            with open_dict(cfg):
                cfg[group] = plain


def _targets(tree: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == "_target_":
                yield f"{key}._target_", value
            yield from _targets(value, f"{key}.{name}")
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _targets(value, f"{key}[{index}]")


def _texts(tree: Any) -> Iterator[str]:
    """Every text of a tree, its keys among them."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield str(name)
            yield from _texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value)
    elif isinstance(tree, str):
        yield tree


def _is_known(target: Any) -> bool:
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    if any(module == package or module.startswith(f"{package}.") for package in _PACKAGES):
        try:
            import_module(module)
        except ImportError:
            return False
    elif module.partition(".")[0] in _LIBRARIES:
        return False
    found = getattr(sys.modules.get(module), name, None)
    return inspect.isclass(found) and issubclass(found, _bases())


def _bases() -> tuple[type, ...]:
    import lightning as L
    from torch import nn, optim

    from lightning_compress.callbacks import GradualMagnitudePruning, QuantizationAwareTraining

    ours = GradualMagnitudePruning, QuantizationAwareTraining
    return nn.Module, L.LightningDataModule, *ours, optim.Optimizer, optim.lr_scheduler.LRScheduler
