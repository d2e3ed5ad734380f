"""The settings of the training application: their types, and errors that name the nearest good key."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lightning_compress.apps.configuration.instantiate import locate, parameters
from lightning_compress.errors import CompressionError, closest

log = logging.getLogger(__name__)

CONFIG_MODULE = "lightning_compress.conf"
CONFIG_NAME = "train"

COMPRESSION = ("pruning", "quantization", "distillation", "export")
"""Config groups whose node is one callback, or empty."""


@dataclass
class Input:
    """Shape of the data, from which the bundled models take theirs: images have a size, texts have a length."""

    channels: int = 1
    size: int = 1
    length: int = 1
    vocabulary: int = 2
    classes: int = 2


@dataclass
class Settings:
    """What the main job itself reads; groups such as ``model`` are checked where they are built."""

    name: str = "train"
    seed: int = 0
    dense_baseline: bool = False
    dense_checkpoint: str | None = None
    init_checkpoint: str | None = None
    ckpt_path: str | None = None
    dense_ckpt_path: str | None = None
    threads: int | None = None
    optimized_metric: Any = None
    input: Input = field(default_factory=Input)


def settings(cfg: DictConfig) -> Settings:
    """Read and check the settings outside the groups.

    Raises:
        CompressionError: A mandatory value is missing, a value has the wrong type, or a file is not there.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise CompressionError(f"{', '.join(missing)}: no value. Give one: {missing[0]}=...")
    own = {part.name: cfg[part.name] for part in fields(Settings) if part.name in cfg}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Settings), own)
        found = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise CompressionError(f"{error.full_key or 'config'!s}: {_line(error)}") from error
    if not isinstance(found, Settings):
        raise CompressionError.field("config", expected="a mapping of settings", got=type(found).__name__)
    for name in ("ckpt_path", "dense_ckpt_path", "dense_checkpoint", "init_checkpoint"):
        path = getattr(found, name)
        if path is not None and not Path(path).is_file():
            raise CompressionError.field(name, expected="a checkpoint file", got=path, fix="There is none.")
    if not 0 <= found.seed < 2**32:
        raise CompressionError.field("seed", expected="a whole number from 0 to 2**32 - 1", got=found.seed)
    if found.threads is not None and found.threads < 1:
        raise CompressionError.field("threads", expected="a positive integer or null", got=found.threads)
    wanted = found.optimized_metric
    if not (wanted is None or isinstance(wanted, str) or _is_list_of_str(wanted)):
        raise CompressionError.field("optimized_metric", expected="a name or a list of names", got=wanted)
    return found


def drop_unused(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Leave out inherited settings that a choice on the command line has no use for.

    ``model._target_=my.Module`` replaces the class of the chosen ``model``: settings that ``my.Module`` does not take
    are dropped with a notice. ``pruning=none``, ``~pruning`` and ``~pruning=global`` take the class away: what an
    experiment or a recipe sets for it is dropped too. A setting that was itself given on the command line stays, so
    that a misspelt or forgotten one is still refused.

    Args:
        cfg: The composed config; changed in place.
        overrides: The command line's overrides.
    """
    given = [override.lstrip("+~").split("=", 1)[0] for override in overrides]
    for override, key in zip(overrides, given, strict=True):
        path, _, last = key.rpartition(".")
        node = OmegaConf.select(cfg, path) if last == "_target_" and path else None
        if isinstance(node, DictConfig):
            known = parameters(locate(node["_target_"], path))
            explicit = {name.removeprefix(f"{path}.").split(".")[0] for name in given if name.startswith(f"{path}.")}
            left_out = [str(name) for name in node if name not in known and name not in explicit]
            with open_dict(node):
                for name in left_out:
                    del node[name]
            if left_out:
                log.info("%s: %s takes no %s; left out.", path, node["_target_"], ", ".join(left_out))
        switched_off = key in COMPRESSION and (override == f"{key}=none" or override.startswith("~"))
        if switched_off and not any(name.startswith(f"{key}.") for name in given):
            with open_dict(cfg):
                cfg[key] = {}


def explain(error: Exception, overrides: Sequence[str]) -> CompressionError:
    """Say in one paragraph why a config cannot be composed, with the nearest good key or choice.

    Args:
        error: What Hydra or OmegaConf raised.
        overrides: The command line's overrides.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if error.options:
            return CompressionError.field(
                group,
                expected=f"one of {', '.join(error.options)}",
                got=choice,
                fix=closest(choice, error.options),
            )
    if isinstance(error, OverrideParseException):
        return CompressionError(
            f"{error.override}: expected key=value as Hydra reads it. Quote a value with other signs than letters, "
            f"digits and ./:-_ twice, once for the shell: \"key='value'\". A pattern that is no plain name goes into a "
            "list: 'pruning.overrides=[{pattern: \"re:.*conv1\", final_sparsity: 0.5}]'."
        )
    bad = re.search(r"Could not override '([^']+)'", str(error))
    if isinstance(error, ConfigCompositionException) and bad is not None:
        key, known = bad[1], _known_keys(overrides)
        parent = key.rpartition(".")[0]
        if parent in known and not any(name.startswith(f"{parent}.") for name in known):
            fix = f"{parent} is none; add {parent}={_USUAL[parent]}." if parent in _USUAL else f"{parent} has none."
        else:
            fix = f"{closest(key, known)} To add a new one, write +{key}=..."
        return CompressionError(f"{key}: there is no such setting. {fix}")
    return CompressionError(_line(error))


_USUAL = {"pruning": "global", "quantization": "w8a8", "distillation": "logits", "export": "default"}
"""The usual choice of each group that is none by default."""
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)
"""What composing a config raises for bad input."""


def _known_keys(overrides: Sequence[str]) -> list[str]:
    """All keys of the config as the group choices among the overrides compose it."""
    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        choices = [text for text in overrides if re.fullmatch(r"\w+=[\w/]+", text)]
        try:
            cfg = compose(CONFIG_NAME, choices)
        except COMPOSITION_ERRORS:
            cfg = compose(CONFIG_NAME)
    plain = OmegaConf.to_container(cfg)
    return [*_keys(plain)] if isinstance(plain, dict) else []


def _keys(node: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for name, child in node.items():
        yield f"{prefix}{name}"
        if isinstance(child, dict):
            yield from _keys(child, f"{prefix}{name}.")


def _is_list_of_str(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _line(error: Exception) -> str:
    """An error's text as one paragraph."""
    return " ".join(str(error).split()) or type(error).__name__
