"""Archives of strangers: refused in one line, before anything in them is called or allocated."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress import CompressionError
from lightning_compress.export.pt2 import operators
from lightning_compress.export.pt2.operators import ATEN, is_allowed, trust
from lightning_compress.export.pt2.safe_archive import _check
from lightning_compress.export.pt2.write import load_torch_export, to_torch_export

LINEAR = "torch.ops.aten.linear.default"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("true") / "model.pt2"
    to_torch_export(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(3, 4), path)
    with zipfile.ZipFile(path) as archive:
        return {item.filename: archive.read(item) for item in archive.infolist()}


def written(parts: dict[str, bytes], path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def model_json(parts: dict[str, bytes]) -> str:
    return next(name for name in parts if name.endswith("models/model.json"))


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.inductor._reinterpret_tensor.default", "torch.ops.aten.save.default",
        "torch.ops.aten.from_file.default", "torch.ops.aten._reshape_alias.default",
        "torch.ops.aten.set_.source_Storage", "torch.ops.aten.resize_.default", "torch.ops.aten.add.out",
        "torch.ops.aten._cudnn_init_dropout_state.default", "torch.ops.aten._nested_view_from_buffer.default",
        "torch.ops.aten.record_stream.default", "torch.ops.quantized.linear.default",
        "torch.ops.prim.device.default", "torch.ops.profiler._record_function_exit", "torch.ops.load_library",
        "torch.ops.aten.linear.default.__class__", "torch.ops.higher_order.run_with_rng_state",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation", "torch.ops.rngprims.philox_rand.default",
        "torch.ops.aten._weight_norm.default", "torch.ops.aten.native_batch_norm.default",
        "torch.ops.aten._native_batch_norm_legit_no_training.default", "torch.ops.aten.empty.memory_format",
        "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default", "torch.ops.aten.ctc_loss.IntList",
        "torch.load", "torch.hub.load", "torch.sym_int.__globals__", "math.os.system", "math.__loader__",
        "torch.ops.aten.linear", "torch.ops.aten.linear.__class__", "torch.ops.aten.linear.__getattr__",
        "torch.ops.aten.linear.__setattr__", "torch.ops.aten.linear._op", "torch.ops.aten.linear.overloads",
        "torch.ops.higher_order.cond.py_impl", "torch.ops.higher_order.cond.__call__",
        "_operator.methodcaller", "_operator.attrgetter", "builtins.eval", "os.system", "#ext:evil", "",
    ],
)  # fmt: skip
def test_a_call_of_anything_else_than_the_listed_operators_is_refused(
    target: str, parts: dict[str, bytes], tmp_path: Path
) -> None:
    name = model_json(parts)
    changed = {**parts, name: parts[name].replace(LINEAR.encode(), target.encode())}
    assert changed != parts
    assert not is_allowed(target)
    with pytest.raises(CompressionError, match="not among the operators"):
        load_torch_export(written(changed, tmp_path / "evil.pt2"))


def test_an_operator_given_as_an_argument_is_checked_too(parts: dict[str, bytes], tmp_path: Path) -> None:
    name = model_json(parts)
    tree = json.loads(parts[name])
    tree["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {"as_operator": "torch.ops.aten.save.default"}
    with pytest.raises(CompressionError, match="not among the operators"):
        load_torch_export(written({**parts, name: json.dumps(tree).encode()}, tmp_path / "evil.pt2"))


@pytest.mark.parametrize(
    "size",
    [
        "9**9**9**9", "9**99999999", "(((9**4)**4)**4)**4**4", "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Pow(Integer(9),Integer(999999))", "2**-9999999", "9" * 20,
        "Pow(Symbol('s0', positive=True, integer=True), Symbol('s1', positive=True, integer=True))",
        "(((s0 + s1 + s2)**4)**4)**4", "Max(" + ", ".join(f"s{n}" for n in range(2000)) + ")",
    ],
)  # fmt: skip
def test_a_size_that_takes_for_ever_is_refused(size: str, parts: dict[str, bytes], tmp_path: Path) -> None:
    name = model_json(parts)
    tree = json.loads(parts[name])
    tree["planted"] = {"expr_str": size}
    with pytest.raises(CompressionError, match="too large to be a size"):
        load_torch_export(written({**parts, name: json.dumps(tree).encode()}, tmp_path / "evil.pt2"))


@pytest.mark.parametrize(
    "size",
    [
        "s0**2", "Pow(Symbol('s0', positive=True, integer=True), Integer(2))", "2*s77**2 + 1",
        "Mul(Integer(2), Pow(Add(Symbol('s0', integer=True), Integer(-1)), Integer(3)))", "s0//4",
    ],
)  # fmt: skip
def test_arithmetic_of_real_sizes_passes(size: str) -> None:
    _check("expr_str", size, "here")


@pytest.mark.parametrize("size", ["1<<9999999999", "Integer(1)<<Integer(99999999999)", "u99999999999999 + 1"])
def test_a_size_that_shifts_or_counts_for_ever_is_refused(size: str) -> None:
    with pytest.raises(CompressionError, match="no arithmetic"):
        _check("expr_str", size, "here")


def test_a_range_that_is_counted_for_ever_is_refused(parts: dict[str, bytes], tmp_path: Path) -> None:
    name = model_json(parts)
    tree = json.loads(parts[name])
    tree["range_constraints"]["u99999999999999"] = {"min_val": 0, "max_val": 5}
    with pytest.raises(CompressionError, match="no size"):
        load_torch_export(written({**parts, name: json.dumps(tree).encode()}, tmp_path / "evil.pt2"))


def test_what_pytorch_cannot_read_is_one_line(
    parts: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = model_json(parts)
    tree = json.loads(parts[name])
    tree["graph_module"]["graph"]["nodes"][0]["outputs"][0]["as_tensor"]["name"] = "elsewhere"
    with pytest.raises(CompressionError, match="Failed deserializing") as raised:
        load_torch_export(written({**parts, name: json.dumps(tree).encode()}, tmp_path / "evil.pt2"))
    assert "\n" not in str(raised.value)
    assert not caplog.records


def test_an_archive_that_is_encrypted_is_refused(parts: dict[str, bytes], tmp_path: Path) -> None:
    path = written(parts, tmp_path / "evil.pt2")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(CompressionError, match="encrypted"):
        load_torch_export(path)


@pytest.mark.parametrize("name", ["metadata", "use_pickle", "expr_str", "guards_code", "target", "name"])
def test_a_weight_may_be_called_like_a_field_of_the_format(name: str, tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter(name, nn.Parameter(torch.randn(4)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * getattr(self, name)

    net, x = Scaled(), torch.randn(3, 4)
    to_torch_export(net, x, tmp_path / "model.pt2")
    assert torch.equal(load_torch_export(tmp_path / "model.pt2")(x), net(x))


def test_a_name_is_not_read_as_json(parts: dict[str, bytes], tmp_path: Path) -> None:
    """Its quotation marks would end the ones that PyTorch writes around it."""
    changed = {
        name: json.dumps(renamed(json.loads(part), "0.weight", '["x", "y"]')).encode()
        if name.endswith(".json")
        else part
        for name, part in parts.items()
    }
    with pytest.raises(CompressionError, match="could be code"):
        load_torch_export(written(changed, tmp_path / "evil.pt2"))


def test_a_compressed_archive_is_refused(parts: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="a bomb"):
        load_torch_export(written(parts, tmp_path / "evil.pt2", zipfile.ZIP_DEFLATED))


def weights_of(tree: Any) -> dict[str, Any]:
    return next(value for key, value in walked(tree) if key == "tensor_meta")


def walked(tree: Any) -> list[tuple[str, Any]]:
    if isinstance(tree, dict):
        return [(key, value) for key, value in tree.items()] + [p for value in tree.values() for p in walked(value)]
    return [p for value in tree for p in walked(value)] if isinstance(tree, list) else []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sizes", [{"as_int": 1 << 40}, {"as_int": 4}]),
        ("strides", [{"as_int": 1 << 40}, {"as_int": 1}]),
        ("storage_offset", {"as_int": 1 << 40}),
        ("storage_offset", {"as_int": -5}),
        ("dtype", 99),
    ],
)
def test_tensors_beyond_their_bytes_are_refused(key: str, value: Any, parts: dict[str, bytes], tmp_path: Path) -> None:
    name = next(name for name in parts if "weights" in name and name.endswith(".json"))
    tree = json.loads(parts[name])
    weights_of(tree)[key] = value
    with pytest.raises(CompressionError):
        load_torch_export(written({**parts, name: json.dumps(tree).encode()}, tmp_path / "evil.pt2"))(torch.zeros(3, 4))


def test_no_mutation_of_the_tables_ends_in_anything_but_the_one_error(parts: dict[str, bytes], tmp_path: Path) -> None:
    rng = random.Random(0)
    tables = [name for name in parts if name.endswith(".json")]
    values = [None, -1, 1 << 40, "x", [], {}, True, 1e308, "torch.ops.aten.add.Tensor", [{"as_int": 1 << 40}]]
    refused = 0
    for _ in range(40):
        changed = dict(parts)
        name = rng.choice(tables)
        tree = json.loads(changed[name])
        for _ in range(rng.randrange(1, 4)):
            mutate(tree, rng, values)
        changed[name] = json.dumps(tree).encode()
        try:
            load_torch_export(written(changed, tmp_path / "evil.pt2"))
        except CompressionError:
            refused += 1
    assert refused > 5


def mutate(tree: Any, rng: random.Random, values: list[Any]) -> None:
    """Put something else at a random place."""
    while True:
        if not tree:
            return
        key = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        below = tree[key]
        if not isinstance(below, dict | list) or not below or rng.random() < 0.1:
            tree[key] = json.loads(json.dumps(rng.choice(values)))
            return
        tree = below


def test_every_listed_operator_is_one_of_pytorch_and_takes_no_path() -> None:
    known = {name for name in ATEN if hasattr(torch.ops.aten, name)}
    # Releases of PyTorch differ in a few.
    assert len(known) > 0.98 * len(ATEN)
    assert not known & {"save", "from_file", "set", "set_", "resize", "resize_", "_reshape_alias", "record_stream"}


def test_an_operator_of_ones_own_is_trusted_once_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_trusted", set())

    @torch.library.custom_op("strangers::turn", mutates_args=())
    def turn(x: torch.Tensor) -> torch.Tensor:
        return x.flip(0)

    turn.register_fake(lambda x: torch.empty_like(x))

    class Turn(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.strangers.turn(x) + 1

    # Whoever exports a model trusts what it calls; another process has to be told.
    to_torch_export(Turn(), torch.zeros(3, 4), tmp_path / "model.pt2")
    monkeypatch.setattr(operators, "_trusted", set())
    with pytest.raises(CompressionError, match=r"strangers\.turn"):
        load_torch_export(tmp_path / "model.pt2")
    trust("strangers.turn")
    x = torch.randn(3, 4)
    assert torch.equal(load_torch_export(tmp_path / "model.pt2")(x), x.flip(0) + 1)
    with pytest.raises(CompressionError, match=r"namespace\.name"):
        trust("torch.ops.aten.save.default")


CALL = "__import__('pathlib').Path('owned').touch()"


def renamed(tree: Any, old: str, new: str) -> Any:
    """A table where a name is another one wherever it stands."""
    return json.loads(json.dumps(tree).replace(json.dumps(old), json.dumps(new)))


@pytest.mark.parametrize("name", [f"x={CALL}", f"x:{CALL}", "x, *, y", "x\n", "1x", "x y"])
def test_a_name_that_is_python_is_refused(
    name: str, parts: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = model_json(parts)
    tree = json.loads(parts[table])
    given = tree["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"]
    changed = {**parts, table: json.dumps(renamed(tree, given, name)).encode()}
    assert changed != parts
    with pytest.raises(CompressionError, match="could be code"):
        load_torch_export(written(changed, tmp_path / "evil.pt2"))
    assert not Path("owned").exists()


def test_a_weight_whose_name_ends_a_quotation_is_refused(parts: dict[str, bytes], tmp_path: Path) -> None:
    changed = {
        name: json.dumps(renamed(json.loads(part), "0.weight", f'0.w", {CALL}, "')).encode()
        if name.endswith(".json")
        else part
        for name, part in parts.items()
    }
    with pytest.raises(CompressionError, match="could be code"):
        load_torch_export(written(changed, tmp_path / "evil.pt2"))


@pytest.mark.parametrize("blank", ["", " ", "\n"])
@pytest.mark.parametrize("context", ['{"__enum__": true}', '{"default_factory_module": "antigravity"}'])
def test_a_structure_that_imports_a_module_is_refused(
    context: str, blank: str, parts: dict[str, bytes], tmp_path: Path
) -> None:
    table = model_json(parts)
    tree = json.loads(parts[table])
    tree["in_spec"] = blank + json.dumps([1, {"type": "collections.defaultdict", "context": blank + context}])
    with pytest.raises(CompressionError, match="imports a module"):
        load_torch_export(written({**parts, table: json.dumps(tree).encode()}, tmp_path / "evil.pt2"))


def test_keyword_arguments_that_are_python_are_refused(parts: dict[str, bytes], tmp_path: Path) -> None:
    table = model_json(parts)
    tree = json.loads(parts[table])
    tree["in_spec"] = json.dumps([1, {"type": "builtins.dict", "context": json.dumps([f"x={CALL}"])}])
    with pytest.raises(CompressionError, match="could be code"):
        load_torch_export(written({**parts, table: json.dumps(tree).encode()}, tmp_path / "evil.pt2"))


def test_of_two_lists_of_parts_the_one_that_was_checked_counts(parts: dict[str, bytes], tmp_path: Path) -> None:
    """Python finds the list by its length, PyTorch by its offset: one file can hold two of them."""
    table = model_json(parts)
    tree = json.loads(parts[table])
    shown = json.dumps(tree).encode()
    tree["graph_module"]["graph"]["nodes"][1]["target"] = "torch.ops.aten.neg.default"
    # Of one length, so that offsets in both lists are right.
    hidden = written(
        {**parts, table: json.dumps(tree).encode().ljust(len(shown) + 99)}, tmp_path / "1.pt2"
    ).read_bytes()
    seen = written({**parts, table: shown.ljust(len(shown) + 99)}, tmp_path / "2.pt2").read_bytes()
    (tmp_path / "both.pt2").write_bytes(hidden[: hidden.rindex(b"PK\x05\x06")] + seen)
    x = torch.randn(3, 4)
    theirs = torch.export.load(tmp_path / "both.pt2").module()(x)
    ours = load_torch_export(tmp_path / "both.pt2")(x)
    assert torch.equal(ours, load_torch_export(tmp_path / "2.pt2")(x))
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("sizes", "strides"),
    [([1 << 40, 4], [0, 1]), ([8, 8], [2, 1]), ([1, 1 << 40], [1, 1]), ([1 << 30, 1 << 40], [0, 0])],
)
def test_a_weight_whose_elements_share_bytes_is_refused(
    sizes: list[int], strides: list[int], parts: dict[str, bytes], tmp_path: Path
) -> None:
    name = next(name for name in parts if "weights" in name and name.endswith(".json"))
    tree = json.loads(parts[name])
    weights_of(tree).update(
        {key: [{"as_int": n} for n in value] for key, value in (("sizes", sizes), ("strides", strides))}
    )
    with pytest.raises(CompressionError, match="bytes hold"):
        load_torch_export(written({**parts, name: json.dumps(tree).encode()}, tmp_path / "evil.pt2"))


def test_a_weight_without_bytes_is_not_made_of_zeros(parts: dict[str, bytes], tmp_path: Path) -> None:
    empty = {name: b"" if "weight_0" in name else part for name, part in parts.items()}
    with pytest.raises(CompressionError, match="0 bytes hold"):
        load_torch_export(written(empty, tmp_path / "evil.pt2"))


def test_a_buffer_that_was_expanded_is_written_whole(tmp_path: Path) -> None:
    class Expanded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("b", torch.randn(1, 4).expand(3, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.b.t()

    net, x = Expanded(), torch.randn(2, 4)
    to_torch_export(net, x, tmp_path / "model.pt2")
    assert torch.allclose(load_torch_export(tmp_path / "model.pt2")(x), net(x))


def test_messages_of_operators_may_quote(tmp_path: Path) -> None:
    class Checked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat_interleave((x > 0).sum(1).int(), 0)

    x = torch.randn(3, 4)
    to_torch_export(Checked(), x, tmp_path / "model.pt2", dynamic_batch=False)
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        assert any(b"on node '" in archive.read(name) for name in archive.namelist())
    assert torch.equal(load_torch_export(tmp_path / "model.pt2")(x), Checked()(x))
