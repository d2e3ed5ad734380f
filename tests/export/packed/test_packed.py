from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import plain_packed_reader as plain
import pytest
import torch
from networks import ResidualNet
from safetensors import safe_open
from torch import nn

from lightning_compress import quantization
from lightning_compress.errors import CompressionError
from lightning_compress.export.packed.save_load import PackedReader, load_packed, save_packed
from lightning_compress.models.resnet import ResNet


def prune(model: nn.Module, sparsity: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                threshold = parameter.abs().flatten().kthvalue(max(1, int(sparsity * parameter.numel()))).values
                parameter.mul_(parameter.abs() > threshold)


def train_a_little(model: nn.Module) -> None:
    """Batch norm and ranges get values that are no round numbers."""
    model.train()
    for _ in range(2):
        model(torch.randn(8, 3, 16, 16))
    model.eval()


def quantized_net(**settings: object) -> nn.Module:
    net = ResidualNet()
    prune(net, 0.7)
    quantization.prepare(net, example_inputs=torch.randn(1, 3, 16, 16), **settings)
    train_a_little(net)
    return net


def plain_pair(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return ResidualNet().eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_bits": 8, "activation_bits": 8},
        {"weight_bits": 4, "activation_bits": 6, "activation_scheme": "symmetric"},
        {"weight_bits": 2, "activation_bits": 8, "weight_granularity": "tensor"},
        {"weight_bits": 4, "activation_bits": 8, "weight_granularity": "group:5"},
        {"weight_bits": 4, "activation_bits": 8, "weight_granularity": "group:64"},
        {"weight_bits": None, "activation_bits": 8},
        {"weight_bits": 3, "activation_bits": None},
        {"weight_bits": 8, "overrides": {"fc": None, "stem.0": {"weight_bits": 4}}},
    ],
    ids=str,
)
def test_the_loaded_model_gives_the_fake_quantized_outputs(tmp_path: Path, settings: dict[str, object]) -> None:
    net = quantized_net(**settings)
    file = save_packed(net, tmp_path / "net.packed")
    loaded = load_packed(file.path, plain_pair()).eval()
    x = torch.randn(4, 3, 16, 16)
    expected = net(x)
    assert torch.allclose(loaded(x), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    quantization.find(net).enabled = False
    assert not torch.allclose(net(x), expected, rtol=1e-5)


@pytest.mark.parametrize("granularity", ["channel", "tensor", "group:5"])
def test_a_float_model_gets_integers_times_scale(tmp_path: Path, granularity: str) -> None:
    net = quantized_net(weight_bits=4, weight_granularity=granularity)
    save_packed(net, tmp_path / "net.packed")
    loaded = load_packed(tmp_path / "net.packed", plain_pair(), quantized=False)
    assert quantization.find(loaded) is None
    for name, layer in quantization.find(net).layers.items():
        integers, scale = layer.integers().numpy().astype(np.float32), layer.scale().numpy()
        rows = integers.reshape(len(integers), -1)
        if scale.ndim == 2:
            wide = np.repeat(scale, 5, 1)[:, : rows.shape[1]]
        else:
            wide = np.broadcast_to(scale.reshape(-1, 1), (len(rows), 1))
        assert np.array_equal(loaded.get_parameter(name).detach().numpy(), (rows * wide).reshape(integers.shape))


def test_all_that_is_not_quantized_is_kept_bit_for_bit(tmp_path: Path) -> None:
    net = nn.Module()
    net.weird = nn.Parameter(torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-42, -3.0]))
    for k, dtype in enumerate(
        [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool]
    ):
        net.register_buffer(f"b{k}", (torch.randn(3, 5) * 50).to(dtype))
    net.register_buffer("complex", torch.randn(4, dtype=torch.complex64))
    net.register_buffer("count", torch.tensor(123))
    net.register_buffer("empty", torch.zeros(0, 3))
    net.register_buffer("turned", torch.randn(6, 4).T)
    net.register_buffer("large", torch.randn(200, 200))
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    save_packed(net, tmp_path / "net.packed")
    for tensor in net.state_dict().values():
        tensor.fill_(1)
    load_packed(tmp_path / "net.packed", net)
    for name, tensor in net.state_dict().items():
        assert (
            tensor.contiguous().numpy(force=True).tobytes() == state[name].contiguous().numpy().tobytes()
            if (tensor.dtype != torch.bfloat16)
            else torch.equal(tensor, state[name])
        ), name


