"""A sweep in which files are damaged, half written or hostile: the others are compared, and nothing is raised."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from sweeps import write_job, write_record

from lightning_compress.apps.compare.sweep import read_sweep
from lightning_compress.apps.train.sweep_jobs import _finished, read_jobs
from lightning_compress.cli.main import main
from lightning_compress.errors import CompressionError

_VALUES: list[Any] = [
    None, True, 0, -1, 0.5, 1e308, 10**400, float("nan"), "x", "$\\frac$", "[/red]", "</script>", [], {}, ["x"] * 3,
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("result.json", '{"seconds": {"compressed": "x"}}'),
        ("result.json", "[" * 100_000),
        ("result.json", '{"report": 5}'),
        ("job.json", '{"overrides": 0.5}'),
        ("job.json", '{"status": 7, "overrides": [{"a": 1}, 3]}'),
        ("compressed/report.json", '{"format": 1'),
        ("compressed/report.json", "\0"),
        (".hydra/overrides.yaml", "&a [*a"),
    ],
)
def test_a_job_with_a_damaged_file_leaves_the_others_as_they_are(
    file: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(tmp_path, "good", acc=0.97)
    bad = write_job(tmp_path, "bad", acc=0.99)
    (bad / file).parent.mkdir(exist_ok=True)
    (bad / file).write_text(content)
    assert main(["compare", str(tmp_path)]) == 0
    jobs = {job.name: job for job in read_sweep(tmp_path).jobs}
    assert jobs["good"].metrics["test/acc"] == 0.97
    assert [item["name"] for item in read_jobs(tmp_path)] == ["bad", "good"]


@pytest.mark.parametrize("link", [False, True])
def test_a_report_outside_of_the_sweep_is_not_read(link: bool, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    write_job(sweep, "good", acc=0.97)
    secret = write_job(tmp_path, "elsewhere", acc=0.99) / "compressed" / "report.json"
    job = sweep / "curious"
    job.mkdir()
    (job / "result.json").write_text(json.dumps({"report": str(secret)}))
    if link:
        (job / "report.json").symlink_to(secret)
    jobs = {found.name: found for found in read_sweep(sweep).jobs}
    assert jobs["good"].metrics["test/acc"] == 0.97
    assert jobs["curious"].status == "unfinished"
    assert not jobs["curious"].metrics
    assert "outside of" in str(jobs["curious"].error)
    # Named inside of what is compared, it counts.
    assert {found.name: found for found in read_sweep(tmp_path).jobs}["sweep/curious"].metrics["test/acc"] == 0.99


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("report.json", ("results", "deployed", "bytes")),
        ("report.json", ("results", "deployed", "latency_ms", "median")),
        ("report.json", ("results", "dense", "bytes")), ("report.json", ("results", "dense", "latency_ms", "p90")),
        ("report.json", ("artifacts", 0, "bytes")), ("report.json", ("samples",)),
        ("report.json", ("integer_share",)),
        ("report.json", ("plan", "pruning", "final_sparsity")), ("result.json", ("seconds", "compressed")),
    ],
)  # fmt: skip
def test_a_negative_size_or_time_is_a_damaged_result(file: str, keys: tuple[Any, ...], tmp_path: Path) -> None:
    job = write_job(tmp_path, "bad")
    path = next(job.rglob(file))
    content = {"integer_share": 0.5} | json.loads(path.read_text())
    node = content
    for key in keys[:-1]:
        node = node[key]
    if node[keys[-1]] is None:
        node[keys[-1]] = 1
    assert read_sweep(tmp_path).jobs[0].status == "finished"
    node[keys[-1]] = -node[keys[-1]]
    path.write_text(json.dumps(content))
    (found,) = read_sweep(tmp_path).jobs
    assert found.status == "unfinished"
    assert "expected a" in str(found.error)


def test_no_mutation_of_a_sweep_raises_anything_but_the_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    write_record(sweep / "failed", "failed", "boom")
    files = []
    for sparsity in (0.5, 0.8):
        job = write_job(sweep, f"pruning.final_sparsity={sparsity}", sparsity=sparsity)
        files += [job / "job.json", job / "result.json", job / "compressed" / "report.json"]
    whole = {file: json.loads(file.read_text()) for file in files}
    rng = random.Random(0)
    codes = set()
    for _ in range(200):
        for file, content in whole.items():
            changed = json.loads(json.dumps(content))
            for _ in range(rng.randrange(3)):
                mutate(changed, rng)
            file.write_text(json.dumps(changed))
        arguments = ["compare", str(sweep), "--html", str(tmp_path / "c.html"), "--markdown", str(tmp_path / "c.md")]
        codes.add(main([*arguments, *rng.choice([[], ["--json"], ["--max-drop", "1%"], ["--format", "packed"]])]))
    # Whatever is not its own error ends main with a traceback.
    assert codes <= {0, 1, 2}
    assert 0 in codes


def mutate(tree: Any, rng: random.Random) -> None:
    """Put something else at a random place."""
    while True:
        key = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        below = tree[key]
        if not isinstance(below, dict | list) or not below or rng.random() < 0.2:
            break
        tree = below
    if rng.random() < 0.2 and isinstance(tree, dict):
        del tree[key]
    else:
        tree[key] = copy.deepcopy(rng.choice(_VALUES))


def test_files_that_are_not_those_of_the_report_are_noticed(tmp_path: Path) -> None:
    write_job(tmp_path, "whole")
    job = write_job(tmp_path, "mixed")
    path = job / "compressed" / "report.json"
    report = json.loads(path.read_text())
    (path.parent / "model.packed").write_bytes(b"of this export")
    for artifact in report["artifacts"]:
        artifact["sha256"] = hashlib.sha256(b"of this export").hexdigest()
    path.write_text(json.dumps(report))
    assert {job.status for job in read_sweep(tmp_path).jobs} == {"finished"}
    (path.parent / "model.packed").write_bytes(b"of a later one")
    found = {job.name: job for job in read_sweep(tmp_path).jobs}
    assert found["whole"].status == "finished"
    assert found["mixed"].status == "unfinished"
    assert "model.packed is not the file that its report speaks of" in str(found["mixed"].error)


def test_a_result_that_is_damaged_is_named_when_its_job_would_run_again(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"name": 3}')
    with pytest.raises(CompressionError, match=r"result\.json: damaged"):
        _finished(tmp_path, None)


def test_pipes_devices_and_links_to_them_are_no_results(tmp_path: Path) -> None:
    write_job(tmp_path, "good", acc=0.97)
    for number, file in enumerate(("result.json", "job.json", ".hydra/overrides.yaml")):
        pipe, device = (tmp_path / f"{kind}{number}" / file for kind in ("pipe", "device"))
        for path in (pipe, device):
            path.parent.mkdir(parents=True)
        os.mkfifo(pipe)
        device.symlink_to("/dev/zero")
    assert [job.name for job in read_sweep(tmp_path).jobs if job.status == "finished"] == ["good"]
