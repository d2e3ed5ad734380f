from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sweeps import write_job, write_record
from wandb_runs import read_runs

from lightning_compress.cli.main import main


@pytest.fixture
def sweep_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine jobs; accuracy and bytes fall with sparsity and bits. One more failed."""
    for index, sparsity in enumerate((0.5, 0.8, 0.95)):
        for bits in (8, 4, 2):
            acc = 0.982 - 0.004 * index - {8: 0.0, 4: 0.005, 2: 0.1}[bits]
            name = f"pruning.final_sparsity={sparsity},quantization=w{bits}a{bits}"
            packed, latency = int(100_000 * (1 - sparsity) * bits), 0.02 + 0.001 * bits
            write_job(tmp_path / "sweep", name, acc=acc, packed=packed, latency=latency, sparsity=sparsity, bits=bits)
    write_record(tmp_path / "sweep" / "bad", "failed", "pruning.targets: matches nothing.")
    monkeypatch.chdir(tmp_path)
    return Path("sweep")


def compare(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["compare", "sweep", "--format", "packed", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("sweep_dir")
@pytest.mark.parametrize(
    ("arguments", "keeps", "cost"),
    [
        ((), lambda job: job["drop"] <= 0.01, "bytes"),
        (("--max-drop", "0.5%"), lambda job: job["drop"] <= 0.005, "bytes"),
        (("--max-size", "100KB"), lambda job: job["bytes"] <= 100_000, "loss"),
        (("--max-size", "100KiB"), lambda job: job["bytes"] <= 102_400, "loss"),
        (("--max-latency", "25us"), lambda job: job["latency_ms"] <= 0.025, "loss"),
        (("--max-drop", "20%", "--max-latency", "0.023ms"), lambda job: job["latency_ms"] <= 0.023, "bytes"),
        (("--max-drop", "20%", "--objective", "latency"), lambda job: job["drop"] <= 0.2, "latency_ms"),
        (("--max-drop", "5%", "--metric", "test/loss", "--mode", "min"), lambda job: job["drop"] <= 0.004, "bytes"),
    ],
)
def test_the_choice_keeps_the_limits_and_no_job_that_keeps_them_is_better(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], keeps: Any, cost: str
) -> None:
    code, found = compare(capsys, *arguments)
    assert code == 0
    jobs = {job["name"]: {**job, "loss": -(job["value"] or 0)} for job in found["jobs"] if job["status"] == "finished"}
    assert len(jobs) == 9
    chosen = jobs[found["choice"]]
    assert keeps(chosen)
    assert chosen[cost] == min(job[cost] for job in jobs.values() if keeps(job))
    assert found["kept"][0] == found["choice"]
    assert sorted(found["kept"]) == sorted(name for name, job in jobs.items() if keeps(job))


@pytest.mark.usefixtures("sweep_dir")
def test_every_job_is_listed_with_its_numbers_or_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = compare(capsys)
    assert found["counts"] == {"finished": 9, "failed": 1, "unfinished": 0}
    (bad,) = [job for job in found["jobs"] if job["status"] == "failed"]
    assert (bad["name"], bad["error"], bad["bytes"]) == ("bad", "pruning.targets: matches nothing.", None)
    by_name = {job["name"]: job for job in found["jobs"]}
    job = by_name["pruning.final_sparsity=0.8,quantization=w4a4"]
    assert job["files"] == {"onnx": 80_000, "packed": 79_999}
    assert job["bytes"] == 79_999
    assert job["drop"] == pytest.approx(0.98 - job["metrics"]["test/acc"], abs=1e-7)


@pytest.mark.usefixtures("sweep_dir")
def test_nothing_that_keeps_the_limits_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = compare(capsys, "--max-size", "10B")
    assert code == 1
    assert found["choice"] is None
    assert found["kept"] == []
    assert any("limit on size" in reason for reason in found["reasons"])


@pytest.mark.usefixtures("sweep_dir")
def test_where_packed_files_alone_keep_the_size_their_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "sweep", "--max-size", "30KB"]) == 1
    assert "lightning-compress compare sweep --format packed" in capsys.readouterr().out
    assert main(["compare", "sweep", "--max-size", "30KB", "--format", "packed"]) == 0


@pytest.mark.usefixtures("sweep_dir")
def test_the_terminal_shows_the_table_the_failure_and_the_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "sweep", "--format", "packed"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("sweep: 10 jobs, 1 failed")
    assert sum(" global" in line and "kB" in line and "ms" in line for line in text.splitlines()) >= 9
    marked = [line.split() for line in text.splitlines() if line.startswith("→") and " global" in line]
    assert [row[:2] for row in marked] == [["→", "95"]]
    assert "…" not in text, "nothing is cut at 80 columns"
    assert "Failed: bad: pruning.targets: matches nothing." in text
    assert "Take 95 % global, w8a8" in text


def test_page_and_markdown_are_written_where_asked_with_links_from_there(
    sweep_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "sweep", "--html", "out/page.html", "--markdown", "out/table.md"]) == 0
    page = Path("out/page.html").read_text()
    assert 'href="../sweep/pruning.final_sparsity%3D0.5%2Cquantization%3Dw8a8/compressed/report.html"' in page
    assert Path("out/table.md").read_text().startswith("# Comparison of sweep")


@pytest.mark.usefixtures("sweep_dir")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "error: compare SWEEP_DIR: expected a directory of jobs, got 'nowhere'."),
        (("sweep", "--max-size", "100KBit"), "error: --max-size: expected a size"),
        (("sweep", "--max-latency", "2"), "error: --max-latency: expected a time"),
        (("sweep", "--metric", "test/ac"), "error: compare --metric: expected a metric of the reports, got 'test/ac'."),
        (("sweep", "--format", "zip"), "error: compare --format: expected one of deployed, onnx, packed, got 'zip'."),
    ],
)
def test_wrong_use_is_one_paragraph_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert main(["compare", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1


@pytest.mark.usefixtures("sweep_dir")
def test_help_explains_the_units(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["compare", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("1% or 0.01", "100KB", "150us", "1 none keeps the limits"):
        assert part in text


def test_wandb_gets_the_table_the_front_and_the_chosen_files(
    sweep_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    code, found = compare(capsys, "--wandb", "tests")
    assert code == 0
    (run,) = read_runs(sweep_dir)
    assert run.summary["choice"] == found["choice"]
    table = run.table("compare/jobs")
    assert [row[0] for row in table["data"]] == [job["name"] for job in found["jobs"]]
    assert any("compare/pareto/filenames" in row or "compare/pareto" in row for row in run.history)
    (artifact,) = [artifact for artifact in run.artifacts if artifact.type == "model"]
    assert "chosen" in artifact.aliases
    assert json.loads(artifact.metadata)["job"] == found["choice"]
    assert "report.json" in [entry.path for entry in artifact.manifest.contents]