def test_batch_norm_and_scales_are_kept_bit_for_bit(tmp_path: Path) -> None:
    net = quantized_net()
    save_packed(net, tmp_path / "net.packed")
    loaded = load_packed(tmp_path / "net.packed", plain_pair())
    layers = quantization.find(net).layers
    for name, tensor in net.state_dict().items():
        if name in layers:
            assert torch.equal(quantization.find(loaded).layers[name].scale(), layers[name].scale())
        else:
            assert torch.equal(loaded.state_dict()[name], tensor)


def test_pruned_float_weights_leave_out_their_zeros(tmp_path: Path) -> None:
    net = nn.Linear(300, 200)
    prune(net, 0.9)
    net.weight.data[3, :] = float("nan")
    file = save_packed(net, tmp_path / "net.packed")
    loaded = load_packed(file.path, nn.Linear(300, 200))
    assert torch.equal(loaded.weight.nan_to_num(nan=7), net.weight.nan_to_num(nan=7))
    kept = int((net.weight != 0).sum())
    assert file.tensors[0].kind == "sparse"
    assert file.tensors[0].bytes < 4 * kept + 0.5 * net.weight.numel() / 8


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        net[1].weight = net[0].weight
        return net

    net = tied()
    quantization.prepare(net, activation_bits=None)
    file = save_packed(net, tmp_path / "net.packed")
    assert [row.kind for row in file.tensors] == ["integers", "plain", "same", "plain"]
    assert file.bytes < 1.15 * 64 * 64 + 64 * 3 * 4
    loaded = load_packed(file.path, tied(), quantized=False)
    assert loaded[0].weight is loaded[1].weight
    assert torch.equal(loaded[1].weight, quantization.find(net).layers["0.weight"].fake_quantize())
    assert file.dense_bytes == 4 * (64 * 64 + 128)


