from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from sweeps import write_job, write_record

from lightning_compress.apps.compare.choose import Choice, choose
from lightning_compress.apps.compare.limits import Limits
from lightning_compress.apps.compare.sweep import Job, Sweep, read_sweep
from lightning_compress.apps.configuration.compose import composed

ACC = "test/acc"


@st.composite
def sweeps(draw: st.DrawFn) -> Sweep:
    """Jobs with few different numbers, so that ties are frequent."""
    jobs = tuple(
        Job(
            f"job{index}",
            Path(f"job{index}"),
            "finished",
            metrics={ACC: draw(st.sampled_from([0.9, 0.95, 0.97, 0.98]))},
            dense_metrics={ACC: draw(st.sampled_from([0.97, 0.98]))},
            bytes=draw(st.sampled_from([100, 200, 300])),
            latency_ms=draw(st.sampled_from([1.0, 2.0, None])),
        )
        for index in range(draw(st.integers(1, 12)))
    )
    return Sweep(Path("."), draw(st.permutations(jobs)))


@settings(max_examples=150, derandomize=True)
@given(
    sweeps(),
    st.sampled_from([None, 0.0, 0.01, 0.05]),
    st.sampled_from([None, 150.0, 250.0]),
    st.sampled_from([None, 1.5]),
    st.sampled_from(["bytes", "metric", "latency"]),
)
def test_the_choice_keeps_the_limits_and_no_job_that_keeps_them_is_better(
    sweep: Sweep, drop: float | None, size: float | None, latency: float | None, objective: str
) -> None:
    given_drop = None if drop is None else (drop, False)
    limits = Limits.of(ACC, max_drop=given_drop, max_size=size, max_latency=latency, objective=objective)

    def keeps(job: Job) -> bool:
        lost = job.dense_metrics[ACC] - job.metrics[ACC]
        return (
            (drop is None or lost <= drop + 1e-9)
            and (size is None or job.bytes <= size)
            and (latency is None or (job.latency_ms is not None and job.latency_ms <= latency))
        )

    def cost(job: Job) -> float:
        fast = float("inf") if job.latency_ms is None else job.latency_ms
        return {"bytes": job.bytes, "metric": -job.metrics[ACC], "latency": fast}[objective]

    allowed = [job for job in sweep.jobs if keeps(job)]
    chosen = choose(sweep, limits).job
    assert (chosen is None) == (not allowed)
    if chosen is not None:
        assert keeps(chosen)
        assert cost(chosen) == min(map(cost, allowed))
    again = choose(Sweep(sweep.path, tuple(reversed(sweep.jobs))), limits).job
    assert again == chosen, "the order of the jobs decides nothing"


