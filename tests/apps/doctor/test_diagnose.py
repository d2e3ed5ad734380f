from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import EncoderNet, Mlp, ResidualNet
from torch import nn

from lightning_compress.apps.doctor.diagnose import Diagnosis, diagnose
from lightning_compress.export import save_packed, to_onnx
from lightning_compress.pruning import Pruner
from lightning_compress.pruning.settings import Settings
from lightning_compress.quantization import find, prepare
from lightning_compress.quantization.settings import QuantizationSettings
from lightning_compress.timeline import Run, parse

IMAGE = torch.randn(2, 3, 8, 8)


def pruning(final_sparsity: float = 0.5, **settings: Any) -> Settings:
    return Settings.check(final_sparsity=final_sparsity, **{"field": "Pruning", **settings})


def quantizing(**settings: Any) -> QuantizationSettings:
    return QuantizationSettings(**{"field": "Quantization", **settings})


def times(**points: Any) -> dict[str, Any]:
    return {name: parse(point, f"Quantization.{name}") for name, point in points.items()}


def of(found: Diagnosis, name: str) -> Any:
    return next(item for item in found.parameters if item.name == name)


def test_the_expected_zeros_of_a_layer_are_those_that_pruning_it_now_would_give() -> None:
    model = ResidualNet()
    found = diagnose(model, Run(100), pruning=pruning(0.8))
    pruner = Pruner(model, final_sparsity=0.8, start=0, end=1)
    pruner.step(1)
    for name, parameter in pruner.parameters.items():
        assert of(found, name).sparsity == pytest.approx(float((parameter == 0).float().mean()))


def test_neither_the_model_nor_the_random_state_is_touched() -> None:
    model = ResidualNet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    diagnose(model, Run(100), pruning=pruning(), quantization=quantizing(), times=times(start=0), example_inputs=IMAGE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert find(model) is None
    assert model.training


def test_every_parameter_is_listed_with_what_happens_to_it_and_why() -> None:
    model = ResidualNet()
    found = diagnose(
        model,
        Run(100),
        pruning=pruning(ignore=["fc"], overrides={"block1.conv1": None}),
        quantization=quantizing(ignore=["re:block2.*"], overrides={"fc": {"weight_bits": 4}}),
        times=times(start=0),
        example_inputs=IMAGE,
    )
    assert [item.name for item in found.parameters] == [name for name, _ in model.named_parameters()]
    assert of(found, "fc.weight").pruning == "ignored by 'fc'"
    assert of(found, "block1.conv1.weight").pruning == "overrides['block1.conv1'] is null"
    assert of(found, "fc.bias").pruning == "no layer's weight: only if a target names it"
    assert of(found, "block2.conv1.weight").quantization == "ignored by 're:block2.*'"
    assert (of(found, "fc.weight").weight_bits, of(found, "stem.0.weight").weight_bits) == (4, 8)
    assert of(found, "stem.1.weight").quantization == "folded into its layer at export"
    assert of(found, "fc.bias").quantization == "32-bit integer at export"
    assert "block2.conv1.weight (Conv2d): ignored by 're:block2.*'" in found.stays_float


def test_activation_quantizers_are_those_that_training_attaches() -> None:
    found = diagnose(ResidualNet(), Run(100), quantization=quantizing(), times=times(start=0), example_inputs=IMAGE)
    attached = find(prepare(ResidualNet(), example_inputs=IMAGE)).activations
    assert found.sites == {name: quantizer.bits for name, quantizer in attached.items()}


def test_what_no_module_boundary_reaches_is_named() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return torch.matmul(y.sin() + 1, self.b(x).T)

    found = diagnose(Bare(), Run(9), quantization=quantizing(), times=times(start=0), example_inputs=torch.randn(3, 4))
    attached = find(prepare(Bare(), example_inputs=torch.randn(3, 4)))
    assert found.stays_float == attached.unreached


def test_a_layer_that_a_pattern_does_not_fit_is_warned_of() -> None:
    found = diagnose(ResidualNet(), Run(100), pruning=pruning(0.5, pattern="2:4"))
    assert not of(found, "stem.0.weight").pruned
    assert any("stem.0.weight is not pruned" in line and "divisible by 4" in line for line in found.warnings)


def test_layers_that_a_global_threshold_cuts_dead_are_warned_of() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    with torch.no_grad():
        model[1].weight.mul_(1e-3)
    found = diagnose(model, Run(100), pruning=pruning(0.9, layer_floor=0.0))
    assert any("1.weight keeps 0 of 512 weights" in line for line in found.warnings)
    assert not any("0.weight keeps" in line for line in found.warnings)


def test_tied_weights_norms_in_eval_mode_and_parameters_that_do_not_train_are_warned_of() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)})
    model["b"].weight = model["a"].weight
    model["a"].bias.requires_grad_(False)
    model["norm"].eval()
    text = "\n".join(diagnose(model, Run(10), pruning=pruning()).warnings)
    assert "a.weight, b.weight are one weight" in text
    assert "norm: in eval mode" in text
    assert "a.bias: not trained" in text


