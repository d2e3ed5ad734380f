"""What a forward takes and gives, in files that ONNX Runtime and PyTorch run, beside the module itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import onnxruntime as ort
import pytest
import torch
from torch import nn

from lightning_compress import CompressionError, quantization
from lightning_compress.export import to_onnx
from lightning_compress.export.onnx.session import OnnxModel
from lightning_compress.export.pt2.write import TorchExportModel, load_torch_export, to_torch_export
from lightning_compress.export.rehearsal import refusals
from lightning_compress.export.signatures import restored, take_tensors


@dataclasses.dataclass
class Batch:
    """Not known to PyTorch."""

    x: torch.Tensor
    lengths: torch.Tensor | None = None
    names: tuple[str, ...] = ("one",)


@dataclasses.dataclass(frozen=True)
class Registered:
    x: torch.Tensor


torch.export.register_dataclass(Registered)


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Cache:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)


def net(function: Callable[..., Any]) -> Net:
    """A module whose forward is a function of its layer and the arguments."""
    model = Net().eval()
    model.forward = MethodType(function, model.layer)
    return model


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def of_dataclass(layer: nn.Module, batch: Batch) -> torch.Tensor:
    return layer(batch.x) * len(batch.names)


def of_registered(layer: nn.Module, batch: Registered) -> torch.Tensor:
    return layer(batch.x)


def of_named_tuple(layer: nn.Module, pair: Pair, flag: bool = False) -> torch.Tensor:
    return layer(pair.second if flag else pair.first)


def of_nested(layer: nn.Module, parts: list[Any], scale: float, *, more: dict[str, Any] | None = None) -> torch.Tensor:
    return layer(parts[0] + parts[1]["x"] * scale) + (0.0 if more is None else more["shift"][0])


def of_one_dict(layer: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return layer(batch["x"])


def of_keywords(layer: nn.Module, **batch: torch.Tensor) -> torch.Tensor:
    return layer(batch["x"]) + batch["class"]


def of_table(layer: nn.Module, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return layer(x) + table.sum()


CALLS = {
    "dataclass": (of_dataclass, (Batch(X),), {}, ["batch_x"]),
    "dataclass with more": (of_dataclass, (Batch(X, torch.ones(6)),), {}, ["batch_x", "batch_lengths"]),
    "registered": (of_registered, (Registered(X),), {}, ["batch_x"]),
    "named tuple": (of_named_tuple, (Pair(X, X + 1), True), {}, ["pair_0", "pair_1"]),
    "nested": (
        of_nested,
        ([X, {"x": X + 1, "name": "one"}], 0.5),
        {"more": {"shift": [torch.ones(6, 3)]}},
        ["parts_0", "parts_1_x", "more_shift_0"],
    ),
    "none": (of_nested, ([X, {"x": X}], 2.0), {"more": None}, ["parts_0", "parts_1_x"]),
    "one dict": (of_one_dict, ({"x": X},), {}, ["batch_x"]),
    "keywords": (of_keywords, (), {"x": X, "class": torch.ones(6, 1)}, ["x", "class"]),
    "another size": (of_table, (X, torch.randn(7)), {}, ["x", "table"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_in_any_structure_become_inputs_of_the_graph(name: str, tmp_path: Path) -> None:
    function, args, kwargs, names = CALLS[name]
    model = net(function)
    file = to_onnx(model, (*args, kwargs), tmp_path / "model.onnx")
    assert list(file.input_names) == names
    assert file.batch is None
    expected = model(*args, **kwargs)
    torch.testing.assert_close(OnnxModel(file.path, model.forward)(*args, **kwargs)[0], expected.detach())


@pytest.mark.parametrize("name", ["dataclass", "nested", "keywords"])
def test_a_pt2_file_takes_the_same_tensors(name: str, tmp_path: Path) -> None:
    function, args, kwargs, _ = CALLS[name]
    model = net(function)
    file = to_torch_export(model, (*args, kwargs), tmp_path / "model.pt2")
    torch.testing.assert_close(TorchExportModel(file.path, model.forward)(*args, **kwargs)[0], model(*args, **kwargs))


def test_a_single_mapping_is_the_argument_where_the_forward_names_no_other(tmp_path: Path) -> None:
    model = net(of_one_dict)
    file = to_onnx(model, {"x": X}, tmp_path / "model.onnx")
    assert file.input_names == ("batch_x",)


RESULTS = {
    "tensor": (lambda y: y, ["output"], ()),
    "dict": (lambda y: {"logits": y, "loss": None, "states": [y + 1, y + 2]}, ["logits", "states_0", "states_1"], ()),
    "named tuple": (lambda y: Pair(y, y * 2), ["first", "second"], ()),
    "tuple": (lambda y: (y, 3, y * 2), ["output_0", "output_2"], ()),
    "the same twice": (lambda y: {"last": y, "all": [y]}, ["last", "all_0"], ()),
    "name of an input": (lambda y: {"x": y}, ["x_out"], ()),
    "object": (lambda y: {"prediction": y, "cache": Cache(y)}, ["prediction"], ("Cache",)),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_named_by_their_keys_and_objects_are_left_out(name: str, tmp_path: Path) -> None:
    make, names, left_out = RESULTS[name]

    def forward(layer: nn.Module, x: torch.Tensor) -> Any:
        return make(layer(x))

    model = net(forward)
    file = to_onnx(model, X, tmp_path / "model.onnx")
    assert list(file.output_names) == names
    assert file.left_out == left_out
    outputs = ort.InferenceSession(str(file.path)).run(None, {"x": X.numpy()})
    structure = restored([torch.from_numpy(array) for array in outputs], model(X))
    assert type(structure) is type(model(X))
    torch.testing.assert_close(torch.from_numpy(outputs[0]), model.layer(X).detach())


def test_names_of_inputs_and_outputs_can_be_given(tmp_path: Path) -> None:
    model = net(of_nested)
    args = ([X, {"x": X}], 2.0)
    file = to_onnx(model, args, tmp_path / "model.onnx", input_names=["left", "right"], output_names=["score"])
    assert (file.input_names, file.output_names) == (("left", "right"), ("score",))
    torch.testing.assert_close(OnnxModel(file.path, model.forward)(*args)[0], model(*args).detach())
    with pytest.raises(CompressionError, match=r"to_onnx.input_names: expected 2 different names.*parts_0, parts_1_x"):
        to_onnx(model, args, tmp_path / "model.onnx", input_names=["left"])


def read_by_len(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(x.view(len(x), -1))


def read_by_int(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(torch.zeros(int(x.shape[0]), 4) + x)


@pytest.mark.parametrize("forward", [read_by_len, read_by_int])
def test_a_batch_size_that_python_reads_is_fixed_and_the_file_runs_as_often_as_it_takes(
    forward: Callable[..., Any], tmp_path: Path
) -> None:
    model = net(forward)
    onnx, pt2 = to_onnx(model, X, tmp_path / "m.onnx"), to_torch_export(model, X, tmp_path / "m.pt2")
    assert onnx.batch == pt2.batch == 6
    more = torch.randn(15, 4)
    expected = model.layer(more)
    torch.testing.assert_close(OnnxModel(onnx.path, model.forward)(more)[0], expected.detach())
    torch.testing.assert_close(TorchExportModel(pt2.path, model.forward)(more)[0], expected)
    assert to_onnx(model, X[:1], tmp_path / "m.onnx").batch == 1


def test_a_graph_of_nodes_and_edges_has_both_sizes_free(tmp_path: Path) -> None:
    def forward(layer: nn.Module, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        y = layer(x)
        return torch.zeros_like(y).index_add(0, edges[1], y[edges[0]])

    model = net(forward)
    file = to_onnx(model, (torch.randn(20, 4), torch.randint(0, 20, (2, 60))), tmp_path / "m.onnx", dynamic_axes={
        "edges": {1: "edges"}
    })  # fmt: skip
    assert file.batch is None
    nodes, edges = torch.randn(9, 4), torch.randint(0, 9, (2, 31))
    found = ort.InferenceSession(str(file.path)).run(None, {"x": nodes.numpy(), "edges": edges.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), model(nodes, edges).detach())


def test_a_plain_pt2_file_is_called_like_the_module(tmp_path: Path) -> None:
    def forward(layer: nn.Module, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return layer(x) * scale

    model = net(forward)
    path = to_torch_export(model, (X, {"scale": torch.tensor(2.0)}), tmp_path / "m.pt2").path
    torch.testing.assert_close(load_torch_export(path)(X[:2], scale=torch.tensor(3.0)), model.layer(X[:2]) * 3)


def test_a_call_without_tensors_is_refused() -> None:
    with pytest.raises(CompressionError, match="called without tensors"):
        take_tensors(net(lambda layer, n: layer.weight * n), (3,), {})


def test_projections_of_an_lstm_are_refused_with_a_way_out_that_works(tmp_path: Path) -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 4, batch_first=True, proj_size=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0]

    model, x = Projected().eval(), torch.randn(3, 5, 4)
    with pytest.raises(CompressionError, match=r"rnn is an LSTM with proj_size=2.*write 'torch_export' or 'packed'"):
        to_onnx(model, x, tmp_path / "m.onnx")
    path = to_torch_export(model, x, tmp_path / "m.pt2").path
    torch.testing.assert_close(load_torch_export(path)(x), model(x))


def test_distributions_that_check_their_arguments_are_written_and_check_them_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch.compile switches the checks off for the whole process; another test may have called it.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)

    def forward(layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Exponential(layer(x).exp()).log_prob(y)

    model, y = net(forward), torch.rand(6, 3)
    file = to_onnx(model, (X, y), tmp_path / "m.onnx")
    expected = torch.distributions.Exponential(model.layer(X[:2]).exp()).log_prob(y[:2]).detach()
    found = ort.InferenceSession(str(file.path)).run(None, {"x": X[:2].numpy(), "y": y[:2].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), expected)
    with pytest.raises(ValueError, match="within the support"):
        model(X, -y - 1)
    with pytest.raises(ValueError, match="Expected parameter rate"):
        torch.distributions.Exponential(torch.tensor(-1.0))


def test_a_model_that_draws_random_numbers_in_evaluation_is_refused_as_a_graph() -> None:
    def forward(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return layer(x) + torch.randn_like(x[:, :3])

    refused = refusals(net(forward), (X,), ["onnx", "torch_export", "packed"])
    assert list(refused) == ["onnx", "torch_export"]
    assert "draws random numbers in evaluation mode (aten.randn_like.default)" in refused["onnx"]
    assert refusals(net(lambda layer, x: nn.functional.dropout(layer(x), 0.5, layer.training)), (X,), ["onnx"]) == {}


class FromInput(nn.Module):
    """Its own forward adds its input to what its layers make: the input is quantized at its boundary."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, image: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.last(image + self.first(image * scale))


def test_an_input_by_keyword_is_quantized_in_the_file_and_in_calls_by_position(tmp_path: Path) -> None:
    model, x = FromInput(), torch.randn(4, 3, 6, 6)
    quantization.prepare(model, example_inputs={"image": x})
    assert "model:input[image]" in quantization.find(model).activations
    model(image=x)
    model.eval()
    file = OnnxModel(to_onnx(model, {"image": x}, tmp_path / "model.onnx").path, model.forward)
    coarse = x + torch.rand_like(x) * 1e-2
    with torch.no_grad():
        expected = model(image=coarse)
        assert torch.equal(model(coarse), expected)
        by_position = prepared_by_position(x)
        assert torch.equal(by_position(image=coarse), expected)
    torch.testing.assert_close(file(image=coarse)[0], expected, rtol=1e-5, atol=1e-6)


def prepared_by_position(x: torch.Tensor) -> nn.Module:
    model = FromInput()
    quantization.prepare(model, example_inputs=x)
    model(x)
    return model.eval()