def test_equal_bytes_are_told_apart_by_the_metric_then_latency_then_name(tmp_path: Path) -> None:
    for name, acc, latency in (("d", 0.97, 0.01), ("c", 0.98, 0.03), ("b", 0.98, 0.02), ("a", 0.98, 0.03)):
        write_job(tmp_path, name, acc=acc, latency=latency)
    kept = choose(read_sweep(tmp_path), Limits.of(ACC, max_drop=(0.05, False))).kept
    assert [job.name for job in kept] == ["b", "a", "c", "d"]


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Accuracy falls with sparsity and with bits; the dense control has 98 %."""
    for sparsity in (0.5, 0.8, 0.95):
        for bits in (8, 2):
            acc = 0.985 - 0.02 * sparsity**4 - (0.05 if bits == 2 else 0.0)
            packed = int(100_000 * (1 - sparsity) * bits / 8)
            name = f"pruning.final_sparsity={sparsity},quantization=w{bits}a{bits},trainer.max_epochs=10"
            overrides = ("sweep=resumable", "pruning=global", *name.split(","))
            write_job(tmp_path, name, acc=acc, packed=packed, sparsity=sparsity, bits=bits, overrides=overrides)
    return tmp_path


def asked_for(command: str | None) -> tuple[DictConfig, Path]:
    """The config of the job that a printed command asks for, and the directory of its sweep."""
    assert command is not None
    program, train, multirun, *overrides = shlex.split(command)
    assert (program, train, multirun) == ("lightning-compress", "train", "-m")
    with composed(overrides, "") as cfg:
        return cfg, Path(HydraConfig.get().sweep.dir)


def decide(grid: Path, *, format: str = "packed", **limits: object) -> Choice:
    return choose(read_sweep(grid, format), Limits.of(ACC, **limits))


def test_the_reasons_hold_the_numbers_of_the_choice(grid: Path) -> None:
    choice = decide(grid, max_drop=(0.005, True))
    assert choice.job is not None
    assert (choice.job.sparsity, choice.job.weight_bits) == (0.8, 8)
    text = " ".join(choice.reasons)
    for part in ("20.0 kB (packed file)", "15.5× smaller", "97.68 %", "0.32 points below", "at most 0.50 points"):
        assert part in text
    assert "0.28 points" in text, "what one of 360 samples is"


@pytest.mark.parametrize(
    ("metric", "acc", "expected"),
    [
        (ACC, 0.97, "1.00 points below"),
        (ACC, 0.99, "1.00 points above"),
        ("test/loss", 0.97, "0.04 above"),
        ("test/loss", 0.99, "0.04 below"),
        ("test/loss", 0.98, "the same as"),
    ],
)
def test_the_reason_says_on_which_side_of_its_control_a_job_lies(
    tmp_path: Path, metric: str, acc: float, expected: str
) -> None:
    write_job(tmp_path, "a", acc=acc, dense_acc=0.98)
    reasons = choose(read_sweep(tmp_path), Limits.of(metric, max_drop=(0.5, False))).reasons
    assert f", {expected} its dense control; at most" in reasons[1]


def test_between_what_keeps_the_limit_and_what_does_not_the_middle_is_tried_next(grid: Path) -> None:
    following = dict(decide(grid, max_drop=(0.005, True)).next)
    (command,) = [text for sentence, text in following.items() if "sparsity with w8a8" in sentence]
    assert "pruning.final_sparsity=0.9 quantization=w8a8" in command
    assert f"hydra.sweep.dir={grid}" in command
    (longer,) = [text for sentence, text in following.items() if "longer training" in sentence]
    assert "quantization=w2a2 trainer.max_epochs=20" in longer


def test_room_to_spare_at_the_sparsest_job_asks_for_a_sparser_one(grid: Path) -> None:
    choice = decide(grid, max_drop=(0.08, False))
    assert choice.job is not None
    assert (choice.job.sparsity, choice.job.weight_bits) == (0.95, 2)
    assert "try sparsity 0.975" not in str(choice.next), "most of the loss is spent"
    assert "try sparsity 0.975" in str(decide(grid, max_drop=(0.2, False)).next)


def test_commands_keep_what_the_jobs_add_and_delete(tmp_path: Path) -> None:
    added = ("pruning=global", "quantization=w8a8", "+trainer.inference_mode=true", "~trainer.max_epochs")
    for name, sparsity, acc in (("0", 0.5, 0.98), ("1", 0.9, 0.9)):
        overrides = (*added, f"pruning.final_sparsity={sparsity}")
        write_job(tmp_path, name, acc=acc, sparsity=sparsity, packed=int(1e5 * (1 - sparsity)), overrides=overrides)
    ((_, command),) = decide(tmp_path).next
    cfg, _ = asked_for(command)
    assert cfg.pruning.final_sparsity == 0.776
    assert cfg.trainer.inference_mode is True
    assert "max_epochs" not in cfg.trainer


def test_a_job_that_is_not_pruned_gets_the_pruning_of_the_sparser_one(tmp_path: Path) -> None:
    for name, method, sparsity, acc in (
        ("0", ("pruning=none",), 0.0, 0.98),
        ("1", ("pruning=erk", "pruning.final_sparsity=0.8"), 0.8, 0.9),
    ):
        overrides = (*method, "quantization=w8a8")
        write_job(tmp_path, name, acc=acc, sparsity=sparsity, packed=int(1e5 * (1 - sparsity)), overrides=overrides)
    ((_, command),) = decide(tmp_path).next
    cfg, _ = asked_for(command)
    assert (cfg.pruning.distribution, cfg.pruning.final_sparsity) == ("erk", 0.553)


def test_where_no_job_is_pruned_the_command_says_how(tmp_path: Path) -> None:
    write_job(tmp_path, "0", acc=0.98, sparsity=0.0, overrides=("pruning=none", "quantization=w8a8"))
    ((_, command),) = decide(tmp_path).next
    cfg, _ = asked_for(command)
    assert (cfg.pruning.distribution, cfg.pruning.final_sparsity) == ("global", 0.5)


def test_a_new_job_takes_no_directory_of_another_one(tmp_path: Path) -> None:
    sweep = tmp_path / "my sweeps" / "mine"
    names = {"numbers": ("0", ()), "names": ("pruning.final_sparsity=0.5", ("sweep=resumable",))}
    for kind, (name, preset) in names.items():
        overrides = (*preset, "pruning=global", "pruning.final_sparsity=0.5")
        write_job(sweep / kind, name, acc=0.98, sparsity=0.5, overrides=overrides)
    (sweep / "numbers_2").mkdir()
    found = {kind: asked_for(decide(sweep / kind).next[0][1])[1] for kind in names}
    assert found == {"numbers": sweep / "numbers_3", "names": sweep / "names"}


def test_no_sparsity_is_advised_for_files_that_it_does_not_shrink(grid: Path) -> None:
    following = str(decide(grid, format="onnx", max_drop=(0.2, False)).next)
    assert "sparsity" not in following
    assert "--format packed" in str(decide(grid, format="deployed").next)


def test_nothing_kept_names_the_limit_to_blame_and_what_comes_near(grid: Path) -> None:
    choice = decide(grid, max_drop=(0.005, True), max_size=10_000.0)
    assert choice.job is None
    assert "None of the 6 jobs keeps the limits" in choice.verdict
    reasons = " ".join(choice.reasons)
    assert "The limit on drop alone is kept by 2 of 6 jobs." in reasons
    assert "The limit on size alone is kept by 3 of 6 jobs." in reasons
    assert "Near: 95 % global, w8a8; it loses 1.13 points." in reasons
    assert {sentence.split(":")[0] for sentence, _ in choice.next} == {"Less loss", "A smaller file"}


def test_failed_jobs_are_advised_to_be_run_again(grid: Path) -> None:
    write_record(grid / "bad", "failed", "no memory")
    assert "1 of 7 jobs has no numbers" in decide(grid).next[0][0]


def test_the_drop_is_against_the_jobs_own_control(tmp_path: Path) -> None:
    write_job(tmp_path, "a", acc=0.95, dense_acc=0.951, packed=100)
    write_job(tmp_path, "b", acc=0.96, dense_acc=0.99, packed=50)
    chosen = decide(tmp_path, max_drop=(0.01, True)).job
    assert chosen is not None
    assert chosen.name == "a"


def test_without_any_finished_job_there_is_nothing_to_choose(tmp_path: Path) -> None:
    write_record(tmp_path / "bad", "failed", "no memory")
    choice = decide(tmp_path, format="deployed")
    assert choice.job is None
    assert "no job has finished" in choice.verdict