def test_missing_example_inputs_are_warned_of() -> None:
    asked: dict[str, Any] = {"quantization": quantizing(), "times": times(start=0)}
    assert any("No example inputs" in line for line in diagnose(ResidualNet(), Run(100), **asked).warnings)
    assert diagnose(ResidualNet(), Run(100), **asked, example_inputs=IMAGE).warnings == []


def test_a_healthy_model_gives_no_warning() -> None:
    found = diagnose(
        ResidualNet(), Run(100), pruning=pruning(end=0.5), quantization=quantizing(), times=times(start=0.6),
        example_inputs=IMAGE,
    )  # fmt: skip
    assert (found.errors, found.warnings, found.notes, found.stays_float) == ([], [], [], [])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pruning": pruning(end=200)}, r"Pruning.end: expected at most the run's 100"),
        ({"pruning": pruning(ignore=["nowhere"])}, r"Pruning.ignore: .* got 'nowhere'"),
        ({"quantization": quantizing(), "times": times(start="500ba")}, r"Quantization.start: this phase would never"),
        ({"quantization": quantizing(targets=["Conv3d"]), "times": times(start=0)}, r"Quantization.targets"),
    ],
)
def test_what_cannot_happen_is_found_and_not_raised(asked: dict[str, Any], message: str) -> None:
    found = diagnose(ResidualNet(), Run(100), example_inputs=IMAGE, **asked)
    assert len(found.errors) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(found.errors[0])


def test_a_fraction_of_a_run_of_unknown_length_is_an_error_of_each_part() -> None:
    found = diagnose(
        ResidualNet(), Run(), pruning=pruning(), quantization=quantizing(), times=times(start=0.5), example_inputs=IMAGE
    )
    assert [error.split(":")[0] for error in found.errors] == ["Pruning.start", "Quantization.start"]


def test_phases_and_mask_updates_are_in_optimizer_steps() -> None:
    found = diagnose(
        ResidualNet(), Run(100, 10), pruning=pruning(start="1ep", end=0.5, every=20), quantization=quantizing(),
        times=times(start=0.6, freeze_range=0.9), example_inputs=IMAGE,
    )  # fmt: skip
    assert found.updates == [10, 30, 50]
    assert [phase.start for phase in found.phases] == [10, 50, 60, 90]


def test_ranges_frozen_before_the_end_of_pruning_are_a_note_and_no_error() -> None:
    found = diagnose(
        ResidualNet(), Run(100), pruning=pruning(end=0.8), quantization=quantizing(),
        times=times(start=0.1, freeze_range=0.5),
        example_inputs=IMAGE,
    )  # fmt: skip
    assert found.errors == []
    assert any("before pruning ends" in note for note in found.notes)


@pytest.mark.parametrize(
    ("network", "example"),
    [
        pytest.param(lambda: ResidualNet(width=32), IMAGE, id="residual"),
        pytest.param(lambda: EncoderNet(width=64), torch.randn(2, 7, 6), id="encoder"),
    ],
)
def test_expected_sizes_are_near_those_of_the_files(network: Any, example: torch.Tensor, tmp_path: Path) -> None:
    model = network()
    for value in [*model.parameters(), *model.buffers()]:
        if value.ndim == 1:
            # Values as training leaves them: ones and zeros would hardly take any space.
            value.data.uniform_(0.5, 1.5)
    found = diagnose(
        model, Run(100), pruning=pruning(0.8), quantization=quantizing(), times=times(start=0), example_inputs=example
    )
    Pruner(model, final_sparsity=0.8, start=0, end=1).step(1)
    prepare(model, example_inputs=example).train()(example)
    packed, onnx = tmp_path / "model.packed", tmp_path / "model.onnx"
    save_packed(model, packed)
    to_onnx(model.eval(), example, onnx)
    assert found.sizes["packed"] == pytest.approx(packed.stat().st_size, rel=0.2)
    assert found.sizes["onnx"] == pytest.approx(onnx.stat().st_size, rel=0.2)


def test_memory_counts_masks_and_fake_quantized_weights() -> None:
    model = Mlp()
    found = diagnose(
        model, Run(9), pruning=pruning(), quantization=quantizing(), times=times(start=0),
        example_inputs=torch.randn(2, 12), keeps_dense=True,
    )  # fmt: skip
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert list(found.memory.values()) == [weights, 4 * weights, 4 * sum(p.numel() for p in model.parameters())]
