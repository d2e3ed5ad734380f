"""Hyper-parameters of a checkpoint without this package's objects, which libraries save among their own arguments."""

from __future__ import annotations

import copy
from typing import Any

from lightning.pytorch.callbacks import Callback
from torch import nn

_KEYS = ("hyper_parameters", "datamodule_hyper_parameters")
_PACKAGE = __name__.partition(".")[0]


def leave_out_ours(checkpoint: dict[str, Any]) -> None:
    """Leave this package's objects out of the hyper-parameters of a checkpoint.

    A LightningModule that takes callbacks or modules among its arguments, as some libraries' do, and calls
    ``save_hyperparameters`` puts them there. A pickle of our callbacks, or of a module with our quantizers, would open
    only where this package is installed, and a resumed fit takes none of them from there. Other callbacks stay, without
    the bound methods ``log`` and ``log_dict`` that a Trainer gives them, whose pickles hold the whole LightningModule.
    The LightningModule's own hyper-parameters stay as they are.

    Args:
        checkpoint: As it is about to be written.

    Example:
        >>> from lightning_compress import CompressionMonitor
        >>> checkpoint = {"hyper_parameters": {"width": 8, "trainer": {"callbacks": [CompressionMonitor(), "other"]}}}
        >>> leave_out_ours(checkpoint)
        >>> checkpoint
        {'hyper_parameters': {'width': 8, 'trainer': {'callbacks': ['other']}}}
    """
    for key in _KEYS:
        if key in checkpoint:
            checkpoint[key] = _without(checkpoint[key])


def _without(tree: Any) -> Any:
    """The same plain lists, tuples and dicts without our callbacks, and other callbacks and modules without ours."""
    if type(tree) in (list, tuple):
        return type(tree)(_without(item) for item in tree if not _is_ours(item))
    if type(tree) is dict:
        return {key: _without(item) for key, item in tree.items() if not _is_ours(item)}
    if isinstance(tree, nn.Module):
        return _plain(tree)
    return _apart(tree) if isinstance(tree, Callback) else tree


def _plain(module: nn.Module) -> nn.Module:
    """A copy without what this package has attached to a module; the module itself where that is nothing."""
    attached = {part: _attached(part) for part in module.modules()}
    if not any(attached.values()):
        return module
    before = {part: dict(vars(part)) for part in attached}
    try:
        for part, plain in attached.items():
            for name, value in plain.items():
                if value is None:
                    del vars(part)[name]
                else:
                    vars(part)[name] = value
        return copy.deepcopy(module)
    finally:
        for part, own in before.items():
            vars(part).clear()
            vars(part).update(own)


def _attached(module: nn.Module) -> dict[str, Any]:
    """Attributes of a module that this package has changed → their plain value; ``None`` where there is none."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if _made_here(value):
            found[name] = None
        elif name in ("_forward_hooks", "_forward_pre_hooks") and any(map(_made_here, value.values())):
            found[name] = type(value)((key, hook) for key, hook in value.items() if not _made_here(hook))
    return found


def _made_here(item: Any) -> bool:
    """Whether an object, a function, a method or a partial one is this package's."""
    function = getattr(item, "func", item)
    return any(
        str(getattr(owner, "__module__", "")).partition(".")[0] == _PACKAGE
        for owner in (type(function), type(getattr(function, "__self__", None)), function)
    )


def _apart(callback: Callback) -> Callback:
    apart = copy.copy(callback)
    for method in ("log", "log_dict"):
        vars(apart).pop(method, None)
    return apart


def _is_ours(item: Any) -> bool:
    """Whether an object is one of this package's callbacks, or of a class made from one."""
    return isinstance(item, Callback) and any(c.__module__.partition(".")[0] == _PACKAGE for c in type(item).__mro__)
