"""``lightning-compress wandb-sweep``: a sweep of ours as a sweep file of W&B."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from lightning_compress.errors import CompressionError

METHODS = ("grid", "random", "bayes")


def add_wandb_sweep(commands: Any) -> None:
    """``wandb-sweep``: a file for ``wandb sweep``, whose agents run ``lightning-compress train``."""
    from lightning_compress.cli.parser import add_parser

    parser = add_parser(
        commands,
        "wandb-sweep",
        "Write a W&B sweep file, whose agents run lightning-compress train.",
        run,
        epilog="lightning-compress wandb-sweep sweep=grid > sweep.yaml; wandb sweep sweep.yaml; wandb agent SWEEP_ID",
    )
    parser.add_argument(
        "overrides", nargs="*", help="as train -m takes them: sweep=grid, pruning=global,erk, key=value"
    )
    parser.add_argument("--method", choices=METHODS, default="grid", help="how W&B looks for the best; default: grid")
    parser.add_argument(
        "--metric",
        default="compress/deployed/test/acc",
        help="summary value to optimize; default: compress/deployed/test/acc",
    )
    parser.add_argument("--goal", choices=("maximize", "minimize"), default="maximize")


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Print the file as YAML, or as JSON."""
    import yaml

    found = sweep_file(arguments.overrides, method=arguments.method, metric=arguments.metric, goal=arguments.goal)
    print(json.dumps(found, indent=2) if arguments.json else yaml.safe_dump(found, sort_keys=False), end="")
    return 0


def sweep_file(overrides: Sequence[str], *, method: str, metric: str, goal: str) -> dict[str, Any]:
    """What W&B is to sweep over, and the command of its agents.

    Args:
        overrides: As for ``train -m``: those with several values are swept over, beside ``hydra.sweeper.params`` of
            the chosen ``sweep``; the others are the same in all jobs, even where the ``sweep`` has several values.
        method: One of ``METHODS``.
        metric: Name in the summary of a run.
        goal: ``"maximize"`` or ``"minimize"``.

    Raises:
        CompressionError: The config cannot be composed, nothing is swept over, a range has no end for a grid, or the
            metric is of a deployed model and none is exported.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from lightning_compress.apps.configuration.compose import composed
    from lightning_compress.apps.configuration.settings import COMPOSITION_ERRORS, explain

    parser = OverridesParser.create()
    try:
        parsed = [parser.parse_override(text) for text in overrides]
        given = {override.key_or_group for override in parsed}
        fixed = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
        with composed(fixed, "") as cfg:
            name, exports = str(cfg.name), bool(cfg.get("export"))
            chosen = HydraConfig.get().sweeper.get("params") or {}
            swept = [parser.parse_override(f"{key}={value}") for key, value in chosen.items()]
    except COMPOSITION_ERRORS as error:
        raise explain(error, overrides) from error
    # What the command line says stands: agents put the swept arguments last, where they would win.
    swept = [override for override in swept if override.key_or_group not in given]
    parameters = {}
    for override in [*swept, *(one for one in parsed if one.is_sweep_override())]:
        parameters[override.key_or_group] = _parameter(override, method)
    if not parameters:
        raise CompressionError.field(
            "wandb-sweep",
            expected="something to sweep over",
            got=list(overrides),
            fix="Give sweep=grid, or several values: pruning.final_sparsity=0.5,0.8",
        )
    if metric.startswith("compress/deployed") and not exports and "export" not in parameters:
        raise CompressionError.field(
            "wandb-sweep --metric",
            expected="a metric that the runs log",
            got=metric,
            fix="They export no model. Add export=default, or give a metric of the training such as val/acc.",
        )
    # The agent's runs are W&B's: they must log there, and not only to this machine.
    online = ["logger=wandb", "logger.wandb.offline=false"]
    named = [text for text in fixed if not text.startswith(("logger=", "logger.wandb.offline="))]
    return {
        "name": name,
        "program": "lightning-compress",
        "method": method,
        "metric": {"name": metric, "goal": goal},
        "parameters": parameters,
        "command": ["lightning-compress", "train", *named, *online, "${args_no_hyphens}"],
    }


def _parameter(override: Any, method: str) -> dict[str, Any]:
    """One parameter in W&B's form."""
    from hydra.core.override_parser.types import IntervalSweep

    value = override.value()
    if isinstance(value, IntervalSweep):
        if method == "grid":
            raise CompressionError.field(
                f"wandb-sweep {override.key_or_group}",
                expected="values, since the method is grid",
                got=override.input_line,
                fix="Give --method random or bayes.",
            )
        ends = {"min": value.start, "max": value.end}
        return {"distribution": "log_uniform_values", **ends} if "log" in (value.tags or ()) else ends
    # Hydra writes values as the command line takes them: null, true, quoted where need be.
    texts = [text.partition("=")[2] for text in _lines(override)]
    return {"values": [_plain(text) for text in texts]} if len(texts) > 1 else {"value": _plain(texts[0])}


def _lines(override: Any) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line]
    return [f"{override.key_or_group}={text}" for text in override.sweep_string_iterator()]


def _plain(text: str) -> str | int | float:
    """A number where the text is one, so that W&B can draw it."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
