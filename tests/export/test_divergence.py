"""A layer that was damaged in a file is the one that is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import EncoderNet, ResidualNet
from onnx import numpy_helper
from torch import nn

from lightning_compress.delivery.findings import Findings
from lightning_compress.delivery.limits import Limits
from lightning_compress.export import save_packed, to_onnx
from lightning_compress.export.divergence import SiteError, first_divergence, site_errors
from lightning_compress.quantization import find, prepare

IMAGE = (8, 3, 8, 8)


def trained(model: nn.Module, shape: tuple[int, ...], **settings: object) -> nn.Module:
    torch.manual_seed(0)
    prepare(model, example_inputs=torch.randn(*shape), **settings)
    model.train()
    for _ in range(4):
        model(torch.randn(*shape))
    return model.eval()


def scaled(source: Path, target: Path, part: str, factor: float) -> Path:
    """The file with one tensor, the first whose name contains a text, multiplied."""
    model = onnx.load(source)
    item = next(item for item in model.graph.initializer if part in item.name)
    array = numpy_helper.to_array(item)
    changed = np.clip(np.rint(array * factor), -127, 127) if array.dtype.kind == "i" else array * factor
    item.CopyFrom(numpy_helper.from_array(changed.astype(array.dtype), item.name))
    onnx.save(model, target)
    return target


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model = trained(ResidualNet(), IMAGE)
    return model, to_onnx(model, torch.randn(*IMAGE), tmp_path_factory.mktemp("residual") / "model.onnx").path


def test_a_true_file_differs_nowhere(residual: tuple[nn.Module, Path]) -> None:
    model, path = residual
    errors = site_errors(path, model, (torch.randn(*IMAGE),))
    assert first_divergence(errors) is None
    assert [error.site for error in errors[:-1]] == list(find(model).activations)
    assert errors[-1].site == "output"


def layers_of(path: Path) -> list[str]:
    names = [item.name for item in onnx.load(path).graph.initializer if item.name.endswith(".weight_scale")]
    return [name.removesuffix(".weight_scale") for name in names]


def test_a_scale_of_any_layer_that_was_doubled_names_that_layer(
    residual: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    model, path = residual
    layers = layers_of(path)
    assert len(layers) == 7
    for layer in layers:
        bad = scaled(path, tmp_path / "bad.onnx", f"{layer}.weight_scale", 2.0)
        found = first_divergence(site_errors(bad, model, (torch.randn(*IMAGE),)))
        assert found is not None, layer
        assert layer in found.layers
        # Nothing but what stands between two quantizers is accused.
        assert len(found.layers) <= 2


def test_integers_that_were_changed_name_their_layer(residual: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, path = residual
    layer = layers_of(path)[2]
    bad = scaled(path, tmp_path / "bad.onnx", f"{layer}.weight_integers", -1.0)
    found = first_divergence(site_errors(bad, model, (torch.randn(*IMAGE),)))
    assert found is not None
    assert found.layers == (layer,)
    assert found.mean_steps > 1
    assert layer in str(found)
    assert found.site in str(found)


def test_an_encoder_is_followed_through_its_sites(tmp_path: Path) -> None:
    model = trained(EncoderNet(), (8, 7, 6))
    path = to_onnx(model, torch.randn(8, 7, 6), tmp_path / "model.onnx").path
    x = torch.randn(8, 7, 6)
    assert first_divergence(site_errors(path, model, (x,))) is None
    layer = layers_of(path)[-1]
    bad = scaled(path, tmp_path / "bad.onnx", f"{layer}.weight_scale", 0.2)
    assert layer in first_divergence(site_errors(bad, model, (x,))).layers


def test_a_packed_file_of_other_weights_is_followed_too(residual: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, _ = residual
    path = save_packed(model, tmp_path / "model.packed").path
    x = torch.randn(*IMAGE)
    assert first_divergence(site_errors(path, model, (x,))) is None
    name = "block2.conv1"
    with torch.no_grad():
        model.get_submodule(name).weight.neg_()
    found = first_divergence(site_errors(path, model, (x,)))
    with torch.no_grad():
        model.get_submodule(name).weight.neg_()
    assert found is not None
    assert found.layers[0].startswith("block2.")


def test_small_differences_that_grow_slowly_are_no_divergence_and_a_jump_is() -> None:
    grown = [SiteError(f"s{k}", (), 0.01 * 1.5**k, 2.0) for k in range(6)]
    assert first_divergence(grown) is None
    jumped = SiteError("bad", ("fc",), 0.9, 40.0)
    assert first_divergence([*grown, jumped, SiteError("after", (), 3.0, 9.0)]) is jumped


def test_undefined_values_diverge() -> None:
    assert first_divergence([SiteError("a", (), float("nan"), float("nan"))]) is not None


class Masked(nn.Sequential):
    """Closes some of its classes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).masked_fill(torch.arange(4) == 2, -torch.inf)


def test_outputs_that_are_infinite_on_both_sides_do_not_diverge_and_one_side_does(tmp_path: Path) -> None:
    model = trained(Masked(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (8, 6))
    x = torch.randn(8, 6)
    path = to_onnx(model, x, tmp_path / "model.onnx").path
    errors = site_errors(path, model, (x,))
    assert first_divergence(errors) is None
    assert errors[-1].site == "output"
    assert errors[-1].max_steps < 0.05
    model.register_forward_hook(lambda module, args, output: output.nan_to_num(neginf=0.0))
    found = first_divergence(site_errors(path, model, (x,)))
    assert found.site == "output"
    assert found.as_dict()["mean_steps"] is None


def test_a_limit_that_does_not_hold_says_where_the_file_differs() -> None:
    found = Findings(divergence=SiteError("act:output", ("fc",), 3.0, 9.0))
    assert "first in fc (seen at act:output): 3 quantization steps" in Limits(min_agreement=0.9).failures(found, 0.5)[1]
    assert Limits(min_agreement=0.4).failures(found, 0.5) == []
