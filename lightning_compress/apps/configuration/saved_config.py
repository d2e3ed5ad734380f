"""The config that a run left in its directory, read again."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lightning_compress.apps.configuration.settings import COMPOSITION_ERRORS, drop_unused, explain
from lightning_compress.apps.configuration.trusted import refuse_untrusted
from lightning_compress.apps.regular_file import regular_text
from lightning_compress.errors import CompressionError, closest, first_line

CONFIG = Path(".hydra", "config.yaml")
"""Where a run keeps it."""
_BUILT = ("data", "model", "pruning", "quantization")
_BUILT_KEY = re.compile(rf"[+~]*({'|'.join(_BUILT)})(\.[\w.]+)?(=|$)")


@contextlib.contextmanager
def run_config(
    folder: Path, overrides: Sequence[str], *, trust: bool = False, field: str = "verify"
) -> Iterator[DictConfig]:
    """The config of a run as it was composed, with values changed by overrides.

    Hydra's own settings are those of the run, but for the directory, which may have moved.

    Args:
        folder: The run's directory.
        overrides: ``key=value``, ``+key=value`` or ``~key``; what was chosen for groups stays.
        trust: Whether its config may name any class. Otherwise see ``refuse_untrusted``.
        field: What the user called, for messages.

    Raises:
        CompressionError: The config cannot be read or is not trusted, or an override is none, or names no setting.
    """
    try:
        config = _load(folder / CONFIG)
        saved = OmegaConf.select(_load(folder / ".hydra" / "hydra.yaml"), "hydra", default={})
        known = {key: saved[key] for key in map(str, saved) if key in HydraConf.__dataclass_fields__}
        hydra = OmegaConf.create({"hydra": OmegaConf.merge(OmegaConf.structured(HydraConf), known)})
    except (OSError, ValueError, TypeError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise CompressionError(f"{folder / '.hydra'}: cannot be read ({first_line(error)}).") from error
    if not isinstance(config, DictConfig):
        raise CompressionError(f"{folder / CONFIG}: holds no settings.")
    with open_dict(hydra):
        hydra.hydra.runtime.output_dir = str(folder)
    setup_globals()
    HydraConfig.instance().set_config(hydra)
    try:
        _apply(config, overrides)
        if not trust:
            refuse_untrusted(config, _BUILT, folder, field)
        task = [*(OmegaConf.select(hydra, "hydra.overrides.task") or []), *overrides]
        # Dropping imports the classes that replace others: without trust, of what was checked alone.
        drop_unused(config, task if trust else [text for text in task if _BUILT_KEY.match(text)])
        yield config
    finally:
        HydraConfig.instance().cfg = None


def _load(path: Path) -> DictConfig | ListConfig:
    """A config that Hydra saved: without aliases, by which a few lines stand for more than fits into memory.

    Raises:
        OSError: It is no regular file.
        YAMLError: It is no YAML, or has aliases.
    """
    text = regular_text(path)
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise yaml.YAMLError("it has aliases, which no run writes")
    return OmegaConf.create(text)


def _apply(config: DictConfig, overrides: Sequence[str]) -> None:
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except COMPOSITION_ERRORS as error:
        raise explain(error, overrides) from error
    for item in parsed:
        key = item.key_or_group
        known = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        if known is None and not item.is_add() and not _has(config, key):
            raise CompressionError(f"{key}: the run has no such setting. {closest(key, map(str, config))}")
        value = item.value()
        if isinstance(known, DictConfig) and not isinstance(value, dict) and not item.is_delete():
            raise CompressionError(
                f"{key}={value}: what a run chose for a group stays. Give single settings, such as "
                f"{key}.{next(iter(known), 'name')!s}=..."
            )
        with open_dict(config):
            if item.is_delete():
                OmegaConf.update(config, key, None)
            else:
                OmegaConf.update(config, key, value, merge=True)


def _has(config: DictConfig, key: str) -> bool:
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and last in node
