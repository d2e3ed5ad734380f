"""Where activation quantizers sit, on networks written in every common way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import ConcatNet, EncoderNet, FunctionalResidualNet, Mlp, ResidualNet
from torch import nn

from lightning_compress.foundation.recorded_forward import recording
from lightning_compress.quantization import find, prepare
from lightning_compress.quantization.candidates import weights
from lightning_compress.quantization.placement.place import place
from lightning_compress.quantization.placement.sites import Placement

IMAGE = (2, 3, 8, 8)


def placement_of(model: nn.Module, *shape: int, backend: str | None = "onnxruntime") -> Placement:
    model.eval()
    with torch.no_grad(), recording(model) as tape:
        model(torch.randn(*shape))
    layer_bits = {candidate.value.name: 8 for candidate in weights(model)}
    return place(tape, model, layer_bits=layer_bits, bits=8, backend=backend)


def names(placement: Placement) -> list[str]:
    return [site.name for site in placement.sites]


def test_every_residual_add_has_quantizers_on_both_inputs_and_its_output() -> None:
    sites = names(placement_of(ResidualNet(), *IMAGE))
    # block1 adds its own input to bn2; block2 adds a projected shortcut.
    assert {"stem.2:output", "block1.bn2:output", "block1:output"} <= set(sites)
    assert {"block2.shortcut.1:output", "block2.bn2:output", "block2:output"} <= set(sites)


@pytest.mark.parametrize("backend", ["inductor", "tensorrt"])
def test_a_convolution_that_takes_in_the_residual_sum_is_not_rounded_before_it(backend: str) -> None:
    sites = set(names(placement_of(ResidualNet(), *IMAGE, backend=backend)))
    # The input of block1 is what its last convolution adds.
    assert {"stem.2:output", "block1:output", "block2:output"} <= sites
    assert "block1.bn2:output" not in sites
    # Two convolutions meet in block2: one takes in the other's rounded result.
    assert len({"block2.bn2:output", "block2.shortcut.1:output"} & sites) == 1


@pytest.mark.parametrize("backend", ["inductor", "tensorrt"])
def test_a_result_that_others_read_too_is_rounded_before_the_sum(backend: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.last = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            y = self.second(y) + y
            return self.last(y + y)

    sites = names(placement_of(Twice(), *IMAGE, backend=backend))
    assert "first:output" in sites
    assert "second:output" not in sites
    assert "last:input[0]" in sites


def test_pooling_is_quantized_on_both_sides() -> None:
    placement = placement_of(ResidualNet(), *IMAGE)
    assert "pool:output" in names(placement)
    assert placement.layer_input["fc.weight"] == "pool:output"


def test_nothing_is_quantized_between_a_convolution_and_its_batch_norm() -> None:
    placement = placement_of(ResidualNet(), *IMAGE)
    assert not any("conv" in name and name.endswith("output") for name in names(placement))
    assert placement.folds["block1.conv1"] == "block1.bn1"
    assert placement.folds["block2.shortcut.0"] == "block2.shortcut.1"


def test_the_last_linear_layer_hands_out_floats() -> None:
    assert "fc:output" not in names(placement_of(ResidualNet(), *IMAGE))


def test_a_relu_module_that_runs_twice_does_not_make_two_tensors_share_a_range() -> None:
    placement = placement_of(ResidualNet(), *IMAGE)
    assert placement.layer_input["block1.conv2.weight"] == "block1.conv2:input[0]"
    assert placement.layer_input["block2.conv1.weight"] == "block1:output"


def test_functional_code_is_reached_at_the_next_module_boundary() -> None:
    placement = placement_of(FunctionalResidualNet(), *IMAGE)
    # The block's input serves its convolution and, through an empty Sequential, its add: one quantizer before both.
    assert placement.layer_input["block.conv1.weight"] == "block:input[0]"
    assert {"block.bn2:output", "block:output", "fc:input[0]"} <= set(names(placement))
    assert placement.unreached == ()


def test_a_concat_has_quantizers_on_all_inputs_and_its_output() -> None:
    sites = set(names(placement_of(ConcatNet(), *IMAGE)))
    assert {"down.2:output", "up:output", "head:input[0]"} <= sites


def test_for_litert_all_that_a_concat_reads_and_writes_shares_a_quantizer() -> None:
    sites = placement_of(ConcatNet(), *IMAGE, backend="litert").sites
    (shared,) = [site for site in sites if site.name == "down.2:output"]
    assert {boundary.module for boundary in shared.boundaries} >= {"down.2", "up", "head"}
    assert len(sites) == len(placement_of(ConcatNet(), *IMAGE, backend="executorch").sites) - 2


def test_max_pooling_passes_the_quantization_through() -> None:
    placement = placement_of(ConcatNet(), *IMAGE)
    assert placement.layer_input["middle.0.weight"] == "down.2:output"
    assert "pool:output" not in names(placement)


def test_each_tensor_is_quantized_once_however_many_read_it() -> None:
    sites = placement_of(ResidualNet(), *IMAGE).sites
    boundaries = [boundary for site in sites for boundary in site.boundaries]
    assert len(boundaries) == len(set(boundaries)) == len(sites) == 10


def test_a_residual_stream_between_layer_norms_stays_float() -> None:
    sites = names(placement_of(EncoderNet(), 2, 7, 6))
    assert not any("dropout1" in name or "dropout2" in name for name in sites)
    assert "encoder.layers.0.norm1:output" in sites


def test_without_a_backend_only_layer_inputs_are_quantized() -> None:
    sites = names(placement_of(ResidualNet(), *IMAGE, backend=None))
    assert not any(name.endswith(("bn2:output", "shortcut.1:output")) for name in sites)
    assert "stem.0:input[0]" in sites


def test_hidden_layers_of_an_mlp_are_quantized_behind_the_activation() -> None:
    assert names(placement_of(Mlp(), 2, 12)) == ["0:output", "2:output", "4:output"]


class Hidden(nn.Module):
    """Sums of what functions made, in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return torch.tanh(y) * 2 + F.relu(y) + y


