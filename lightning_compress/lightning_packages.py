"""What a Trainer, a module, a strategy or a logger is, in both packages of Lightning.

``lightning.pytorch`` and ``pytorch_lightning`` are built from one source, but a class of one is not the class of the
other, and many libraries still import the older name. So ask here, with the class of ``lightning.pytorch``, rather than
by ``isinstance``.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, TypeVar

from lightning.pytorch.utilities.model_helpers import is_overridden as _is_overridden
from typing_extensions import TypeIs

from lightning_compress.errors import CompressionError

PACKAGES = ("lightning.pytorch", "pytorch_lightning")

Kind = TypeVar("Kind")


def is_instance(thing: object, kind: type[Kind]) -> TypeIs[Kind]:
    """Whether an object is of a class of ``lightning.pytorch``, or of its twin in ``pytorch_lightning``.

    Args:
        thing: Any object.
        kind: A class of ``lightning.pytorch``.

    Example:
        >>> import pytorch_lightning
        >>> from lightning.pytorch import LightningModule
        >>> is_instance(pytorch_lightning.LightningModule(), LightningModule)
        True
    """
    return isinstance(thing, _both(kind))


def is_overridden(hook: str, thing: object, kind: type) -> bool:
    """Whether an object's class defines a hook again.

    Args:
        hook: Name of the method.
        thing: A module, data module or callback of either package.
        kind: The class of ``lightning.pytorch`` that has the empty hook.

    Example:
        >>> from lightning.pytorch import Callback, Timer
        >>> is_overridden("on_train_start", Timer(), Callback), is_overridden("on_fit_end", Timer(), Callback)
        (True, False)
    """
    return _is_overridden(hook, thing, base_of(thing, kind))


def base_of(thing: object, kind: type[Kind]) -> type[Kind]:
    """The class itself or its twin, whichever an object is of."""
    return next((one for one in _both(kind) if isinstance(thing, one)), kind)


def package_of(thing: object) -> Any:
    """The package that an object's class comes from; ``lightning.pytorch`` where it comes from neither.

    Example:
        >>> import pytorch_lightning
        >>> package_of(pytorch_lightning.LightningModule()).__name__
        'pytorch_lightning'
    """
    bases = [base.__module__ for base in type(thing).__mro__]
    names = (name for base in bases for name in PACKAGES if base == name or base.startswith(f"{name}."))
    return importlib.import_module(next(names, PACKAGES[0]))


def refuse_mixed(trainer: object, thing: object, field: str) -> None:
    """Refuse an object of one package where the Trainer is of the other.

    Raises:
        CompressionError: It is.
    """
    own, others = package_of(trainer).__name__, package_of(thing).__name__
    if own != others:
        raise CompressionError.field(
            field,
            expected=f"a class of {own}, as the Trainer is",
            got=type(thing).__name__,
            fix=f"It comes from {others}: import both from one package.",
        )


def _both(kind: type[Kind]) -> tuple[type[Kind], ...]:
    """A class of ``lightning.pytorch`` and its twin, which exists once somebody has imported it."""
    twin = sys.modules.get(kind.__module__.replace(*PACKAGES, 1))
    return (kind, getattr(twin, kind.__name__)) if hasattr(twin, kind.__name__) else (kind,)
