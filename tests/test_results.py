"""What the benchmarks write, and the tables that are made from it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import accuracy  # noqa: E402 - neighbours, not installed
import headlines  # noqa: E402
import results  # noqa: E402
import tables  # noqa: E402

ROWS = [
    {"network": "resnet20", "ratio": 1.3, "ratio_std": 0.016, "weights": 272474, "exact": True},
    {"network": "encoder", "ratio": None, "weights": 12, "exact": False},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with nothing in it."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    return tmp_path


def written(name: str = "steps", **settings: Any) -> dict[str, Any]:
    return json.loads(results.write(name, ROWS, **settings).read_text(encoding="utf-8"))


def test_a_result_says_how_where_and_when_it_was_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(ROOT / "benchmarks" / "steps.py")
    monkeypatch.setattr(sys, "argv", [script, "--root", "/home/someone/data", "data.root=~/data", "--seeds", "3"])
    found = written(seeds=[0, 1, 2], threads=2, notes=["One."], versions={"torchao": "0.18"})
    assert found["benchmark"] == "steps"
    assert found["command"] == "python benchmarks/steps.py --root DIRECTORY data.root=DIRECTORY --seeds 3"
    assert found["date"] == datetime.now(timezone.utc).date().isoformat()
    assert set(found["machine"]) == {"processor", "cores", "instruction_sets", "memory_gb", "gpu"}
    assert set(found["versions"]) == {"python", "torch", "lightning", "onnxruntime", "lightning_compress", "torchao"}
    assert (found["seeds"], found["threads"], found["notes"]) == ([0, 1, 2], 2, ["One."])
    assert found["rows"] == ROWS


def test_the_instruction_sets_are_those_of_the_processor() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert set(results.instruction_sets()) == {name for name in results.INSTRUCTIONS if name in flags}


@pytest.mark.parametrize(("rows", "says"), [([], "no row"), ([{"a": [1]}], "a is list")])
def test_rows_that_are_no_table_are_refused(folder: Path, rows: list[Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        results.write("steps", rows)
    assert not (folder / "benchmarks").exists()


def test_a_table_shows_the_columns_that_were_asked_for(folder: Path) -> None:
    written(columns={"network": "network", "ratio": ("QAT ÷ float", ".2f"), "weights": "weights", "exact": "exact"})
    lines = tables.table("steps").splitlines()
    assert lines[:4] == [
        "| network | QAT ÷ float | weights | exact |",
        "|---|---:|---:|---:|",
        "| resnet20 | 1.30 ± 0.02 | 272,474 | yes |",
        "| encoder | – | 12 | no |",
    ]


def test_a_table_folds_away_how_it_was_measured(folder: Path) -> None:
    columns = {"network": "network", "accuracy": "accuracy, %"}
    origins = ["resnet20 (seed 0): on another day."]
    found = written(columns=columns, seeds=[0, 1], notes=["Of the last epoch."], origins=origins)
    for chinese, count, summary in ((False, "2 seeds.", "How this was measured"), (True, "2 个随机种子。", "测量方法")):
        shown, _, hidden = tables.table("steps", chinese).partition(f"<details><summary>{summary}</summary>\n\n")
        assert f"\n\n{count}\nOf the last epoch.\n\n" in shown
        assert hidden.startswith("resnet20 (seed 0): on another day.\n\nseeds 0, 1, ")
        assert hidden.endswith(f"{found['date']}; `{found['command']}`.\n\n</details>\n")


def test_tables_are_written_between_their_markers_alone(folder: Path) -> None:
    written()
    page = folder / "README.md"
    page.write_text("Before\n<!-- results:steps -->\nold\n<!-- /results:steps -->\nAfter\n", encoding="utf-8")
    assert tables.rewrite(check=True) == ["README.md"]
    assert "old" in page.read_text(encoding="utf-8")
    assert tables.rewrite() == ["README.md"]
    content = page.read_text(encoding="utf-8")
    assert content.startswith("Before\n<!-- results:steps -->\n| network |")
    assert content.endswith("\n<!-- /results:steps -->\nAfter\n")
    assert "old" not in content
    assert tables.rewrite(check=True) == []


def test_a_result_that_was_not_measured_shows_no_number(folder: Path) -> None:
    marked = "<!-- results:absent -->\n| 99.9 |\n<!-- /results:absent -->\n"
    expected = "<!-- results:absent -->\nNot measured yet.\n<!-- /results:absent -->\n"
    assert tables.replace_marked(marked) == expected


def test_the_mean_and_deviation_of_a_recipe_are_those_of_its_seeds() -> None:
    recipe = ROOT / "recipes" / "digits_cnn_sparse80_w8a8" / "expected.json"
    found = json.loads(recipe.read_text())
    for seed, value in zip(found["seeds"], (90.0, 92.0, 97.0), strict=True):
        seed["accuracy"]["deployed"] = value
    # By hand: mean 93; squares of 3, 1 and 4 over two degrees of freedom: 13; its root 3.61.
    assert "| Deployed (ONNX Runtime 1.32.0, CPU, 1 thread) | 93.00 ± 3.61 |" in tables.of_recipe("digits", found)
    assert "| 部署模型 (ONNX Runtime 1.32.0, CPU, 1 thread) | 93.00 ± 3.61 |" in tables.of_recipe("digits", found, True)


def test_recipes_that_were_run_stand_in_one_table(folder: Path) -> None:
    expected = json.loads((ROOT / "recipes" / "digits_cnn_sparse80_w8a8" / "expected.json").read_text())
    for seed, dense, deployed in zip(expected["seeds"], (93.0, 95.0, 97.0), (93.0, 94.0, 95.0), strict=True):
        seed["accuracy"] = {"dense": dense, "deployed": deployed}
        seed["bytes"] = {"dense": 900, "onnx": 300, "packed": 100}
    (folder / "recipes" / "three").mkdir(parents=True)
    (folder / "recipes" / "three" / "expected.json").write_text(json.dumps(expected))
    # By hand: drops 0, 1 and 2.
    line = "| `three` | 3 | 95.00 ± 2.00 | 94.00 ± 1.00 | 1.00 ± 1.00 | 3.0 | 9.0 | 2026-11-24 |"
    assert line in tables.table("recipes").splitlines()
    assert line in tables.table("recipes", chinese=True).splitlines()


def test_seeds_that_are_measured_later_join_the_earlier_ones(folder: Path) -> None:
    def runs(seed: int, dense: float, **rows: float) -> list[dict[str, Any]]:
        found = {"dense": dense, **{name.replace("_", " "): value for name, value in rows.items()}}
        return [
            {"compression": name, "seed": seed, "accuracy": value, "drop": dense - value, "times_smaller": 2.0}
            for name, value in found.items()
        ]

    def kept(now: list[dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], list[str]]:
        rows, all_runs, notes = accuracy.with_earlier("fashion_mnist_mlp", now)
        results.write("accuracy_fashion_mnist_mlp", rows, runs=all_runs)
        return {row["compression"]: row for row in rows}, notes

    rows, notes = kept(runs(0, 90.0, **{"8_bits": 89.0}))
    assert (rows["8 bits"]["accuracy"], rows["8 bits"]["seeds"], notes) == (89.0, 1, [])
    later = [*runs(1, 92.0, **{"8_bits": 93.0, "4_bits": 80.0}), *runs(2, 97.0, **{"8_bits": 97.0, "4_bits": 90.0})]
    rows, _ = kept(later)
    # By hand: mean 93, squares of 4, 0 and 4 over two degrees of freedom: 16.
    assert (rows["8 bits"]["accuracy"], rows["8 bits"]["accuracy_std"], rows["8 bits"]["drop"]) == (93.0, 4.0, 0.0)
    assert (rows["dense"]["accuracy"], rows["dense"]["seeds"]) == (93.0, 3)
    assert (rows["4 bits"]["accuracy"], rows["4 bits"]["dense"], rows["4 bits"]["seeds"]) == (85.0, 94.5, 2)
    with pytest.raises(SystemExit, match="beside another dense control"):
        kept(runs(0, 91.0, **{"2_bits": 60.0}))


def test_earlier_runs_are_shown_with_their_command() -> None:
    other = {"date": "2026-11-01", "command": "python benchmarks/accuracy.py"}
    measured = [{"compression": "8 bits", "seed": 0, **other}, {"compression": "4 bits", "seeds": 3, **other}]
    notes = accuracy.origins_of([*measured, {"compression": "8 bits", "seed": 1, **other}], ["4 bits", "8 bits"])
    assert notes == ["4 bits (seed 0 to 2); 8 bits (seed 0, 1): 2026-11-01, `python benchmarks/accuracy.py`."]


def test_every_published_table_is_what_the_result_files_give() -> None:
    done = subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_headline_shows_one_row_of_its_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = headlines.Headline("Step", "步", "steps", {"network": "resnet20"}, "{ratio:.2f} of {weights:,d}")
    other = headlines.Headline("Other", "其他", "missing", {}, "{ratio}")
    monkeypatch.setattr(tables, "HEADLINES", [line, other])
    found = written()
    script = found["command"].partition(" --")[0]
    shown = f"`{script}`, {found['date']}"
    assert tables.table("headlines").splitlines()[2:] == [f"| Step | 1.30 of 272,474 | {shown} |"]
    assert tables.table("headlines", chinese=True).splitlines()[2:] == [f"| 步 | 1.30 of 272,474 | {shown} |"]


def test_a_headline_has_the_dates_of_its_own_rows(folder: Path) -> None:
    rows = [{"compression": name, "accuracy": 90.0} for name in ("8 bits", "4 bits", "2 bits")]
    rows[2]["date"] = "2026-11-03"  # of its runs the mean alone was kept
    days = {("8 bits", 0): "2026-11-01", ("8 bits", 1): "2026-11-02", ("4 bits", 0): "2026-11-01"}
    runs = [{"compression": name, "seed": seed, "date": day} for (name, seed), day in days.items()]
    results.write("accuracy", rows, runs=runs)
    for names, dates in {
        ("8 bits",): "2026-11-01, 2026-11-02",
        ("4 bits",): "2026-11-01",
        ("4 bits", "2 bits"): "2026-11-01, 2026-11-03",
    }.items():
        line = headlines.Headline("Accuracy", "准确率", "accuracy", {"compression": names}, "{accuracy}")
        found = line.found(folder / "benchmarks" / "results")
        assert found is not None
        assert found[1].endswith(f"`, {dates}")


def test_a_headline_of_a_row_that_is_gone_is_an_error(folder: Path) -> None:
    written()
    with pytest.raises(KeyError, match=r"no row with.*resnet56"):
        headlines.Headline("Step", "步", "steps", {"network": "resnet56"}, "{ratio}").found(
            folder / "benchmarks/results"
        )
