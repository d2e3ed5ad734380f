from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

import lightning_compress
from lightning_compress.apps.configuration.instantiate import instantiate
from lightning_compress.apps.configuration.settings import COMPOSITION_ERRORS, drop_unused, explain, settings
from lightning_compress.errors import CompressionError

CONF = Path(lightning_compress.__file__).parents[1] / "conf"
GROUPS = ("data", "model", "trainer", "logger", "callbacks", "pruning", "quantization", "distillation", "export")
NETS = ("cnn", "dscnn", "lenet300", "lenet5", "mlp", "resnet20", "resnet8", "transformer")


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("lightning_compress.conf", version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = "out"
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    return cfg


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def explained(*overrides: str) -> str:
    with pytest.raises(COMPOSITION_ERRORS) as error:
        composed(*overrides)
    return str(explain(error.value, overrides))


@pytest.mark.parametrize("group", [*GROUPS, "experiment", "debug"])
def test_every_choice_of_every_group_composes(group: str) -> None:
    assert choices(group)
    for choice in choices(group):
        composed(f"{group}={choice}")


@pytest.mark.parametrize(
    ("data", "model"),
    [
        *(("cifar10", net) for net in NETS),
        ("digits", "cnn"),
        ("fsdd", "dscnn"),
        ("mnist", "lenet5"),
        ("fashion_mnist", "resnet20"),
    ],
)
def test_every_bundled_model_takes_the_shape_of_the_data(data: str, model: str) -> None:
    cfg = composed(f"data={data}", f"model={model}")
    module = instantiate(cfg.model, "model")
    assert module.example_input_array.shape == (1, cfg.input.channels, cfg.input.size, cfg.input.size)
    assert module.eval()(module.example_input_array).shape == (1, cfg.input.classes)


@pytest.mark.parametrize(
    ("data", "model"),
    [("text_banking77", "text_encoder"), ("text_clinc150", "text_encoder"), ("tinyshakespeare", "gpt")],
)
def test_every_bundled_model_of_tokens_takes_the_shape_of_the_text(data: str, model: str) -> None:
    cfg = composed(f"data={data}", f"model={model}")
    module = instantiate(cfg.model, "model")
    assert module.example_input_array.shape == (1, cfg.input.length)
    assert not module.example_input_array.is_floating_point()
    assert module.eval()(module.example_input_array).shape[-1] == cfg.input.classes


@pytest.mark.parametrize("group", ["pruning", "quantization", "distillation", "export", "callbacks", "logger"])
def test_none_switches_a_group_off(group: str) -> None:
    assert not composed(f"{group}=none")[group]


def test_groups_for_other_applications_need_nothing_of_this_one() -> None:
    # Only Hydra's own values and defaults may be referred to: another application has no keys of ours.
    for group in ("pruning", "quantization", "distillation", "export", "callbacks", "logger"):
        for path in (CONF / group).glob("*.yaml"):
            text = path.read_text()
            references = [part.split("}")[0] for part in text.split("${")[1:]]
            assert [name for name in references if not name.startswith(("hydra:", "oc."))] == [], path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("pruning=globl",), "pruning: expected one of .*global.*, got 'globl'. Closest: global"),
        (("experiment=dmeo",), "experiment: expected one of .*demo.*, got 'dmeo'. Closest: demo"),
        (
            ("pruning=global", "pruning.final_sparsty=0.9"),
            r"pruning\.final_sparsty: there is no such setting\. Closest: pruning\.final_sparsity",
        ),
        (("trainer.max_epoch=3",), r"trainer\.max_epoch: .*Closest: trainer\.max_epochs"),
        (("sed=3",), "sed: there is no such setting. Closest: seed"),
        (("pruning.final_sparsity=0.9",), r"pruning\.final_sparsity: .*pruning is none; add pruning=global"),
        (("model.lr=[1",), "expected key=value as Hydra reads it"),
    ],
)
def test_a_bad_override_is_explained_in_one_paragraph(overrides: tuple[str, ...], message: str) -> None:
    text = explained(*overrides)
    assert "\n" not in text
    assert re.search(message, text), text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("seed=abc",), r"^seed: "),
        (("seed=99999999999",), r"^seed: expected a whole number from 0 to 2\*\*32 - 1, got 99999999999"),
        (("dense_baseline=maybe",), r"^dense_baseline: "),
        (("threads=0",), r"^threads: expected a positive integer or null, got 0"),
        (("input.channels=many",), r"input.*channels"),
        (("ckpt_path=absent.ckpt",), r"^ckpt_path: expected a checkpoint file, got 'absent\.ckpt'"),
        (("optimized_metric={a: 1}",), r"^optimized_metric: expected a name or a list of names"),
        (("model=custom",), r"^model\._target_: no value\. Give one: model\._target_="),
    ],
)
def test_settings_of_the_wrong_type_are_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        settings(composed("name=test", *overrides))


def test_a_class_named_on_the_command_line_gets_what_it_takes() -> None:
    overrides = ["model._target_=torch.nn.Linear", "+model.in_features=2", "+model.out_features=${input.classes}"]
    cfg = composed(*overrides)
    drop_unused(cfg, overrides)
    assert set(cfg.model) == {"_target_", "in_features", "out_features"}
    assert instantiate(cfg.model, "model").out_features == 10


def test_a_misspelt_setting_for_a_class_named_on_the_command_line_is_refused() -> None:
    overrides = ["model._target_=torch.nn.Linear", "+model.in_features=2", "+model.out_feature=3"]
    cfg = composed(*overrides)
    drop_unused(cfg, overrides)
    with pytest.raises(CompressionError, match=r"model\.out_feature: .*Closest: out_features"):
        instantiate(cfg.model, "model")


def test_without_a_class_on_the_command_line_nothing_is_left_out() -> None:
    cfg = composed("model.lr=0.5")
    before = OmegaConf.to_yaml(cfg)
    drop_unused(cfg, ["model.lr=0.5"])
    assert OmegaConf.to_yaml(cfg) == before


@pytest.mark.parametrize("choice", ["pruning=none", "~pruning", "~pruning=global"])
@pytest.mark.parametrize("experiment_sets_it", [True, False])
def test_what_an_experiment_sets_for_a_method_goes_when_the_command_line_switches_it_off(
    choice: str, experiment_sets_it: bool
) -> None:
    cfg = composed("experiment=demo", choice)
    if experiment_sets_it:
        with open_dict(cfg):
            cfg.pruning = {"final_sparsity": 0.8}  # an experiment's own setting, which outlives the class
    drop_unused(cfg, ["experiment=demo", choice])
    assert cfg.pruning == {}
    assert cfg.quantization._target_


def test_a_setting_of_a_method_that_the_command_line_switches_off_is_refused() -> None:
    overrides = ["pruning=none", "+pruning.final_sparsity=0.9"]
    cfg = composed(*overrides)
    drop_unused(cfg, overrides)
    with pytest.raises(CompressionError, match=r"pruning: expected a node with a _target_"):
        instantiate(cfg.pruning, "pruning")
