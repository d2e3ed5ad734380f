"""The one place where a config becomes an object.

Everything is checked against the signature of its target first, so that a misspelt or ill-typed setting is
refused by its full config key before anything is built.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_compress.errors import CompressionError, closest

_NAMES: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}
_HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}


def instantiate(node: DictConfig | Mapping[str, Any], key: str, **settings: Any) -> Any:
    """Build the object that a config node describes, and what is nested in it.

    Args:
        node: A node with a ``_target_``.
        key: Full config key of the node, for messages.
        settings: Arguments that are added to the node, or replace its own.

    Returns:
        Whatever the target returns; lists and mappings in the config reach it as plain Python ones.

    Raises:
        CompressionError: The target cannot be imported, an argument is unknown, missing or of the wrong type,
            or the target refuses; the message names the config key.

    Example:
        >>> instantiate({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}, "net")
        Linear(in_features=2, out_features=3, bias=True)
    """
    try:
        resolved = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    except OmegaConfBaseException as error:
        raise CompressionError(f"{key}: {_line(error)}") from error
    if not isinstance(resolved, Mapping) or "_target_" not in resolved:
        raise CompressionError.field(key, expected="a node with a _target_, the class to build", got=resolved)
    plain = {**{str(name): value for name, value in resolved.items()}, **settings}
    _check(plain, key)
    try:
        return hydra.utils.instantiate(plain, _convert_="all")
    except InstantiationException as error:
        raise _explain(error, plain, key) from error


def locate(target: Any, key: str) -> Any:
    """Import the class or function that a ``_target_`` names.

    Raises:
        CompressionError: There is none.
    """
    if not isinstance(target, str) or not target:
        raise CompressionError.field(f"{key}._target_", expected="the dotted path of a class", got=target)
    module, names = _import_longest(target, key)
    found: Any = module
    for name in names:
        if not hasattr(found, name):
            where = f"{found.__name__} has no {name}. {closest(name, [n for n in dir(found) if n[0] != '_'])}"
            raise CompressionError(f"{key}._target_: cannot import {target!r}: {where}")
        found = getattr(found, name)
    if not callable(found):
        raise CompressionError.field(f"{key}._target_", expected="a class or function", got=target)
    return found


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """Parameters by which a target can be called, by name; empty where it does not tell."""
    try:
        found = dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return {}
    if hasattr(target, "__wrapped__"):
        # A wrapped class method, such as Lightning's load_from_checkpoint, shows the class that it is bound to.
        found.pop("cls", None)
    return found


def _check(node: Any, key: str) -> None:
    """Check a node and all that is nested in it."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            _check(item, f"{key}[{index}]")
    if not isinstance(node, dict):
        return
    for name, item in node.items():
        _check(item, f"{key}.{name}")
    if "_target_" in node:
        _check_arguments(node, key)


def _check_arguments(node: dict[str, Any], key: str) -> None:
    target = locate(node["_target_"], key)
    known = parameters(target)
    if not known and not inspect.isclass(target):
        return
    given = {name: value for name, value in node.items() if name not in _HYDRA_KEYS}
    kinds = {parameter.kind for parameter in known.values()}
    named = {name: p for name, p in known.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if inspect.Parameter.VAR_KEYWORD not in kinds and (unknown := [name for name in given if name not in named]):
        raise _unknown(node["_target_"], unknown[0], named, key)
    required = [name for name, p in named.items() if p.default is p.empty and name not in given]
    if required and not node.get("_partial_") and not node.get("_args_"):
        raise CompressionError(
            f"{key}: {node['_target_']} needs {', '.join(required)}. Add +{key}.{required[0]}=... to the command line."
        )
    hints = _hints(target)
    for name, value in given.items():
        nested = isinstance(value, dict) and "_target_" in value
        if name in hints and not nested and not _fits(value, hints[name]):
            raise CompressionError.field(f"{key}.{name}", expected=_describe(hints[name]), got=value)


def _unknown(target: str, name: str, known: Mapping[str, Any], key: str) -> CompressionError:
    return CompressionError(f"{key}.{name}: {target} takes no argument of that name. {closest(name, known)}")


def _hints(target: Any) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):
        # Names that exist for type checkers alone: such a target is checked by its own code only.
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a config value may be of a type; types that a config cannot judge count as fitting."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in _NAMES:
        return type(value) is hint
    return True


def _describe(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return _NAMES[hint]


def _explain(error: InstantiationException, node: dict[str, Any], key: str) -> CompressionError:
    """Turn Hydra's error about some nested node into ours."""
    inner = re.search(r"^full_key: (\S+)", str(error), flags=re.MULTILINE)
    if inner is not None:
        key, node = _descend(node, key, inner[1])
    cause = error.__cause__ or error
    if isinstance(cause, CompressionError):
        return cause
    name = re.search(r"unexpected keyword argument '(\w+)'", str(cause))
    if isinstance(cause, TypeError) and name is not None:
        target = locate(node["_target_"], key)
        ancestors = target.__mro__ if inspect.isclass(target) else [target]
        known = {p: None for ancestor in ancestors for p in parameters(ancestor) if p not in ("args", "kwargs")}
        return _unknown(node["_target_"], name[1], known, key)
    return CompressionError(
        f"{key}: {node.get('_target_')} could not be built: {type(cause).__name__}: {_line(cause)} "
        "Run with --debug to see where."
    )


def _descend(node: Any, key: str, inner: str) -> tuple[str, Any]:
    """Follow a path as Hydra writes it, where ``parts0`` is the first item of the list ``parts``."""
    for part in inner.split("."):
        item = None if part in node else re.fullmatch(r"(.*?)(\d+)", part)
        if item is None:
            key, node = f"{key}.{part}", node[part]
        else:
            key, node = f"{key}.{item[1]}[{item[2]}]", node[item[1]][int(item[2])]
    return key, node


def _import_longest(target: str, key: str) -> tuple[types.ModuleType, list[str]]:
    """Import the longest part of a path that is a module; the rest are names in it."""
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        path = ".".join(parts[:length])
        try:
            return import_module(path), parts[length:]
        except ImportError as error:
            # Only the absence of this very module means that its last part may be a name in its parent.
            absent = isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}.")
            if length == 1 or not absent:
                raise CompressionError(f"{key}._target_: cannot import {target!r}: {_line(error)}") from error
    raise CompressionError.field(f"{key}._target_", expected="the dotted path of a class", got=target)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "?", "!")) else f"{text}."
