"""The demo over several seeds: accuracy, bytes and latency of dense, fake-quantized and deployed.

Prints a Markdown table, mean ± standard deviation over the seeds, and how far the deployed model is from the dense one.
``--write`` keeps it in ``benchmarks/results/digits.json`` and between the markers in README.md.
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


def job(seed: int, overrides: list[str]) -> dict[str, Any]:
    """Run the demo once and read its report."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable, "-m", "lightning_compress.cli", "train", "experiment=demo", "logger=none", f"seed={seed}",
            f"hydra.run.dir={directory}/run", *overrides,
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads((Path(directory) / "run" / "compressed" / "report.json").read_text())


def spread(values: list[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean ± standard deviation."""
    scaled = [value * scale for value in values]
    deviation = statistics.stdev(scaled) if len(scaled) > 1 else 0.0
    return f"{statistics.mean(scaled):.{digits}f} ± {deviation:.{digits}f}"


def table(reports: list[dict[str, Any]]) -> str:
    """The reports of all seeds as Markdown."""
    lines = [
        "| | test accuracy, % | file, kB | compression ratio | latency at batch 1, µs |",
        "|---|---:|---:|---:|---:|",
    ]
    for model in MODELS:
        results = [report["results"][model] for report in reports]
        accuracy = spread([r["metrics"]["test/acc"] for r in results], 100)
        size = statistics.mean(r["bytes"] for r in results) / 1000
        ratio = statistics.mean(r["compression_ratio"] for r in results)
        latency = spread([r["latency_ms"]["median"] for r in results], 1000, 0)
        name = f"{results[0]['label']} ({results[0]['runtime']})"
        lines.append(f"| {name} | {accuracy} | {size:.1f} | {ratio:.1f} | {latency} |")
    packed = [a for report in reports for a in report["artifacts"] if a["format"] == "packed"]
    if packed:
        ratio = reports[0]["results"]["dense"]["bytes"] / statistics.mean(a["bytes"] for a in packed)
        size = statistics.mean(a["bytes"] for a in packed) / 1000
        lines.append(f"| Packed, the same weights | as deployed | {size:.1f} | {ratio:.1f} | – |")
    return "\n".join(lines)


def main() -> None:
    """Run all seeds and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="keep the results in the repository")
    parser.add_argument("overrides", nargs="*", help="more overrides for every job")
    arguments = parser.parse_args()
    reports = [job(seed, arguments.overrides) for seed in range(arguments.seeds)]
    drops = [
        report["results"]["dense"]["metrics"]["test/acc"] - report["results"]["deployed"]["metrics"]["test/acc"]
        for report in reports
    ]
    environment = reports[0]["environment"]
    sparsity = reports[0]["plan"]["pruning"]["final_sparsity"]
    text = "\n".join(
        [
            f"Digits, small residual CNN, {sparsity:.0%} sparse, 8-bit weights and activations; {len(reports)} seeds, "
            f"last epoch, dense control trained as long. {environment['cpu']}, {environment['threads']} thread, "
            f"PyTorch {environment['torch']}, ONNX Runtime {environment['onnxruntime']}, {reports[0]['created'][:10]}; "
            f"`python benchmarks/digits_compression.py`.",
            "",
            table(reports),
            "",
            f"Dense minus deployed: {spread(drops, 100)} points. Deployed and fake-quantized agree on "
            f"{min(report['agreement'] for report in reports):.2%} of the test set or more. The zeros make the packed "
            f"file smaller and no runtime faster; latency is what 8-bit integers give on this processor.",
        ]
    )
    print(text)
    if arguments.write:
        results = ROOT / "benchmarks" / "results"
        results.mkdir(exist_ok=True)
        keys = ("created", "environment", "results", "agreement", "artifacts")
        kept = [{"seed": seed, **{key: r[key] for key in keys}} for seed, r in enumerate(reports)]
        (results / "digits.json").write_text(json.dumps(kept, indent=1) + "\n")
        readme = ROOT / "README.md"
        marked = re.sub(
            r"(<!-- results:digits -->\n).*?(<!-- /results:digits -->)",
            lambda match: f"{match[1]}{text}\n{match[2]}",
            readme.read_text(),
            flags=re.DOTALL,
        )
        readme.write_text(marked)


if __name__ == "__main__":
    main()
