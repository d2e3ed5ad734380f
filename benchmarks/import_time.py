"""What importing lightning_compress adds to importing lightning, in seconds.

Fresh processes, interleaved, so that a busy machine slows both alike. Exits with 1 above the limit.

    python benchmarks/import_time.py --runs 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

import results

LIMIT_SECONDS = 0.3
STATEMENTS = {
    "lightning": "import lightning",
    "lightning_compress": "import lightning, lightning_compress",
    "all public names": "import lightning; from lightning_compress import *",
}
TIMER = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"


def seconds(statement: str) -> float:
    """Time one import in a process of its own."""
    answer = subprocess.run([sys.executable, "-c", TIMER.format(statement)], capture_output=True, text=True, check=True)
    return float(answer.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5, help="fresh processes for each import")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/import_time.json")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for run in range(arguments.runs + 1):
        for name, statement in STATEMENTS.items():
            taken = seconds(statement)
            if run:  # The first round fills the file cache.
                times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    added = {name: value - medians["lightning"] for name, value in medians.items()}
    if arguments.json:
        print(json.dumps({"median_seconds": medians, "added_seconds": added, "limit_seconds": LIMIT_SECONDS}))
    else:
        for name, value in medians.items():
            print(f"{name:20s} {value:6.2f} s  (+{added[name]:.2f} s over lightning)")
    if arguments.write:
        results.write(
            "import_time",
            [{"import": name, "seconds": value, "added": added[name]} for name, value in medians.items()],
            columns={"import": "import", "seconds": ("seconds", ".2f"), "added": ("over lightning alone", "+.2f")},
            notes=[f"Medians of {arguments.runs} fresh processes, interleaved."],
        )
    return 0 if max(added.values()) <= LIMIT_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
