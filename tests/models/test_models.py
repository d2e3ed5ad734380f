from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.models import MLP, LeNet5, ResNet, SmallCNN, TransformerEncoder


@pytest.mark.parametrize(
    ("net", "parameters", "source"),
    [
        (MLP(1, 28, 10, hidden=(300, 100)), 266_610, "LeCun 1998: 784-300-100-10"),
        (MLP(1, 28, 10, hidden=(512, 512, 512)), 932_362, "784-512-512-512-10"),
        (LeNet5(1, 28, 10), 431_080, "Deep Compression, table 1: 431k"),
        (ResNet(3, 10, depth=20), 272_474, "He 2016, table 6: 0.27M, with projections"),
        (ResNet(3, 10, depth=8), 78_042, "MLPerf Tiny: about 78k"),
    ],
    ids=["lenet300", "mlp", "lenet5", "resnet20", "resnet8"],
)
def test_networks_have_the_published_number_of_parameters(net: nn.Module, parameters: int, source: str) -> None:
    assert sum(p.numel() for p in net.parameters()) == parameters, source


@pytest.mark.parametrize(
    ("net", "size", "channels"),
    [
        (MLP(2, 8, 7), 8, 2),
        (LeNet5(1, 16, 7), 16, 1),
        (ResNet(1, 7, depth=8), 9, 1),
        (SmallCNN(1, 7), 8, 1),
        (TransformerEncoder(3, 8, 7, patch=2), 8, 3),
    ],
    ids=["mlp", "lenet5", "resnet", "cnn", "transformer"],
)
def test_every_parameter_gets_a_gradient(net: nn.Module, size: int, channels: int) -> None:
    logits = net(torch.randn(4, channels, size, size))
    assert logits.shape == (4, 7)
    logits.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_attention_is_that_of_pytorchs_own_layer() -> None:
    ours = TransformerEncoder(1, 8, 10, patch=2, dim=16, heads=4, depth=1).blocks[0].attention
    reference = nn.MultiheadAttention(16, 4, batch_first=True)
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        reference.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        reference.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(ours(x), reference(x, x, x)[0])


def test_the_transformer_knows_where_a_patch_was() -> None:
    net = TransformerEncoder(1, 8, 10, patch=4).eval()
    x = torch.randn(1, 1, 8, 8)
    assert not torch.allclose(net(x), net(x.roll(4, dims=-1)), atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LeNet5(1, 8, 10), r"LeNet5\.image_size: expected at least 16 pixels, got 8\. .*model=cnn"),
        (lambda: ResNet(3, 10, depth=18), r"ResNet\.depth: expected 6 n \+ 2, .* got 18"),
        (lambda: MLP(1, 8, 10, hidden=(0,)), r"MLP\.hidden"),
        (lambda: TransformerEncoder(1, 8, 10, patch=3), r"\.patch: expected a divisor of the image size 8, got 3"),
        (lambda: TransformerEncoder(1, 8, 10, heads=5), r"\.heads: expected a divisor of the token size 64, got 5"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(build: object, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        build()  # type: ignore[operator]