class Aliased(nn.Module):
    """Its second layer's weight has an earlier name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.alias = self.second.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


def test_a_weight_with_an_earlier_name_in_the_parent_is_stored_as_integers(tmp_path: Path) -> None:
    net, x = Aliased(), torch.randn(32, 64)
    quantization.prepare(net, weight_bits=2, first_last_bits=None, range="learned", example_inputs=x)
    net.train()(x)
    file = save_packed(net.eval(), tmp_path / "net.packed")
    assert [(row.name, row.kind) for row in file.tensors if row.kind != "plain"] == [
        ("alias", "integers"),
        ("first.weight", "integers"),
        ("second.weight", "same"),
    ]
    with torch.no_grad():
        torch.testing.assert_close(load_packed(file.path, Aliased()).eval()(x), net(x))


def test_an_eighty_percent_sparse_resnet_is_as_small_as_promised(tmp_path: Path) -> None:
    net = ResNet(3, 10)
    weights = [p for p in net.parameters() if p.ndim > 1]
    threshold = torch.cat([w.abs().flatten() for w in weights]).quantile(0.8)
    with torch.no_grad():
        for weight in weights:
            weight.mul_(weight.abs() > threshold)
    quantization.prepare(net, example_inputs=torch.randn(1, 3, 32, 32))
    net.train()(torch.randn(4, 3, 32, 32))
    file = save_packed(net, tmp_path / "net.packed")
    count = sum(w.numel() for w in weights)
    kept = sum(int((w != 0).sum()) for w in weights)
    assert file.bytes <= 1.02 * (count / 8 + kept)
    assert file.breakdown["positions"] + file.breakdown["values"] <= 1.03 * file.entropy_bound
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, layer in quantization.find(net).layers.items():
            archive.writestr(name, layer.integers().numpy().tobytes())
    assert file.breakdown["positions"] + file.breakdown["values"] < 0.9 * len(zipped.getvalue())


def test_the_entropy_bound_is_that_of_the_integers(tmp_path: Path) -> None:
    net = quantized_net(weight_bits=4)
    file = save_packed(net, tmp_path / "net.packed")
    bound = 0.0
    for layer in quantization.find(net).layers.values():
        counts = torch.unique(layer.integers(), return_counts=True)[1].double()
        bound += float((counts * (counts.sum() / counts).log2()).sum()) / 8
    assert file.entropy_bound == pytest.approx(bound)


def test_parts_and_tensors_add_up_to_the_file(tmp_path: Path) -> None:
    file = save_packed(quantized_net(), tmp_path / "net.packed")
    assert sum(file.breakdown.values()) == file.bytes == file.path.stat().st_size
    outside = sum(file.breakdown[part] for part in ("header", "layout", "quantizers"))
    assert sum(row.bytes for row in file.tensors) == file.bytes - outside
    assert file.compression_ratio == file.dense_bytes / file.bytes


def test_the_plain_reader_reads_the_same(tmp_path: Path) -> None:
    net = quantized_net(weight_bits=4, overrides={"fc": None})
    save_packed(net, tmp_path / "net.packed", {"classes": ["ä", "b"]})
    found, extra = plain.read(tmp_path / "net.packed")
    assert json.loads(extra)["metadata"] == {"classes": ["ä", "b"]}
    layers = quantization.find(net).layers
    assert list(found) == list(net.state_dict())
    for name, tensor in net.state_dict().items():
        stored = found[name][2]
        if name in layers:
            assert np.array_equal(stored[0], layers[name].integers().numpy())
            assert np.array_equal(stored[1], layers[name].scale().numpy())
        else:
            # Sparse floats come back without the signs of zeros, which comparing numbers does not see.
            values = np.frombuffer(stored, np.int64 if tensor.dtype == torch.int64 else np.float32)
            assert np.array_equal(values.reshape(tensor.shape), tensor.numpy())


def test_it_is_a_safetensors_file(tmp_path: Path) -> None:
    save_packed(quantized_net(), tmp_path / "net.packed")
    with safe_open(tmp_path / "net.packed", "np") as file:
        assert file.metadata() == {"lightning-compress": "packed 1"}
        assert list(file.keys()) == ["packed"]


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    net = quantized_net()
    save_packed(net, tmp_path / "a")
    save_packed(net, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_packing_changes_nothing_in_the_model(tmp_path: Path) -> None:
    net = quantized_net()
    x, state = torch.randn(2, 3, 16, 16), {k: v.clone() for k, v in net.state_dict().items()}
    before = net(x)
    save_packed(net, tmp_path / "net.packed")
    assert torch.equal(net(x), before)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_a_loaded_model_packs_to_the_same_bytes(tmp_path: Path) -> None:
    save_packed(quantized_net(), tmp_path / "a")
    save_packed(load_packed(tmp_path / "a", plain_pair()), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_quantized_submodule_is_quantized_again_after_loading(tmp_path: Path) -> None:
    def outer(net: nn.Module) -> nn.Module:
        module = nn.Module()
        module.inner = nn.ModuleDict({"net": net})
        return module

    net = quantized_net()
    file = save_packed(outer(net), tmp_path / "net.packed")
    loaded = load_packed(file.path, outer(plain_pair()))
    assert {row.kind for row in file.tensors} == {"integers", "plain"}
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(loaded.inner["net"].eval()(x), net(x), rtol=1e-5, atol=1e-6)


def test_quantization_that_has_not_begun_leaves_floats(tmp_path: Path) -> None:
    net = quantized_net()
    quantization.find(net).enabled = False
    file = save_packed(net, tmp_path / "net.packed")
    assert "integers" not in {row.kind for row in file.tensors}
    loaded = load_packed(file.path, plain_pair())
    assert quantization.find(loaded) is None
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(x), net(x))


def test_one_tensor_is_read_without_the_others(tmp_path: Path) -> None:
    net = quantized_net()
    file = save_packed(net, tmp_path / "net.packed", {"run": 7})
    data = bytearray(file.path.read_bytes())
    with PackedReader(file.path) as reader:
        broken = reader.entries["block1.conv1.weight"]
        start = file.breakdown["header"] + file.breakdown["layout"]
        start += sum(reader._container.layout.lengths[: broken.chunk])
    data[start + 3] ^= 1
    file.path.write_bytes(data)
    with PackedReader(file.path) as reader:
        assert reader.metadata == {"run": 7}
        weight = reader.tensor("fc.weight")
        assert torch.equal(weight, quantization.find(net).layers["fc.weight"].fake_quantize())
        assert torch.equal(reader.integers("fc.weight"), quantization.find(net).layers["fc.weight"].integers())
        with pytest.raises(CompressionError, match=r"net\.packed, block1\.conv1\.weight: damaged, the checksum"):
            reader.tensor("block1.conv1.weight")


def test_a_damaged_file_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    file = save_packed(quantized_net(), tmp_path / "net.packed")
    data = bytearray(file.path.read_bytes())
    data[-1] ^= 1
    file.path.write_bytes(data)
    model = plain_pair()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CompressionError, match="damaged, the checksum of chunk"):
        load_packed(file.path, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert quantization.find(model) is None


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    file = save_packed(nn.Linear(2, 2), tmp_path / "net.packed")
    file.path.write_bytes(file.path.read_bytes().replace(b'"packed 1"', b'"packed 2"'))
    with pytest.raises(CompressionError, match="version 2 is newer than the 1"):
        load_packed(file.path, nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 4), r"weight: the file holds shape \(2, 3\), Linear has \(4, 3\)"),
        (nn.Linear(3, 2, bias=False), "Linear lacks tensors that the file has: bias"),
        (nn.BatchNorm1d(2), "the file lacks tensors that BatchNorm1d has: running_mean"),
        (nn.Linear(3, 2).half(), r"weight: the file holds float32, Linear has torch\.float16"),
        (nn.Linear(3, 2, device="meta"), "Linear is on the meta device"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_name(tmp_path: Path, model: nn.Module, message: str) -> None:
    file = save_packed(nn.Linear(3, 2), tmp_path / "net.packed")
    with pytest.raises(CompressionError, match=message):
        load_packed(file.path, model)


def test_a_model_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    net = quantized_net()
    file = save_packed(net, tmp_path / "net.packed")
    with pytest.raises(CompressionError, match="quantized already"):
        load_packed(file.path, net)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}", b"\0" * 5000])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.packed").write_bytes(content)
    with pytest.raises(CompressionError, match=r"net\.packed: not a packed file"):
        load_packed(tmp_path / "net.packed", nn.Linear(2, 2))


def test_a_missing_file_and_an_unwritable_path_are_reported(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"none\.packed: cannot be read \(No such file"):
        load_packed(tmp_path / "none.packed", nn.Linear(2, 2))
    with pytest.raises(CompressionError, match="cannot be written"):
        save_packed(nn.Linear(2, 2), "/proc/net.packed")


def test_metadata_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"save_packed\.metadata: expected what JSON can hold"):
        save_packed(nn.Linear(2, 2), tmp_path / "net.packed", {"x": torch.ones(1)})


def test_state_that_is_no_tensor_is_refused_by_name(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"seen": 3}

    with pytest.raises(CompressionError, match="_extra_state: the state_dict holds dict"):
        save_packed(Extra(2, 2), tmp_path / "net.packed")


def test_a_tensor_far_larger_than_its_file_is_read_only_into_its_model(tmp_path: Path) -> None:
    net = nn.Linear(2000, 2000, bias=False)
    nn.init.zeros_(net.weight)
    file = save_packed(net, tmp_path / "net.packed")
    with PackedReader(file.path) as reader, pytest.raises(CompressionError, match="more than 1000 times the file"):
        reader.tensor("weight")
    assert not load_packed(file.path, nn.Linear(2000, 2000, bias=False)).weight.any()


def test_a_path_with_spaces_and_other_scripts_works(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    file = save_packed(net, tmp_path / "mein Netz" / "模型.packed")
    assert torch.equal(load_packed(file.path, nn.Linear(3, 2)).weight, net.weight)
