from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from lightning_modules import quiet_trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import CompressedExport, CompressionError, GradualMagnitudePruning, QuantizationAwareTraining
from lightning_compress.models import DSCNN, GPT, LanguageModel, TextEncoder


def small_gpt() -> GPT:
    return GPT(vocabulary=12, length=6, dim=16, depth=1, heads=2, expansion=2)


def test_a_gpt_does_not_see_what_follows() -> None:
    net = small_gpt().eval()
    x = torch.randint(0, 12, (2, 6))
    changed = x.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 12
    difference = (net(x) - net(changed)).abs().amax(dim=(0, 2))
    assert (difference[:4] == 0).all()
    assert (difference[4:] > 0).all()


def test_an_encoder_sees_the_whole_text() -> None:
    net = TextEncoder(12, 6, 3, dim=16).eval()
    x = torch.randint(0, 12, (1, 6))
    changed = x.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 12
    assert not torch.equal(net(x), net(changed))


def test_a_language_model_logs_the_exponential_of_its_mean_loss_and_the_share_that_is_right() -> None:
    net = small_gpt()
    module = LanguageModel(net, num_classes=12, input_shape=(6,), tokens=True)
    x, y = torch.randint(0, 12, (10, 6)), torch.randint(0, 12, (10, 6))
    (found,) = quiet_trainer().test(module, DataLoader(TensorDataset(x, y), 4), verbose=False)
    with torch.no_grad():
        logits = net.eval()(x)
    loss = sum(float(F.cross_entropy(scores, following)) for scores, following in zip(logits, y, strict=True)) / 10
    assert found["test/perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert found["test/acc"] == pytest.approx(float((logits.argmax(-1) == y).float().mean()), abs=1e-6)


def test_a_gpt_is_pruned_quantized_exported_and_verified(tmp_path: Path) -> None:
    module = LanguageModel(small_gpt(), num_classes=12, input_shape=(6,), tokens=True)
    torch.manual_seed(0)
    stream = torch.randint(0, 12, (64, 7))
    loader = DataLoader(TensorDataset(stream[:, :-1], stream[:, 1:]), 8)
    export = CompressedExport(tmp_path / "out", formats=["onnx", "packed"], min_agreement=0.98)
    pruning = GradualMagnitudePruning(final_sparsity=0.5, start=1, end=4, every=1)
    quiet_trainer(max_epochs=1, callbacks=[pruning, QuantizationAwareTraining(start=2), export]).fit(
        module, loader, loader
    )
    assert (tmp_path / "out" / "model.onnx").exists()
    assert pruning.pruner is not None
    assert pruning.pruner.sparsity() == pytest.approx(0.5, abs=0.01)


def test_a_network_for_tokens_without_any_names_the_data_to_choose() -> None:
    with pytest.raises(CompressionError, match=r"model\.net: .*Choose a text for it, such as data=text_banking77"):
        TextEncoder(0, 1, 2)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"model\.net\.heads: expected a divisor of the token size 16, got 3"):
        GPT(12, 6, dim=16, heads=3)


def test_separable_convolutions_look_at_one_channel_at_a_time() -> None:
    net = DSCNN(1, 10, width=8, blocks=2)
    depthwise = [module for name, module in net.named_modules() if name.endswith("depthwise")]
    assert [module.groups for module in depthwise] == [8, 8]
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
