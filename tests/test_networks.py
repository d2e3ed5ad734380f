"""Networks of every kind: trained with quantization, exported, and run in ONNX Runtime beside the trained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import functional_networks
import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_compress.export import to_onnx
from lightning_compress.export.onnx.integer_share import integer_share
from lightning_compress.export.onnx.session import open_session
from lightning_compress.quantization import find, prepare


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8)


def tokens(batch: int) -> torch.Tensor:
    return torch.randint(0, 24, (batch, 8))


def waveforms(batch: int) -> torch.Tensor:
    return torch.randn(batch, 1, 64)


# Network, its input, and the least share of multiply-accumulates in integer kernels.
CASES: list[Any] = [
    pytest.param(networks.PlainNet, images, 0.99, id="plain"),
    pytest.param(networks.ResidualNet, images, 0.99, id="residual"),
    pytest.param(networks.MobileNet, images, 0.99, id="mobilenet"),
    pytest.param(networks.SqueezeExciteNet, images, 0.99, id="squeeze-excite"),
    pytest.param(networks.ConcatNet, images, 0.99, id="u-net"),
    pytest.param(networks.KeywordSpotter, waveforms, 0.99, id="keyword-spotter"),
    pytest.param(networks.SharedLayer, images, 0.99, id="shared-layer"),
    pytest.param(networks.Branching, images, 0.99, id="control-flow"),
    pytest.param(networks.VisionTransformer, images, 1.0, id="vision-transformer"),
    pytest.param(networks.Gpt, tokens, 1.0, id="gpt"),
    pytest.param(networks.FunctionalGpt, tokens, 1.0, id="functional-gpt"),
    pytest.param(networks.FunctionalNet, images, 0.99, id="functional"),
    pytest.param(functional_networks.norm_activation, images, 1.0, id="norm-with-activation"),
    pytest.param(functional_networks.Causal, images, 1.0, id="functional-padding"),
    pytest.param(functional_networks.Decoder, images, 1.0, id="functional-sum-and-interpolation"),
    pytest.param(functional_networks.Halves, images, 1.0, id="halves"),
    pytest.param(functional_networks.ClassToken, images, 1.0, id="class-token"),
    pytest.param(functional_networks.Products, images, 1.0, id="weights-in-products"),
    pytest.param(functional_networks.Cells, images, 1.0, id="recurrent-cells"),
    # ONNX Runtime has no integer kernel for recurrent layers: their weights are stored in 8 bits and run in float.
    pytest.param(networks.Tagger, tokens, 0.05, id="lstm-tagger"),
]


def fitted(model: nn.Module, inputs: Callable[[int], torch.Tensor], steps: int = 10) -> nn.Module:
    """Trained to imitate random labels, so that its answers are spread and its margins real."""
    torch.manual_seed(0)
    x = inputs(32)
    prepare(model, example_inputs=x[:2])
    model.train()
    classes = model(x).shape
    axis = 1 if len(classes) != 3 else 2
    y = torch.randint(0, classes[axis], [size for i, size in enumerate(classes) if i != axis])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x).movedim(axis, 1), y).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("network", "inputs", "least"), CASES)
def test_the_exported_network_answers_as_the_trained_one(
    network: Callable[[], nn.Module], inputs: Callable[[int], torch.Tensor], least: float, tmp_path: Path
) -> None:
    model = fitted(network(), inputs)
    file = to_onnx(model, inputs(2), tmp_path / "model.onnx")
    x = inputs(256)
    with torch.no_grad():
        expected = model(x).numpy()
    actual = open_session(file.path).run(None, {file.input_names[0]: x.numpy()})[0]
    axis = 2 if expected.ndim == 3 else 1
    agreement = (actual.argmax(axis) == expected.argmax(axis)).mean()
    share = integer_share(file.path)
    print(f"{network.__name__}: agreement {agreement:.4f}, integer share {share.share:.4f}, float {dict(share.floats)}")
    assert agreement >= 0.99
    last = list(find(model).activations.values())[-1]
    # Whole steps, but for the rounding of float32.
    assert np.abs(actual - expected).max() <= 2.001 * float(last.scale)
    assert share.share >= least
