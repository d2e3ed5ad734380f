"""A plan as an experiment of the training application: one YAML file, ready to be run."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lightning_compress.apps.advise.plan import Plan
from lightning_compress.errors import CompressionError

FOLDER = "experiment"
"""Name of the folder in which Hydra looks for experiments."""

_LAID_OVER = ("sweep", "debug")
"""Groups that come after the experiment."""


def refuse_path(path: Path) -> None:
    """Check that Hydra will find the file as an experiment.

    Raises:
        CompressionError: It is no YAML file in a folder of the right name.
    """
    if path.suffix != ".yaml" or path.absolute().parent.name != FOLDER:
        raise CompressionError.field(
            "--output",
            expected=f"a .yaml file in a folder named {FOLDER}, where Hydra looks for experiments",
            got=str(path),
            fix=f"For example {path.parent / FOLDER / path.stem}.yaml.",
        )


def experiment(
    plan: Plan,
    cfg: DictConfig,
    known: Collection[str],
    overrides: Sequence[str],
    checkpoint: Path,
    path: Path,
    lines: Sequence[str],
) -> tuple[str, list[str]]:
    """Write a plan as YAML.

    The choices and settings of the command line go into the file. What a file cannot say, such as a deletion, is left
    for the command.

    Args:
        plan: The plan.
        cfg: The config that was composed, after ``drop_unused``; the model of another class is taken from it as it is.
        known: Names of the config groups.
        overrides: The command line's overrides.
        checkpoint: The trained model, which the training starts from and compares with.
        path: Where the file will lie.
        lines: Comments for its head.

    Returns:
        The text of the file, and the arguments of the command that runs it.
    """
    groups, values, rest = _sorted(overrides, known, cfg)
    name = path.stem
    content: dict[str, Any] = {"name": name, "dense_checkpoint": str(checkpoint.absolute())}
    content["init_checkpoint"] = content["dense_checkpoint"]
    for key, value in values.items():
        _put(content, key, value)
    pruned = {name: sparsity for name, (sparsity, _) in plan.chosen.items()}
    if groups["pruning"] != "none":
        common = {"final_sparsity": round(plan.sparsity, 4)}
        own = {name: {"final_sparsity": sparsity} for name, sparsity in pruned.items()}
        _layers(content, "pruning", common, own)
    if groups["quantization"] != "none":
        widths = {name: bits for name, (_, bits) in plan.chosen.items() if bits is not None}
        own_bits: dict[str, Any] = {name: {"weight_bits": bits} for name, bits in widths.items()}
        _layers(content, "quantization", {}, own_bits)
    command = ["train", "--config-dir", str(path.absolute().parent.parent), f"{FOLDER}={name}", *rest]
    head = ["# @package _global_", *(f"# {line}" for line in lines)]
    head += ["# Run it with:", f"#   {shlex.join(['lightning-compress', *command])}"]
    before = [groups.pop(FOLDER)] if FOLDER in groups else []
    defaults = [*before, *({f"override /{group}": choice} for group, choice in groups.items())]
    parts = (OmegaConf.to_yaml(OmegaConf.create(part)) for part in ({"defaults": defaults}, content))
    return "\n".join([*head, *parts]), command


def _sorted(
    overrides: Sequence[str], known: Collection[str], cfg: DictConfig
) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """Choices of groups, values of settings, and what only a command line can say."""
    groups: dict[str, str] = {"pruning": "uniform", "quantization": "w8a8", "export": "default"}
    values: dict[str, Any] = {}
    rest = []
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    keys = {override.key_or_group for override in parsed}
    for text, override in zip(overrides, parsed, strict=True):
        key = override.key_or_group
        if key in known and not override.is_delete():
            if key in _LAID_OVER:
                rest.append(text)
            else:
                groups[key] = str(override.value())
        elif override.is_delete() or f"{key.partition('.')[0]}._target_" in keys - {"model._target_"}:
            rest.append(text)
        else:
            values[key] = override.value()
    if "model._target_" in keys:
        # The class takes other settings than the chosen model's: what is left of those stands in the config.
        groups["model"] = "custom"
        values = {key: value for key, value in values.items() if key.partition(".")[0] != "model"}
        values["model"] = OmegaConf.to_container(cfg.model, resolve=False)
    return groups, values, rest


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a value at a dotted path."""
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
    content[last] = value


def _layers(content: dict[str, Any], group: str, common: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    node = content.setdefault(group, {})
    given = node.get("overrides") or {}
    node.update(common)
    node["overrides"] = {**given, **own}
