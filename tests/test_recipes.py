"""Every recipe composes, says how it is run, and holds numbers; the checker sees where numbers differ."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.apps.configuration.instantiate import instantiate
from lightning_compress.apps.configuration.settings import COMPRESSION, drop_unused

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "recipes"), str(ROOT / "benchmarks")]

import check  # noqa: E402 - not installed
import recipe_variants  # noqa: E402
from recipe_variants import composed  # noqa: E402

RECIPES = sorted(path.parent for path in ROOT.glob("recipes/*/recipe.yaml"))


def expected_of(recipe: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((recipe / "expected.json").read_text())
    return content


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_composes_under_its_own_name_with_a_dense_control(recipe: Path) -> None:
    cfg = composed(recipe)
    assert cfg.name == recipe.name
    assert cfg.dense_baseline
    assert cfg.pruning or cfg.quantization
    for group in ("pruning", "quantization", "distillation"):
        if cfg[group]:
            instantiate(cfg[group], group)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_says_how_it_is_run_and_what_came_of_it(recipe: Path) -> None:
    page = (recipe / "README.md").read_text(encoding="utf-8")
    assert f"lightning-compress train --config-dir recipes/{recipe.name} --config-name recipe" in page
    assert f"make recipes-check RECIPE={recipe.name}" in page
    assert f"<!-- results:{recipe.name} -->" in page
    expected = expected_of(recipe)
    assert [seed["seed"] for seed in expected["seeds"]] == list(range(len(expected["seeds"])))
    assert expected["environment"]["cpu"]
    assert expected["created"]
    assert set(expected["tolerance"]) == set(check.TOLERANCE)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_method_of_a_recipe_can_be_switched_off(recipe: Path) -> None:
    cfg = composed(recipe, *recipe_variants.OFF)
    drop_unused(cfg, recipe_variants.OFF)
    assert [cfg[group] for group in COMPRESSION] == [{}] * 4


def test_the_variants_of_a_recipe_are_its_methods_alone_together_and_distilled() -> None:
    joint, quantized = (ROOT / "recipes" / name for name in ("digits_cnn_sparse80_w8a8", "cifar10_resnet20_w4a4"))
    assert recipe_variants.variants(joint) == {
        "pruned": ["quantization=none", "distillation=none"],
        "quantized": ["pruning=none", "distillation=none"],
        "both": ["distillation=none"],
        "both, distilled": ["distillation=logits"],
    }
    assert recipe_variants.variants(quantized) == {"quantized": ["distillation=none"], "quantized, distilled": []}


def test_a_variant_is_the_mean_of_its_seeds_with_their_deviation() -> None:
    runs = [
        {"variant": "pruned", "seed": seed, "accuracy": accuracy, "drop": 2.0, "latency_us": latency}
        for seed, accuracy, latency in ((0, 90.0, 100.0), (1, 92.0, 200.0))
    ]
    (row,) = recipe_variants.summary(runs)
    assert row == {
        "variant": "pruned",
        "accuracy": 91.0,
        "accuracy_std": 1.414,
        "drop": 2.0,
        "drop_std": 0.0,
        "latency_us": 150.0,
    }


@pytest.mark.parametrize(
    ("group", "key", "change", "says"),
    [
        ("accuracy", "deployed", -1.1, r"accuracy of deployed: expected \d+\.\d+ ± 1.0, got"),
        ("accuracy", "dense", 1.1, "accuracy of dense"),
        ("bytes", "packed", 5000, r"bytes of packed: expected \d+ ± 5%, got"),
        ("agreement", None, -0.01, "agreement: expected at least"),
    ],
)
def test_numbers_that_leave_the_tolerance_are_told(group: str, key: str | None, change: float, says: str) -> None:
    expected = expected_of(ROOT / "recipes" / "digits_cnn_sparse80_w8a8")
    found = copy.deepcopy(expected["seeds"])
    assert check.differences(found, expected) == []
    for seed in found:
        where, name = (seed, group) if key is None else (seed[group], key)
        where[name] += change
    (line,) = check.differences(found, expected)
    assert re.match(says, line), line
