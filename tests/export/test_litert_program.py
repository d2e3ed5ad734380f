"""The form in which a LiteRT file is converted computes what the model computes; needs no package."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import ConcatNet, KeywordSpotter, MobileNet
from torch import nn

from lightning_compress import CompressedExport, CompressionError
from lightning_compress.export.litert.program import for_litert
from lightning_compress.export.pt2e import register, to_pt2e
from lightning_compress.export.trace import trace
from lightning_compress.quantization import calibrate


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        pytest.param(MobileNet, (3, 16, 16), id="mobile"),
        pytest.param(ConcatNet, (3, 8, 8), id="concat"),
        pytest.param(KeywordSpotter, (1, 256), id="conv1d"),
    ],
)
def test_values_stay_and_sequences_become_images_of_one_row(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, *shape)
    model = calibrate(build().eval(), [x], backend="litert")
    program = trace(model, x, dynamic_batch=False).program
    to_pt2e(program, signed=True)
    for_litert(program)
    targets = [str(node.target) for node in program.graph_module.graph.nodes]
    assert not any("1d" in target for target in targets)
    stored = {node.target for node in program.graph_module.graph.nodes if node.op == "call_function"}
    assert register().quantize_per_channel.default in stored, "weights are rounded in the graph"
    with torch.no_grad():
        actual, expected = program.module()(x), model(x)
    # Convolutions of images may sum in another order than those of sequences, so that single values round otherwise.
    assert (actual - expected).abs().mean() <= 0.01 * expected.abs().mean()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"layout": "nhwc"}, r"CompressedExport\.litert\.layout: expected one of channels_first, channels_last"),
        ({"value": "int8"}, r"CompressedExport\.litert: expected settings among layout, values, got 'value'. Closest"),
    ],
)
def test_misspelt_settings_are_refused(given: dict[str, str], says: str) -> None:
    with pytest.raises(CompressionError, match=says):
        CompressedExport("out", litert=given)
