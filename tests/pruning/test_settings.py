"""Defaults are said alike wherever they are said."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning_compress.conf
import pytest
import yaml

from lightning_compress import GradualMagnitudePruning
from lightning_compress.pruning import Pruner
from lightning_compress.pruning.settings import Settings
from lightning_compress.timeline import Run

CONF = Path(next(iter(lightning_compress.conf.__path__)), "pruning")


def defaults(function: Any, *beside: str) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: p.default for name, p in parameters.items() if name not in ("self", *beside)}


def test_core_callback_and_command_line_have_the_same_settings_and_defaults() -> None:
    core = defaults(Settings.check, "field")
    assert defaults(Pruner, "model", "total_steps", "steps_per_epoch", "example_inputs", "field") == core
    assert defaults(GradualMagnitudePruning, "example_inputs", "accept_changes") == core
    written = yaml.safe_load((CONF / "global.yaml").read_text())
    assert written.pop("_target_").endswith(".GradualMagnitudePruning")
    assert written.pop("accept_changes") is False
    # The command prunes to 80 % where nothing is said; in code the sparsity has to be named.
    assert written.pop("final_sparsity") == 0.8
    del core["final_sparsity"]
    assert written == {**core, "ignore": []}


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_choice_sets_what_there_is(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    known = yaml.safe_load((CONF / "global.yaml").read_text()).keys() | {"defaults"}
    assert written.keys() <= known


@pytest.mark.parametrize(("steps", "every"), [(24, 1), (200, 2), (10_000, 100)])
def test_sparsity_rises_in_small_steps_in_short_runs_too(steps: int, every: int) -> None:
    schedule = Settings.check(final_sparsity=0.8, field="demo").resolve(Run(steps))
    assert schedule.every == every
    updates = [schedule.at(step) for step in schedule.updates()]
    assert len(updates) >= min(13, steps // 2)
    assert max(b - a for a, b in zip([0.0, *updates], updates, strict=False)) < 0.2
