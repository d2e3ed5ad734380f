"""The help of ``train``: the groups to choose from, and every setting as composed, with what it means."""

from __future__ import annotations

import importlib.resources
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from lightning_compress.apps.configuration.settings import CONFIG_MODULE, CONFIG_NAME

_HEAD = """\
Train, prune, quantize, export and verify one model.

usage: lightning-compress train [--json] [--debug] [key=value | group=choice ...]
"""
_FOOT = """
--json prints the result as JSON on standard output; --debug shows the traceback of an error.
Exit code 0: done. 1: what was asked for does not hold. 2: wrong use. 130: interrupted.
Choices change what there is to set: lightning-compress train pruning=global quantization=w8a8 --help
Example: lightning-compress train data=digits model=cnn pruning=global pruning.final_sparsity=0.9"""


def help_text(cfg: DictConfig) -> str:
    """The whole help for a config as the given choices compose it."""
    groups = (f"{group}: {', '.join(choices)}" for group, choices in _groups().items())
    settings = _settings(OmegaConf.to_container(cfg, resolve=False), _comments(_text(f"{CONFIG_NAME}.yaml")), "")
    return "\n".join(
        (_HEAD, "== Groups (group=choice) ==", *groups, "", "== Settings (key=value) ==", *settings, _FOOT)
    )


def arguments(docstring: str | None) -> dict[str, str]:
    """The arguments that a Google-style docstring explains, each with the first sentence of its explanation.

    Example:
        >>> arguments("Prunes.\\n\\nArgs:\\n    end: Last update. A step\\n        or so.\\n    seed: Of draws.")
        {'end': 'Last update.', 'seed': 'Of draws.'}
    """
    part = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(docstring or ""), re.MULTILINE | re.DOTALL)
    if part is None:
        return {}
    entries = re.findall(
        r"^\*{0,2}(\w+)(?: \([^)]*\))?:\s*(.*?)(?=^\S|\Z)", textwrap.dedent(part[1]), re.MULTILINE | re.DOTALL
    )
    return {name: re.split(r"(?<=[.;]) (?=[A-Z])|\n\n", text)[0] for name, found in entries for text in [_line(found)]}


def _settings(node: Any, meanings: Mapping[str, str], indent: str) -> Iterator[str]:
    if "_target_" in node:
        meanings = _meanings(_target(node["_target_"]))
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _settings(value, {}, f"{indent}  ")
            continue
        shown = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).splitlines()[0]
        meaning = meanings.get(str(key))
        yield f"{indent}{key}: {shown}" + (f"  # {meaning}" if meaning else "")


def _meanings(target: Any) -> dict[str, str]:
    """What the arguments of a class or function mean, as it, its ``__init__`` and its base classes say."""
    classes = target.__mro__ if inspect.isclass(target) else (target,)
    texts = (text for one in reversed(classes) for text in (getattr(one, "__init__", one).__doc__, one.__doc__))
    return {name: meaning.replace("``", "") for text in texts for name, meaning in arguments(text).items()}


def _target(name: str) -> Any:
    """The class of a ``_target_``; ``None`` where it cannot be imported, which ``train`` itself would say."""
    from hydra.utils import get_object

    try:
        return get_object(name)
    except Exception:  # Whatever importing a user's module raises.
        return None


def _comments(text: str) -> dict[str, str]:
    """Top-level key of a YAML text → the comment above it."""
    found = re.findall(r"^((?:# .*\n)+)(\w+):", text, re.MULTILINE)
    return {key: _line(comment.replace("# ", "")) for comment, key in found}


def _groups() -> dict[str, list[str]]:
    root = importlib.resources.files(CONFIG_MODULE)
    return {
        group.name: sorted(item.name.removesuffix(".yaml") for item in group.iterdir() if item.name.endswith(".yaml"))
        for group in sorted(root.iterdir(), key=lambda item: item.name)
        if group.is_dir() and not group.name.startswith("_")
    }


def _text(name: str) -> str:
    return importlib.resources.files(CONFIG_MODULE).joinpath(name).read_text(encoding="utf-8")


def _line(text: str) -> str:
    return " ".join(text.split())
