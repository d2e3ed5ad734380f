from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import ConcatNet, EncoderNet, ResidualNet
from torch import nn

from lightning_compress.metrics import count_macs
from lightning_compress.quantization import find, prepare


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(6, 5), (1, 6), 30),
        (nn.Linear(6, 5, bias=False), (1, 7, 6), 7 * 30),
        (nn.Conv1d(3, 4, 5), (1, 3, 9), 5 * 4 * 3 * 5),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (1, 4, 8, 8), 16 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 8, 8), 36 * 6 * 2 * 9),
        (nn.Conv2d(4, 4, 3, groups=4, dilation=2), (1, 4, 8, 8), 16 * 4 * 9),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 27 * 3 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (1, 4, 5, 5), 25 * 4 * 6 * 9),
    ],
)
def test_single_layers_have_the_textbook_number(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    macs = count_macs(layer, torch.zeros(shape))
    assert dict(macs.layers) == {"weight": expected}
    assert macs.products == 0


def test_attention_projections_are_counted_by_their_weights() -> None:
    length, width = 7, 16
    macs = count_macs(
        nn.MultiheadAttention(width, 2, batch_first=True),
        (*[torch.zeros(1, length, width)] * 3,),
    )
    assert dict(macs.layers) == {
        "in_proj_weight": length * 3 * width * width,
        "out_proj.weight": length * width * width,
    }
    assert macs.products == 2 * length * length * width


def test_encoder_layers_are_counted_although_eval_mode_has_a_fused_path() -> None:
    macs = count_macs(EncoderNet(), torch.zeros(1, 4, 6))
    assert macs.layers["encoder.layers.1.linear1.weight"] == 4 * 16 * 32
    assert macs.layers["encoder.layers.0.self_attn.in_proj_weight"] == 4 * 3 * 16 * 16
    assert macs.products == 2 * (2 * 4 * 4 * 16)


def test_scaled_dot_product_attention_counts_both_products() -> None:
    class Attention(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, k, v)

    q, k, v = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8)
    assert count_macs(Attention(), (q, k, v)).products == 2 * (3 * 5 * 8 + 3 * 5 * 8)


def test_recurrent_layers_are_counted() -> None:
    steps = 3
    macs = count_macs(nn.LSTM(4, 6), torch.zeros(steps, 1, 4))
    assert dict(macs.layers) == {"weight_ih_l0": steps * 4 * 24, "weight_hh_l0": steps * 6 * 24}


def test_a_weight_used_twice_counts_twice() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert dict(count_macs(nn.Sequential(first, second), torch.zeros(1, 4)).layers) == {"0.weight": 32}


def test_weights_used_by_functions_are_counted() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.zeros(2, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("bi,oi->bo", x, self.kernel)

    assert dict(count_macs(Functional(), torch.zeros(1, 3)).layers) == {"kernel": 6}


def test_transposed_convolutions_and_concats_run() -> None:
    macs = count_macs(ConcatNet(), torch.zeros(1, 3, 8, 8))
    assert macs.layers["up.weight"] == 16 * 16 * 8 * 4
    assert macs.total == sum(macs.layers.values())


def test_counting_leaves_the_model_as_it_was() -> None:
    model = prepare(ResidualNet().train(), example_inputs=torch.randn(1, 3, 8, 8))
    model.block1.bn1.eval()
    quantization = find(model)
    assert quantization is not None
    state = {key: value.clone() for key, value in model.state_dict().items()}
    count_macs(model, torch.randn(2, 3, 8, 8))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert (model.training, model.block1.bn1.training, model.block1.bn2.training) == (True, False, True)
    assert quantization.enabled
    assert torch.backends.mkldnn.enabled
    assert torch.backends.mha.get_fastpath_enabled()


def test_settings_come_back_when_the_forward_fails() -> None:
    with pytest.raises(RuntimeError):
        count_macs(nn.Linear(4, 2), torch.zeros(1, 3))
    assert torch.backends.mkldnn.enabled
    assert torch.backends.mha.get_fastpath_enabled()
