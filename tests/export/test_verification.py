from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Mlp
from torch import nn
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress import CompressionError
from lightning_compress.export.onnx.session import OnnxModel, open_session
from lightning_compress.export.onnx.weight_signs import EXACT
from lightning_compress.export.onnx.write import to_onnx
from lightning_compress.export.packed.save_load import save_packed
from lightning_compress.export.signatures import restored
from lightning_compress.export.verification import Comparison, class_axis, split_batch, verify
from lightning_compress.quantization import prepare


@pytest.fixture(scope="module")
def quantized() -> nn.Module:
    torch.manual_seed(0)
    net = prepare(Mlp(), example_inputs=torch.randn(2, 12))
    for _ in range(3):
        net(torch.randn(64, 12))
    return net


@pytest.fixture(scope="module")
def onnx_file(quantized: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_onnx(quantized, torch.randn(2, 12), tmp_path_factory.mktemp("verify") / "mlp.onnx").path


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    # The last batch is smaller, as in real data.
    return [(torch.randn(size, 12), torch.randint(5, (size,))) for size in (32, 32, 7)]


def accuracy(outputs: np.ndarray, targets: torch.Tensor) -> float:
    return float((outputs.argmax(1) == targets.numpy()).mean())


def test_metrics_of_the_file_are_those_of_the_file(quantized, onnx_file, batches):
    found = verify(onnx_file, quantized, batches, MulticlassAccuracy(5, average="micro"))
    session = open_session(onnx_file)
    name = session.get_inputs()[0].name
    outputs = np.concatenate([session.run(None, {name: x.numpy()})[0] for x, _ in batches])
    targets = torch.cat([y for _, y in batches])
    assert found.metrics["deployed"]["MulticlassAccuracy"] == pytest.approx(accuracy(outputs, targets))
    assert found.samples == 71


def test_differences_are_those_between_file_and_model(quantized, onnx_file, batches):
    found = verify(onnx_file, quantized, batches, MulticlassAccuracy(5))
    session = open_session(onnx_file)
    name = session.get_inputs()[0].name
    model = copy.deepcopy(quantized).eval()
    ours = np.concatenate([session.run(None, {name: x.numpy()})[0] for x, _ in batches])
    with torch.no_grad():
        theirs = np.concatenate([model(x).numpy() for x, _ in batches])
    assert found.max_abs_difference == pytest.approx(np.abs(ours - theirs).max(), rel=1e-5)
    assert found.mean_abs_difference == pytest.approx(np.abs(ours - theirs).mean(), rel=1e-5)
    assert found.agreement == pytest.approx((ours.argmax(1) == theirs.argmax(1)).mean())


def test_a_file_of_other_weights_is_found_out(quantized, onnx_file, batches):
    other = copy.deepcopy(quantized)
    with torch.no_grad():
        other[5].weight.neg_()
    found = verify(onnx_file, other, batches, MulticlassAccuracy(5))
    assert found.agreement < 0.9
    assert found.max_abs_difference > 0.1


def test_the_packed_file_gives_the_models_own_outputs(quantized, batches, tmp_path):
    path = save_packed(quantized, tmp_path / "mlp.packed").path
    found = verify(path, quantized, batches, MulticlassAccuracy(5))
    assert found.agreement == 1.0
    assert found.max_abs_difference < 1e-5
    assert found.runtime.startswith("PyTorch")


def test_the_dense_model_is_measured_on_the_same_data(quantized, onnx_file, batches):
    dense = Mlp()
    found = verify(onnx_file, quantized, batches, {"acc": MulticlassAccuracy(5, average="micro")}, dense=dense)
    with torch.no_grad():
        outputs = np.concatenate([dense(x).numpy() for x, _ in batches])
    assert found.metrics["dense"]["acc"] == pytest.approx(accuracy(outputs, torch.cat([y for _, y in batches])))


def test_the_models_modes_and_the_users_metrics_stay_as_they_are(quantized, onnx_file, batches):
    quantized.train()
    quantized[3].eval()
    modes = [module.training for module in quantized.modules()]
    metric = MulticlassAccuracy(5)
    verify(onnx_file, quantized, batches, metric)
    assert [module.training for module in quantized.modules()] == modes
    assert not metric.update_called


def test_dict_batches_are_keyword_arguments_and_targets(quantized, onnx_file, batches):
    named = [{"input": x, "labels": y} for x, y in batches]
    metric = MulticlassAccuracy(5)
    assert verify(onnx_file, quantized, named, metric) == verify(onnx_file, quantized, batches, metric)


def test_without_class_targets_there_is_no_agreement(quantized, onnx_file):
    data = [(torch.randn(8, 12), torch.randn(8, 5))]
    found = verify(onnx_file, quantized, data, MetricCollection([MeanSquaredError()]))
    assert found.agreement is None


def test_an_empty_dataloader_is_refused(quantized, onnx_file):
    with pytest.raises(CompressionError, match="no data"):
        verify(onnx_file, quantized, [], MulticlassAccuracy(5))


def test_a_missing_file_is_refused_by_its_path(quantized, tmp_path, batches):
    with pytest.raises(CompressionError, match=r"gone\.onnx"):
        verify(tmp_path / "gone.onnx", quantized, batches, MulticlassAccuracy(5))


def test_a_file_that_is_not_onnx_is_refused(quantized, tmp_path, batches):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(CompressionError, match=r"bad\.onnx: ONNX Runtime cannot load"):
        verify(tmp_path / "bad.onnx", quantized, batches, MulticlassAccuracy(5))


def test_inputs_that_the_file_cannot_take_are_refused_with_their_shape(quantized, onnx_file):
    with pytest.raises(CompressionError, match=r"refuses input \[3, 9\] float32"):
        OnnxModel(onnx_file, quantized.forward)(torch.zeros(3, 9))


@pytest.mark.parametrize("batch", [torch.zeros(3), (torch.zeros(3),), {"x": torch.zeros(3)}])
def test_batches_without_targets_are_refused(batch):
    with pytest.raises(CompressionError, match=r"verify\.dataloader"):
        split_batch(batch)


@pytest.mark.parametrize(
    ("shape", "target", "axis"),
    [((8, 10), (8,), 1), ((8, 10, 4, 4), (8, 4, 4), 1), ((8, 7, 10), (8, 7), 2), ((8, 1), (8,), None)],
)
def test_class_scores_lie_along_the_dimension_that_targets_lack(shape, target, axis):
    assert class_axis(shape, [torch.zeros(target, dtype=torch.long)]) == axis


@pytest.mark.parametrize(
    ("ours", "theirs"), [("nan", "0"), ("inf", "0"), ("0", "-inf"), ("0", "nan"), ("-inf", "inf"), ("nan", "inf")]
)
def test_values_that_are_not_finite_on_one_side_are_refused(ours, theirs):
    scores = [torch.tensor([[float(value), float("-inf")]]) for value in (ours, theirs)]
    with pytest.raises(CompressionError, match="infinite or undefined"):
        Comparison().update(*scores)


def test_infinities_on_both_sides_are_no_difference():
    theirs = torch.tensor([[0.0, 3.0, -np.inf], [np.inf, 1.0, np.nan]])
    ours = theirs + torch.tensor([[0.5, -1.0, 0.0], [0.0, 0.0, 0.0]])
    comparison = Comparison()
    comparison.update(ours, theirs, [torch.tensor([1, 0])])
    finite = np.isfinite(theirs.numpy())
    expected = np.abs(np.subtract(ours.numpy(), theirs.numpy(), where=finite, out=np.zeros((2, 3))))
    assert (comparison.max_abs, comparison.mean_abs) == (expected.max(), pytest.approx(expected.mean()))
    assert comparison.agreement == 1.0


def test_an_output_of_another_shape_is_refused():
    with pytest.raises(CompressionError, match=r"\[1, 5\].*\[3, 5\]"):
        Comparison().update(torch.zeros(1, 5), torch.zeros(3, 5))


def test_outputs_come_back_in_the_models_structure():
    like = {"scores": torch.zeros(1), "hidden": (torch.zeros(2), None)}
    ones, twos = torch.ones(1), torch.full((2,), 2.0)
    back = restored([ones, twos], like)
    assert back == {"scores": ones, "hidden": (twos, None)}


def test_products_of_large_integers_do_not_saturate(tmp_path):
    # A pair of 255 × 127 needs more than 16 bits; kernels for CPUs without VNNI add such pairs in 16.
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    weight = rng.integers(90, 128, (64, 16)).astype(np.int8)
    x = rng.integers(180, 256, (8, 64)).astype(np.float32)
    step = np.float32(127 * 64)
    constants = {
        "one": np.float32(1), "zero": np.uint8(0), "w": weight, "w_scale": np.ones(16, np.float32),
        "w_zero": np.zeros(16, np.int8), "step": step,
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "step", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "step", "zero"], ["out"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 64), ("out", 16))]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "products", values[:1], values[1:], tensors)
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    # As files are marked that are written for processors with VNNI.
    helper.set_model_props(model, {EXACT: "int8 weights of 8 bits"})
    save(model, tmp_path / "products.onnx")
    found = open_session(tmp_path / "products.onnx").run(None, {"x": x})[0]
    expected = step * np.rint(x @ weight.astype(np.float32) / step)
    np.testing.assert_allclose(found, expected, atol=step)
