"""What README shows is run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_modules import PlainModule, loader
from networks import ResidualNet
from torch import nn

import lightning_compress

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_in_tmp")
def test_the_callbacks_of_the_readme_train_and_export() -> None:
    module = PlainModule()
    names: dict[str, Any] = {"module": module, "datamodule": None}
    block = next(block for block in BLOCKS if "trainer = L.Trainer" in block)
    settings = "max_epochs=2, accelerator='cpu', logger=False, enable_progress_bar=False, enable_checkpointing=False, "
    block = block.replace("max_epochs=30,", settings)
    block = block.replace("trainer.fit(module, datamodule)", "trainer.fit(module, loader(), loader(2, seed=1))")
    exec(block, {**names, "loader": loader})
    assert {"model.onnx", "model.packed", "report.html"} <= set(os.listdir("compressed"))


@pytest.mark.usefixtures("_in_tmp")
def test_the_plain_loop_of_the_readme_runs() -> None:
    block = next(block for block in BLOCKS if "pruning.Pruner" in block)
    model = ResidualNet()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def one_step(x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    block = block.replace("...  #", "one_step(x, y)  #")
    batches = list(loader(4)) * 2
    names = {"model": model, "x": batches[0][0], "batches": batches, "one_step": one_step}
    exec(block.replace("end=1000, every=100", "end=6, every=2"), names)
    assert {"model.onnx", "model.packed"} <= set(os.listdir())
    assert names["pruner"].sparsity() == pytest.approx(0.8, abs=1e-3)


def test_every_public_name_can_be_imported() -> None:
    for name in lightning_compress.__all__:
        assert getattr(lightning_compress, name) is not None


def test_every_file_that_the_readme_links_to_exists() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / link).exists(), link


TESTS = {
    "bf16-mixed": ["test_compatibility.py::test_mixed_and_true_precision"],
    "`torch.compile`": [
        "test_compatibility.py::test_a_module_compiled_as_a_whole",
        "test_compatibility.py::test_a_module_with_a_compiled_network",
    ],
    "Activation checkpointing": ["test_compatibility.py::test_activation_checkpointing"],
    "Gradient accumulation": [
        "test_compatibility.py::test_gradient_accumulation",
        "test_compatibility.py::test_scheduled_gradient_accumulation_counts_its_own_steps",
    ],
    "Gradient clipping": ["test_compatibility.py::test_gradient_clipping"],
    "Several optimizers": [
        "test_compatibility.py::test_several_optimizers_by_hand",
        "test_compatibility.py::test_several_optimizers_by_hand_have_no_fractions_of_a_run",
    ],
    "Manual optimization": [
        "callbacks/test_quantization_callback.py::test_a_phase_that_a_run_by_hand_never_came_to_is_said"
    ],
    "`KnowledgeDistillation`": [
        "callbacks/test_distillation_callback.py::test_what_cannot_be_is_refused_before_the_first_step"
    ],
    "EMA": [
        "test_compatibility.py::test_averaged_weights",
        "callbacks/test_pruning_callback.py::test_averaging_listed_after_pruning_is_refused",
    ],
    "SWA": [
        "test_compatibility.py::test_stochastic_weight_averaging",
        "test_compatibility.py::test_batch_norm_of_averaged_weights_is_measured_with_the_weights_that_stay",
        "test_compatibility.py::test_backbone_finetuning",
        "test_compatibility.py::test_learning_rate_finder",
        "test_compatibility.py::test_batch_size_finder",
    ],
    "Early stopping": ["test_compatibility.py::test_early_stopping_before_the_target_is_said"],
    "`overfit_batches`": ["test_compatibility.py::test_settings_of_the_trainer"],
    "`fast_dev_run`": [
        "test_compatibility.py::test_a_trial_run_sees_every_phase",
        "test_compatibility.py::test_settings_of_the_trainer",
        "test_traps.py::test_a_sanity_check_does_not_poison_training",
    ],
    "Iterable loaders": [
        "test_compatibility.py::test_iterable_loaders_take_steps",
        "callbacks/test_open_epochs.py::test_pruning_follows_epochs_that_nobody_knew_the_length_of",
        "callbacks/test_open_epochs.py::test_a_point_inside_the_first_epoch_is_refused_with_what_can_be_given",
    ],
    "`ModelCheckpoint`": ["callbacks/test_checkpoint_callback.py::test_a_dense_epoch_is_never_the_best"],
    "`save_weights_only`": [
        "test_compatibility.py::test_weights_alone_are_saved_and_loaded",
        "test_compatibility.py::test_checkpoints_load_with_weights_only",
        "test_compatibility.py::test_a_copy_of_a_module_is_its_own",
    ],
    "Resume": [
        "test_resume_soak.py::test_a_stopped_process_goes_on_to_the_same_bits",
        "callbacks/test_resume.py::test_a_run_that_is_stopped_twice_trains_every_batch_once",
        "callbacks/test_resume.py::test_other_settings_are_refused_with_the_differences_or_accepted_and_said",
    ],
    "LightningCLI": [
        "test_compatibility.py::test_the_command_line_of_lightning",
        "test_compatibility.py::test_fabric",
        "test_compatibility.py::test_a_plain_loop",
    ],
    "`ReduceLROnPlateau`": ["callbacks/test_resume.py::test_learning_rates_on_a_plateau_go_on_as_in_the_whole_run"],
    "`pytorch_lightning`": [
        "test_lightning_packages.py::test_every_callback_works_and_all_files_are_written",
        "test_lightning_packages.py::test_a_module_of_one_package_under_a_trainer_of_the_other_is_refused",
    ],
    "`on_validation_model_eval`": [
        "callbacks/test_export_failures.py::test_all_metrics_go_through_the_modules_own_evaluation_hooks"
    ],
    "`save_hyperparameters()`": [
        "callbacks/test_pickles.py::test_a_checkpoint_holds_no_callbacks_of_ours_among_its_hyper_parameters"
    ],
    "`torch.save(module)`": [
        "callbacks/test_pickles.py::test_a_pruned_and_distilled_module_carries_nothing_of_ours",
        "callbacks/test_pickles.py::test_a_quantized_module_carries_nothing_once_it_is_stripped",
    ],
    "DDP": ["test_distributed.py::test_all_ranks_have_the_same"],
    "`ModelParallelStrategy`": [
        "test_fsdp.py::test_shards_are_pruned_as_one_process_prunes_the_whole",
        "test_fsdp.py::test_what_shards_cannot_do_is_refused_in_every_process",
    ],
    "FSDP1": ["test_compatibility.py::test_sharded_strategies_are_refused"],
}
"""Beginning of a row of the table of Lightning's features → its tests."""


def test_every_row_of_the_compatibility_table_has_its_tests() -> None:
    page = (Path(__file__).parents[1] / "docs" / "compatibility.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \|", page, flags=re.MULTILINE)[1:]
    begun = {row: [start for start in TESTS if row.startswith(start)] for row in rows}
    assert all(len(starts) == 1 for starts in begun.values()), begun
    assert len(rows) == len(TESTS)
    for tests in TESTS.values():
        for file, name in (test.split("::") for test in tests):
            assert f"def {name}(" in (Path(__file__).parent / file).read_text(), name


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 160