def test_what_passes_no_boundary_of_a_module_is_quantized_at_the_function_that_made_it() -> None:
    placement = placement_of(Hidden(), *IMAGE)
    assert placement.unreached == ()
    assert {"model:relu[0]:output", "model:mul[0]:output", "model:add[0]:output", "conv:output"} <= set(
        names(placement)
    )


def test_the_second_call_of_a_function_is_told_from_the_first_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.pad(F.relu(self.first(x)), (1, 1))
            return self.last(F.pad(F.relu(self.second(x)), (1, 1)))

    placement = placement_of(Twice(), *IMAGE)
    # Behind each ReLU, where the convolution before it writes integers, and not behind the padding.
    assert placement.layer_input["second.weight"] == "model:relu[0]:output"
    assert placement.layer_input["last.weight"] == "model:relu[1]:output"


def test_what_a_function_changed_in_place_is_quantized_where_it_is_read() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.matrix = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x) * 2
            torch.relu_(x)
            return F.linear(x, self.matrix)

    model = prepare(Dropping(), example_inputs=torch.randn(2, 4))
    assert find(model).layer_input["matrix"] == "model:linear[0]:input[0]"


@pytest.mark.parametrize("norms", [2, 1])
def test_a_norm_that_cannot_be_folded_has_a_quantizer_before_it(norms: int) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(norms))

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [norm(self.conv(x * (i + 1))) for i, norm in enumerate(self.norms)]

    placement = placement_of(Shared(), *IMAGE)
    assert ("conv:output" in names(placement)) == (norms == 2)
    assert placement.folds == ({} if norms == 2 else {"conv": "norms.0"})


def test_a_norm_whose_module_applies_the_activation_folds() -> None:
    class NormAct(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(super().forward(x))

    placement = placement_of(nn.Sequential(nn.Conv2d(3, 4, 1), NormAct(4), nn.Conv2d(4, 4, 1)), *IMAGE)
    assert placement.folds == {"0": "1"}
    assert placement.layer_input["2.weight"] == "1:output"


def test_a_layer_that_runs_twice_keeps_one_quantizer_for_both_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x))

    placement = placement_of(Twice(), *IMAGE)
    assert placement.layer_input["conv.weight"] == "conv:input[0]"
    assert placement.folds == {}


def test_a_placement_survives_its_dict() -> None:
    placement = placement_of(FunctionalResidualNet(), *IMAGE)
    assert Placement.from_dict(placement.as_dict()) == placement


def test_recording_leaves_no_hooks_behind() -> None:
    model = ResidualNet()
    placement_of(model, *IMAGE)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("inplace", [True, False])
def test_in_place_activations_are_told_apart_from_their_input(inplace: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace), nn.Conv2d(4, 4, 1))
    assert placement_of(model, *IMAGE).layer_input["2.weight"] == "1:output"


