"""Run a recipe over its seeds and compare with what it is expected to reach.

``python recipes/check.py recipes/digits_cnn_sparse80_w8a8`` runs it, prints a Markdown table (mean ± standard deviation
over the seeds) and exits with 1 where a number leaves the tolerance of ``expected.json``. ``--write`` keeps the new
numbers instead, in ``expected.json``, and makes the tables anew that show them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import tables  # noqa: E402 - a neighbour, not installed

from lightning_compress.foundation.atomic_write import replacing  # noqa: E402

TOLERANCE = {"accuracy_points": 1.0, "bytes_relative": 0.05, "agreement": 0.005}


def run(recipe: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Run a recipe once and read its report."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable, "-m", "lightning_compress.cli.main", "train", "--config-dir", str(recipe), "--config-name",
            "recipe", "logger=none", f"seed={seed}", f"hydra.run.dir={directory}/run", *overrides,
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        report: dict[str, Any] = json.loads((Path(directory) / "run" / "compressed" / "report.json").read_text())
        return report


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    """What of a report is expected again: accuracies in percent, bytes, agreement in [0, 1]."""
    results = report["results"]
    metrics = {model: results[model]["metrics"] for model in tables.MODELS}
    more = {}
    if "test/perplexity" in metrics["deployed"]:
        more["perplexity"] = {model: round(found["test/perplexity"], 3) for model, found in metrics.items()}
    return {
        "seed": report["seed"],
        "accuracy": {model: round(100 * found["test/acc"], 3) for model, found in metrics.items()},
        **more,
        "bytes": {"dense": results["dense"]["bytes"], **{a["format"]: a["bytes"] for a in report["artifacts"]}},
        "latency_us": {
            model: round(1000 * results[model]["latency_ms"]["median"], 1)
            for model in tables.MODELS
            if results[model]["latency_ms"]
        },
        "agreement": round(report["agreement"], 5),
    }


def kept(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What ``expected.json`` holds of the reports of all seeds."""
    seeds = [numbers(report) for report in reports]
    models = {}
    for model in tables.MODELS:
        result = reports[0]["results"][model]
        file = next(name for name, size in seeds[0]["bytes"].items() if size == result["bytes"])
        models[model] = {"label": result["label"], "runtime": result["runtime"], "file": file}
    return {
        "created": reports[0]["created"],
        "environment": reports[0]["environment"],
        "tolerance": TOLERANCE,
        "models": models,
        "seeds": seeds,
    }


def differences(found: list[dict[str, Any]], expected: dict[str, Any]) -> list[str]:
    """Where the mean over the seeds leaves the tolerance."""
    tolerance, lines = expected["tolerance"], []

    def mean(seeds: list[dict[str, Any]], group: str, key: str) -> float:
        return statistics.mean(seed[group][key] for seed in seeds)

    for model in tables.MODELS:
        new, old = mean(found, "accuracy", model), mean(expected["seeds"], "accuracy", model)
        if abs(new - old) > tolerance["accuracy_points"]:
            lines.append(f"accuracy of {model}: expected {old:.2f} ± {tolerance['accuracy_points']}, got {new:.2f}")
    for name in expected["seeds"][0]["bytes"]:
        new, old = mean(found, "bytes", name), mean(expected["seeds"], "bytes", name)
        if abs(new / old - 1) > tolerance["bytes_relative"]:
            lines.append(f"bytes of {name}: expected {old:.0f} ± {tolerance['bytes_relative']:.0%}, got {new:.0f}")
    worst = min(seed["agreement"] for seed in found)
    least = min(seed["agreement"] for seed in expected["seeds"]) - tolerance["agreement"]
    if worst < least:
        lines.append(f"agreement: expected at least {least:.4f}, got {worst:.4f}")
    return lines


def main() -> int:
    """Run, print, and compare or keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, help="how many; those of expected.json by default, or 3")
    parser.add_argument("--write", action="store_true", help="keep the numbers as the expected ones")
    parser.add_argument("overrides", nargs="*", help="more overrides, such as data.root=~/data")
    arguments = parser.parse_intermixed_args()
    recipe = arguments.recipe.resolve()
    expected_path = recipe / "expected.json"
    expected = json.loads(expected_path.read_text()) if expected_path.exists() else None
    count = arguments.seeds or (len(expected["seeds"]) if expected else 3)
    reports = [run(recipe, seed, arguments.overrides) for seed in range(count)]
    new = kept(reports)
    print(tables.of_recipe(recipe.name, new))
    if arguments.write:
        with replacing(expected_path) as path:
            path.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
        tables.rewrite()
        return 0
    if expected is None:
        print(f"{expected_path} is missing: --write makes it.", file=sys.stderr)
        return 2
    lines = differences(new["seeds"], expected)
    print("\n".join(["", *lines] if lines else ["", "As expected."]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
