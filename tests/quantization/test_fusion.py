"""What the hooks save by doing the work of a ReLU or by writing into a result that nobody reads any more."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kernel_modes import MODES
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_compress import quantization
from lightning_compress.quantization.fake_quantize import cpu as native


class PlainReLU(nn.ReLU):
    """Not fused: only the exact class is."""


class PlainReLU6(nn.ReLU6):
    """Not fused."""


class Net(nn.Module):
    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.act1, self.act2 = activation(), activation()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)) + x)
        return self.fc(x.mean((2, 3)))


def trained(model: nn.Module, steps: int = 4, bits: int = 8) -> list[torch.Tensor]:
    x, y = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4
    quantization.prepare(model, weight_bits=bits, activation_bits=bits, example_inputs=x)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    found = quantization.find(model)
    assert found is not None
    return [*model.state_dict().values(), *(q.range for q in found.activations.values())]


def same_weights(*activations: type[nn.Module]) -> list[nn.Module]:
    models = [Net(activation) for activation in activations]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    return models


@pytest.fixture(params=MODES, ids=lambda mode: "compiled" if mode else "eager", autouse=True)
def mode(request: pytest.FixtureRequest) -> Iterator[bool]:
    native.use_compiled(request.param)
    yield request.param
    native.use_compiled("auto")


@pytest.mark.parametrize(("fused", "plain"), [(nn.ReLU, PlainReLU), (nn.ReLU6, PlainReLU6)])
def test_training_is_the_same_to_the_bit_with_the_activation_fused(
    fused: type[nn.Module], plain: type[nn.Module]
) -> None:
    results = [trained(model, bits=4) for model in same_weights(fused, plain)]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_training_is_the_same_to_the_bit_when_a_hook_watches_every_result() -> None:
    models = same_weights(nn.ReLU, nn.ReLU)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watch(module: nn.Module, args: object, output: torch.Tensor) -> None:
        if module.training:  # not while the model is recorded, where a clone counts as one more user
            seen.append((output, output.detach().clone()))

    for module in models[1].modules():
        module.register_forward_hook(watch)
    results = [trained(model) for model in models]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    # Not written over, although the quantizer behind would have been free to.
    assert len(seen) > 30
    assert all(torch.equal(kept, copied) for kept, copied in seen)


def kept_for_backward(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes of activations that the graph of one forward holds on to."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    pending, done = [model(x).grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in done:
            continue
        done.add(node)
        pending += [function for function, _ in node.next_functions]
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for tensor in (*saved, *getattr(node, "saved_tensors", ())):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in own:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(sizes.values())


def test_quantized_activations_take_hardly_more_memory_than_float_ones(mode: bool) -> None:
    model = Net(nn.ReLU)
    x = torch.randn(64, 3, 16, 16)
    model.train()
    plain = kept_for_backward(model, x)
    quantization.prepare(model, example_inputs=x)
    model(x)
    # Bits of a mask in compiled kernels, bytes in plain PyTorch.
    assert kept_for_backward(model, x) <= (1.06 if mode else 1.3) * plain


def test_a_range_counts_from_the_batch_after_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    quantization.prepare(model, example_inputs=torch.zeros(1, 4))
    model.train()
    found = quantization.find(model)
    assert found is not None
    (quantizer,) = found.activations.values()
    model(torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
    assert quantizer.scale.item() == pytest.approx(1 / 255)
    model(torch.tensor([[0.0, 0.0, 0.0, 2.0]]))
    assert quantizer.range.tolist() == pytest.approx([0.0, 1.1])
    assert quantizer.scale.item() == pytest.approx(1.1 / 255)


class Clamps(TorchDispatchMode):
    """Counts the ReLUs that run as an operation of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.relu.default
        return func(*args, **(kwargs or {}))


def relus_of(model: nn.Module, x: torch.Tensor) -> int:
    with Clamps() as clamps:
        model(x)
    return clamps.count


def test_a_relu_before_a_quantizer_does_not_run_while_gradients_are_wanted() -> None:
    model, x = Net(nn.ReLU).train(), torch.randn(4, 3, 8, 8)
    assert relus_of(model, x) == 2
    quantization.prepare(model, example_inputs=x)
    for network in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert relus_of(network, x) == 0
        with torch.no_grad():
            assert relus_of(network, x) == 2
    found = quantization.find(model)
    assert found is not None
    found.enabled = False
    assert relus_of(model, x) == 2
    found.enabled = True
    quantization.strip(model)
    assert relus_of(model, x) == 2
    assert "forward" not in model.act1.__dict__


def test_a_relu_stays_as_it_is_by_keyword_by_its_forward_alone_and_with_one_of_the_users_own() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(6, 4)
    quantization.prepare(model, example_inputs=x)
    model.train()(x)
    hidden = model[0](x)
    assert torch.equal(model[1](input=hidden), model[1](hidden))
    # Not behind a call, so no quantizer clips it.
    assert torch.equal(model[1].forward(hidden), hidden.relu())
    own = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    own[1].forward = lambda x: x.relu() + 1  # type: ignore[method-assign]
    quantization.prepare(own, example_inputs=x)
    own.train()(x)
    assert float(own[1](own[0](x)).min()) >= 1 - 1e-2
    quantization.strip(own)
    assert own[1](torch.tensor(-1.0)) == 1


def test_a_relu_whose_forward_hands_its_input_on_is_not_clipped() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(6, 4)
    quantization.prepare(model, example_inputs=x)
    model[1].forward = lambda x: x  # type: ignore[method-assign]
    model.train()(x)
    assert float(model[1](model[0](x)).detach().min()) < 0