class Functional(nn.Module):
    """Parameters of its own, read by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.kernel = nn.Parameter(torch.randn(8, 8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.linear(self.first(x).relu(), self.matrix).relu()
        return self.last(F.conv1d(x.unsqueeze(-1), self.kernel).squeeze(-1))


def test_weights_that_functions_read_count_as_layers() -> None:
    found = find(prepare(Functional(), example_inputs=torch.randn(3, 4)))
    assert found.layer_input == {
        "first.weight": "first:input[0]",
        "matrix": "model:relu[0]:output",
        "kernel": "model:relu[1]:output",
        "last.weight": "last:input[0]",
    }
    assert found.unreached == []


def test_a_weight_that_is_read_where_no_module_runs_is_listed_by_name_and_line() -> None:
    model = Functional()
    with torch.no_grad(), recording(model) as tape:
        F.linear(torch.randn(3, 8), model.matrix)
    (line,) = place(tape, model, layer_bits={}, bits=8, backend=None).unreached
    assert line.startswith("matrix: read by linear at test_place.py:")


def test_weights_of_layers_that_are_left_out_are_not_listed_so() -> None:
    model = ResidualNet().eval()
    with torch.no_grad(), recording(model) as tape:
        model(torch.randn(*IMAGE))
    assert place(tape, model, layer_bits={"fc.weight": 8}, bits=8, backend="onnxruntime").unreached == ()


class Pair(nn.Module):
    """What a function made, handed to a module twice, by position and by name."""

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.seen: tuple[torch.Tensor, torch.Tensor] | None = None

        def forward(self, x: torch.Tensor, *, again: torch.Tensor) -> torch.Tensor:
            self.seen = x, again
            return F.linear(x, self.linear.weight) + F.linear(again, self.linear.weight)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pair = nn.Linear(4, 6), self.Weighted()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.first(x).tanh()
        return self.pair(made, again=made)


def test_a_tensor_that_is_several_arguments_is_quantized_in_all_of_them_and_once() -> None:
    model = prepare(Pair(), example_inputs=torch.randn(2, 4))
    x = torch.randn(8, 4)
    model.train()(x)
    model.eval()(x)
    quantizer = find(model).activations["pair:input[0]"]
    assert model.pair.seen is not None
    first, again = model.pair.seen
    assert first is again
    steps = (first / quantizer.scale).detach()
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert set(find(model).layer_input) == {"first.weight", "pair.linear.weight"}


def test_attention_over_what_a_function_made_gets_query_key_and_value_quantized() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.place = nn.Embedding(9, 8), nn.Parameter(torch.randn(5, 8))
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(self.tokens(x) + self.place)

    model = Summed().eval()
    with torch.no_grad(), recording(model) as tape:
        model(torch.randint(9, (2, 5)))
    layer_bits = {candidate.value.name: 8 for candidate in weights(model)}
    placed = place(tape, model, layer_bits=layer_bits, bits=8, backend="onnxruntime")
    # At the block, where it is one tensor, and not at one of the three arguments of the attention.
    assert placed.layer_input["block.self_attn.in_proj_weight"] == "block:input[0]"


def test_an_attention_that_gets_one_tensor_as_query_and_key_has_both_quantized() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = self.first(x).tanh()
            return self.attention(made, made, made * 2)[0]

    placed = placement_of(Attending(), 2, 5, 8)
    paths = [{b.path for b in site.boundaries} for site in placed.sites if site.name.startswith("attention:input")]
    assert paths == [{(0,), (1,)}, {(2,)}]


class Attends(nn.Module):
    """Two products of activations: written out, or by PyTorch's function."""

    def __init__(self, steps: bool) -> None:
        super().__init__()
        self.steps, self.project, self.head = steps, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        if self.steps:
            return self.head(torch.softmax(q @ k.transpose(-2, -1) * 8**-0.5, -1) @ v)
        return self.head(F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize(
    ("steps", "weights"), [(True, "model:softmax[0]:output"), (False, "model:scaled_dot_product_attention[0]:weights")]
)
def test_both_products_of_attention_are_quantized(steps: bool, weights: str) -> None:
    sites = names(placement_of(Attends(steps), 2, 4, 8))
    assert sorted(sites) == sorted(["project:input[0]", "project:output", weights, "head:input[0]"])
    assert weights not in names(placement_of(Attends(steps), 2, 4, 8, backend="inductor"))


def test_quantized_attention_is_the_product_of_rounded_factors() -> None:
    torch.manual_seed(0)
    model, x = Attends(steps=False), torch.randn(5, 4, 8)
    prepare(model, example_inputs=x, weight_bits=None, reduce_range=False)
    model.train()(x)
    seen: list[torch.Tensor] = []
    model.eval().head.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    model(x)

    def rounded(tensor: torch.Tensor, site: str) -> torch.Tensor:
        quantizer = find(model).activations[site]
        scale, zero = float(quantizer.scale), int(quantizer.zero_point)
        return ((tensor / scale).round() + zero).clamp(0, 255).sub(zero) * scale

    projected = F.linear(rounded(x, "project:input[0]"), model.project.weight, model.project.bias)
    q, k, v = rounded(projected, "project:output").chunk(3, -1)
    shares = rounded(torch.softmax(q @ k.mT / 8**0.5, -1), "model:scaled_dot_product_attention[0]:weights")
    expected = rounded(shares @ v, "head:input[0]")
    # A tie may round to the other side.
    assert (seen[0] - expected).abs().max() <= 1.001 * float(find(model).activations["head:input[0]"].scale)
    assert ((seen[0] - expected).abs() < 1e-5).float().mean() > 0.98


class Overlap(nn.Module):
    def forward(self, given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return 1 - 2 * (given * wanted).sum() / (given + wanted).sum()


def test_a_loss_is_no_part_of_the_network() -> None:
    task = nn.ModuleDict({"net": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), "loss": Overlap()})
    layer_bits = {candidate.value.name: 8 for candidate in weights(task)}
    found = []
    for with_loss in (False, True):
        with torch.no_grad(), recording(task) as tape:
            made = task["net"](torch.randn(*IMAGE))
            if with_loss:
                task["loss"](made.sigmoid(), torch.rand_like(made)) + (made * made + made).mean()
                made.flatten(1) @ made.flatten(1).T
        found.append(place(tape, task, layer_bits=layer_bits, bits=8, backend="onnxruntime"))
    assert names(found[1]) == names(found[0])
    assert found[1].unreached == ()
