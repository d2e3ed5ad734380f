"""What each part of a recipe does: dense, pruned, quantized, both, and both taught by the dense control.

The variants of a recipe are its own command with a method switched off (``pruning=none``, ``quantization=none``) or
added (``distillation=logits``). They share one dense control a seed, which was trained as long from the same start.
Accuracy and latency are those of the written ONNX file, of the last epoch. A run that is finished is not run again.

    python benchmarks/recipe_variants.py fsdd_dscnn_sparse80_w8a8 data.root=~/data --seeds 1 --write
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import results
from accuracy import Runner
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lightning_compress.apps.configuration.settings import COMPRESSION

NAMES = {"pruning": "pruned", "quantization": "quantized"}
OFF = [f"{group}=none" for group in COMPRESSION]


def composed(recipe: Path, *overrides: str) -> DictConfig:
    """The config of a recipe."""
    with initialize_config_dir(str(recipe), version_base="1.3"):
        return compose("recipe", ["hydra.searchpath=[pkg://lightning_compress.conf]", *overrides])


def variants(recipe: Path) -> dict[str, list[str]]:
    """Name → overrides, of what a recipe can be made of."""
    cfg = composed(recipe)
    methods = [group for group in NAMES if cfg[group]]
    alone = {NAMES[method]: [f"{other}=none" for other in methods if other != method] for method in methods}
    whole = "both" if len(methods) > 1 else NAMES[methods[0]]
    plain = {name: [*overrides, "distillation=none"] for name, overrides in {**alone, whole: []}.items()}
    return plain | {f"{whole}, distilled": [] if cfg.distillation else ["distillation=logits"]}


def measure(recipe: Path, seed: int, work: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """The dense control of a seed, then every variant."""
    common = ["--config-dir", str(recipe), "--config-name", "recipe", "logger=none", f"seed={seed}", *overrides]
    runner = Runner(task=recipe.name, root="", work=work)
    control = runner.train(runner.folder("dense", seed), [*common, *OFF, "dense_baseline=false"])
    rows: list[dict[str, Any]] = []
    for name, more in variants(recipe).items():
        folder = runner.folder(name, seed)
        runner.train(folder, [*common, *more, f"dense_checkpoint={control['checkpoint']}"])
        report = json.loads((folder / "compressed" / "report.json").read_text())
        found = report["results"]
        files = {artifact["format"]: artifact["bytes"] for artifact in report["artifacts"]}
        if not rows:
            rows.append(row("dense", seed, found["dense"], found["dense"], found["dense"]["bytes"]))
        rows.append(row(name, seed, found["deployed"], found["dense"], files["packed"]))
        print(rows[-1], flush=True)
    return rows


def row(name: str, seed: int, model: dict[str, Any], dense: dict[str, Any], packed: int) -> dict[str, Any]:
    """Accuracy in percent, drop in points, bytes, and latency at batch 1 in microseconds."""
    accuracy, before = (100 * of["metrics"]["test/acc"] for of in (model, dense))
    return {
        "variant": name,
        "seed": seed,
        "accuracy": round(accuracy, 3),
        "drop": round(before - accuracy, 3),
        "onnx_smaller": round(dense["bytes"] / model["bytes"], 3),
        "packed_smaller": round(dense["bytes"] / packed, 3),
        "latency_us": round(1000 * model["latency_ms"]["median"], 1),
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over the seeds and, of several, the standard deviation of accuracy and drop."""
    rows = []
    for name in dict.fromkeys(run["variant"] for run in runs):
        of_row = [run for run in runs if run["variant"] == name]
        rows.append({"variant": name, **results.averages(of_row, list(of_row[0])[2:])})
    return rows


def main() -> None:
    """Run, print, and keep where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="name of a folder in recipes/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where runs are kept; outputs/variants by default")
    parser.add_argument("--write", action="store_true", help="keep the numbers in benchmarks/results")
    parser.add_argument("overrides", nargs="*", help="more overrides, such as data.root=~/data")
    arguments = parser.parse_intermixed_args()
    recipe = results.ROOT / "recipes" / arguments.recipe
    if not (recipe / "recipe.yaml").is_file():
        sys.exit(f"{recipe} holds no recipe.yaml.")
    work = (arguments.work or results.ROOT / "outputs" / "variants").resolve() / arguments.recipe
    runs = [row for seed in range(arguments.seeds) for row in measure(recipe, seed, work, arguments.overrides)]
    if arguments.write:
        results.write(
            f"variants_{arguments.recipe}",
            summary(runs),
            columns={
                "variant": "variant",
                "accuracy": ("test accuracy, %", ".2f"),
                "drop": ("dense − this, points", ".2f"),
                "onnx_smaller": ("ONNX file, × smaller", ".1f"),
                "packed_smaller": ("packed file, × smaller", ".1f"),
                "latency_us": ("latency at batch 1, µs", ".0f"),
            },
            seeds=range(arguments.seeds),
            threads=1,
            notes=[
                "Last epoch, the written ONNX file in ONNX Runtime; all beside one dense control a seed, trained as "
                "long. Zeros make the packed file smaller, no runtime faster."
            ],
            runs=runs,
        )


if __name__ == "__main__":
    main()
