"""Run a recipe over its seeds and compare with what it is expected to reach.

``python recipes/check.py recipes/digits_cnn_sparse80_w8a8`` runs it, prints a Markdown table (mean ± standard deviation
over the seeds) and exits with 1 where a number leaves the tolerance of ``expected.json``. ``--write`` keeps the new
numbers instead: in ``expected.json``, and between the markers in the recipe's README and in the repository's.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODELS = ("dense", "fake_quantized", "deployed")
TOLERANCE = {"accuracy_points": 1.0, "bytes_relative": 0.05, "agreement": 0.005}


def run(recipe: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Run a recipe once and read its report."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable, "-m", "lightning_compress.cli", "train", "--config-dir", str(recipe), "--config-name",
            "recipe", "logger=none", f"seed={seed}", f"hydra.run.dir={directory}/run", *overrides,
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        report: dict[str, Any] = json.loads((Path(directory) / "run" / "compressed" / "report.json").read_text())
        return report


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    """What of a report is expected again: accuracies in percent, bytes, agreement in [0, 1]."""
    results = report["results"]
    return {
        "seed": report["seed"],
        "accuracy": {model: round(100 * results[model]["metrics"]["test/acc"], 3) for model in MODELS},
        "bytes": {"dense": results["dense"]["bytes"], **{a["format"]: a["bytes"] for a in report["artifacts"]}},
        "latency_us": {
            model: round(1000 * results[model]["latency_ms"]["median"], 1)
            for model in MODELS
            if results[model]["latency_ms"]
        },
        "agreement": round(report["agreement"], 5),
    }


def spread(values: list[float], digits: int = 2) -> str:
    """Mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def summary(reports: list[dict[str, Any]], recipe: Path) -> str:
    """All seeds as Markdown."""
    seeds = [numbers(report) for report in reports]
    environment = reports[0]["environment"]
    dense = statistics.mean(seed["bytes"]["dense"] for seed in seeds)
    lines = [
        "| | test accuracy, % | file, kB | times smaller | latency at batch 1, µs |",
        "|---|---:|---:|---:|---:|",
    ]
    for model in MODELS:
        result = reports[0]["results"][model]
        accuracy = spread([seed["accuracy"][model] for seed in seeds])
        size = statistics.mean(report["results"][model]["bytes"] for report in reports)
        measured = all(model in seed["latency_us"] for seed in seeds)
        latency = spread([seed["latency_us"][model] for seed in seeds], 0) if measured else "–"
        name = f"{result['label']} ({result['runtime']})"
        lines.append(f"| {name} | {accuracy} | {size / 1000:.1f} | {dense / size:.1f} | {latency} |")
    if "packed" in seeds[0]["bytes"]:
        size = statistics.mean(seed["bytes"]["packed"] for seed in seeds)
        lines.append(f"| Packed file of the same weights | as deployed | {size / 1000:.1f} | {dense / size:.1f} | – |")
    drops = [seed["accuracy"]["dense"] - seed["accuracy"]["deployed"] for seed in seeds]
    return "\n".join(
        [
            f"{len(seeds)} seeds, last epoch; the dense control trained as long from the same start. "
            f"{environment['cpu']}, {environment['threads']} thread, PyTorch {environment['torch']}, ONNX Runtime "
            f"{environment['onnxruntime']}, {reports[0]['created'][:10]}; "
            f"`python recipes/check.py recipes/{recipe.name}`.",
            "",
            *lines,
            "",
            f"Dense minus deployed: {spread(drops)} points. Deployed and fake-quantized agree on at least "
            f"{min(seed['agreement'] for seed in seeds):.2%} of the test set. Zeros make the packed file smaller, no "
            f"runtime faster; latency is what 8-bit integers give on this processor.",
        ]
    )


def differences(found: list[dict[str, Any]], expected: dict[str, Any]) -> list[str]:
    """Where the mean over the seeds leaves the tolerance."""
    tolerance, lines = expected["tolerance"], []

    def mean(seeds: list[dict[str, Any]], group: str, key: str) -> float:
        return statistics.mean(seed[group][key] for seed in seeds)

    for model in MODELS:
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


def replace_marked(path: Path, name: str, text: str) -> None:
    """Put text between ``<!-- results:name -->`` and its end, where a file has these."""
    pattern = rf"(<!-- results:{name} -->\n).*?(<!-- /results:{name} -->)"
    content = path.read_text()
    path.write_text(re.sub(pattern, lambda match: f"{match[1]}{text}\n{match[2]}", content, flags=re.DOTALL))


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
    text = summary(reports, recipe)
    print(text)
    found = [numbers(report) for report in reports]
    if arguments.write:
        kept = {
            "created": reports[0]["created"],
            "environment": reports[0]["environment"],
            "tolerance": TOLERANCE,
            "seeds": found,
        }
        expected_path.write_text(json.dumps(kept, indent=1) + "\n")
        for readme in (recipe / "README.md", ROOT / "README.md"):
            replace_marked(readme, recipe.name, text)
        return 0
    if expected is None:
        print(f"{expected_path} is missing: --write makes it.", file=sys.stderr)
        return 2
    lines = differences(found, expected)
    print("\n".join(["", *lines] if lines else ["", "As expected."]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
