"""The plan of a run, and its refusal."""

from __future__ import annotations

import pytest
from lightning_modules import PlainModule, loader, quiet_trainer

from lightning_compress import (
    CompressionError,
    CompressionMonitor,
    GradualMagnitudePruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
)
from lightning_compress.monitoring.phases import Phase, bar, check, notes, plan
from lightning_compress.pruning.schedule import CURVES, SparsitySchedule

SCHEDULE = SparsitySchedule(0.0, 0.8, start=10, end=60, every=10, curve=CURVES["cubic"])


def test_a_plan_is_in_the_order_in_which_phases_begin() -> None:
    found = plan(SCHEDULE, {"start": 30, "freeze_range": 80}, {"start": 0, "end": 90}, bits="4/8")
    assert found == [
        Phase("distillation", 0, 90),
        Phase("pruning 0 to 0.8", 10, 60),
        Phase("quantization 4/8", 30),
        Phase("sparsity 0.8", 60),
        Phase("ranges frozen", 80),
    ]


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (Phase("distillation", 101), "phase 'distillation': expected a start within the run's 100 .*got 101"),
        (Phase("distillation", 0, 101), "phase 'distillation': expected an end within the run's 100 .*got 101"),
    ],
)
def test_a_phase_outside_the_run_is_refused(phase: Phase, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        check([phase], total=100)


def test_a_run_of_unknown_length_has_room_for_every_phase() -> None:
    check([Phase("distillation", 0, 10**9)], total=None)


def test_ranges_frozen_before_pruning_ends_are_a_note() -> None:
    assert "frozen at step 30, before pruning ends at 60" in notes(SCHEDULE, {"start": 10, "freeze_range": 30})[0]
    assert notes(SCHEDULE, {"start": 10, "freeze_range": 60}) == []
    assert notes(SCHEDULE, {"start": 10}) == []


def test_a_phase_is_drawn_where_it_lies() -> None:
    assert bar(Phase("", 0, 50), total=100) == "━" * 12 + "·" * 12
    assert bar(Phase("", 99), total=100).count("━") == 1


def test_the_plan_is_printed_before_training_and_not_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    callbacks = [
        GradualMagnitudePruning(0.8, start=2, end=8, every=2),
        QuantizationAwareTraining(start=4, freeze_range=6),
        KnowledgeDistillation("self", end=12),
    ]
    quiet_trainer(callbacks=[*callbacks, CompressionMonitor()], max_steps=16).fit(PlainModule(), loader())
    printed = capfd.readouterr()
    for text in ("pruning 0 to 0.8", "quantization 8/8", "distillation", "of 16 steps", "Note: Ranges are frozen"):
        assert text in printed.err
        assert text not in printed.out
    quiet = CompressionMonitor(print_phases=False)
    quiet_trainer(callbacks=[callbacks[0], quiet], max_steps=8).fit(PlainModule(), loader())
    assert "pruning" not in capfd.readouterr().err


def test_ranges_that_would_be_frozen_before_they_are_learned_are_refused() -> None:
    callback = QuantizationAwareTraining(start=8, freeze_range=4)
    with pytest.raises(
        CompressionError, match=r"freeze_range: expected a point after start \(optimizer step 8\), got 4"
    ):
        quiet_trainer(callbacks=[callback]).fit(PlainModule(), loader())
