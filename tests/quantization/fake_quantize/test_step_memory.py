"""Memory that one step gives to the next."""

from __future__ import annotations

import copy
import pickle

import torch

from lightning_compress.quantization.fake_quantize import cpu as native
from lightning_compress.quantization.fake_quantize.lsq import learned_activation
from lightning_compress.quantization.fake_quantize.step_memory import StepMemory


def test_what_is_in_use_is_not_handed_out_again() -> None:
    memory = StepMemory()
    first, second = memory.take(1000).fill_(1), memory.take(1000).fill_(2)
    assert bool((first == 1).all())
    view, address = first[10:20], first.data_ptr()
    del first
    assert memory.take(1000).data_ptr() != address, "a view keeps its memory"
    assert view.tolist() == [1] * 10
    del view, second
    assert memory.take(500).numel() == 500


def test_a_larger_batch_gets_memory_of_its_own_and_the_smaller_one_goes() -> None:
    memory = StepMemory()
    memory.take(10)
    large = memory.take(2000)
    address = large.data_ptr()
    del large
    assert {memory.take(10).data_ptr(), memory.take(2000).data_ptr()} == {address}


def test_copies_and_pickles_start_empty() -> None:
    memory = StepMemory()
    address = memory.take(100).data_ptr()
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        taken = other.take(100)
        assert taken.data_ptr() != address


def test_gradients_are_the_same_with_it_over_steps_and_two_calls_before_backward() -> None:
    native.use_compiled(True)
    torch.manual_seed(0)
    memory = StepMemory()
    try:
        for size in (70_000, 1_000, 70_000):
            found = []
            inputs = [torch.randn(size), torch.randn(size)]
            for kept in (None, memory):
                scale = torch.tensor(0.1, requires_grad=True)
                leaves = [x.clone().requires_grad_() for x in inputs]
                calls = [learned_activation(x, scale, None, -7, 7, 0.5, memory=kept) for x in leaves]
                (calls[0].square() + calls[1]).sum().backward()
                found.append([scale.grad, *(x.grad for x in leaves)])
            for plain, reused in zip(*found, strict=True):
                assert torch.equal(plain, reused)
    finally:
        native.use_compiled("auto")
