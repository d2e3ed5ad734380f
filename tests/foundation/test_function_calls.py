"""Hooks on function calls in a module's own forward."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_compress.foundation.boundary import Boundary, watch
from lightning_compress.foundation.function_calls import CallHook, function_name, on_call


def ten(x: torch.Tensor) -> torch.Tensor:
    return x * 10


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x)


class Outer(nn.Module):
    """Calls relu itself twice, around a part that calls it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Inner()

    def forward(self, x: torch.Tensor, fails: bool = False) -> torch.Tensor:
        x = self.part(torch.relu(x)) + 1
        if fails:
            raise RuntimeError("on purpose")
        return x.relu()


def test_calls_are_counted_by_name_and_those_of_parts_are_the_parts_own() -> None:
    net, one = Outer(), torch.ones(1)
    second = on_call(net, CallHook("relu", 1, after=ten))
    assert net(one) == 20
    second.remove()
    first = on_call(net, CallHook("relu", 0, after=ten))
    assert net(one) == 11
    first.remove()
    on_call(net.part, CallHook("relu", 0, before=lambda args, kwargs: ((args[0] * 3,), kwargs)))
    assert net(one) == 4


def test_a_function_can_be_stood_in_for() -> None:
    net = Outer()
    on_call(net, CallHook("relu", 1, instead=lambda x: -x))
    assert net(torch.ones(1)) == -2


def test_nothing_is_left_behind_once_the_last_hook_is_gone() -> None:
    net = Outer()
    before = [(dict(m._forward_hooks), dict(m._forward_pre_hooks), set(vars(m))) for m in net.modules()]
    handles = [on_call(net, CallHook("relu", call, after=ten)) for call in (0, 1)]
    for handle in handles:
        handle.remove()
    after = [(dict(m._forward_hooks), dict(m._forward_pre_hooks), set(vars(m))) for m in net.modules()]
    assert before == after


def test_counting_begins_anew_after_a_forward_that_raised() -> None:
    net = Outer()
    on_call(net, CallHook("relu", 1, after=ten))
    with pytest.raises(RuntimeError, match="on purpose"):
        net(torch.ones(1), fails=True)
    assert torch.overrides._len_torch_function_stack() == 0
    assert net(torch.ones(1)) == 20


def test_a_copy_acts_by_itself() -> None:
    net = Outer()
    handle = on_call(net, CallHook("relu", 1, after=ten))
    other, third = copy.deepcopy(net), pickle.loads(pickle.dumps(net))
    handle.remove()
    assert [float(n(torch.ones(1))) for n in (net, other, third)] == [2, 20, 20]


def test_a_compiler_traces_it_in_one_graph() -> None:
    net = Outer()
    on_call(net, CallHook("relu", 1, after=ten))
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert compiled(torch.ones(1)) == 20
    assert torch.export.export(net, (torch.ones(1),), strict=False).module()(torch.ones(1)) == 20


def test_a_boundary_of_a_function_is_watched_like_one_of_a_module() -> None:
    net, seen = Outer(), []
    for boundary in (Boundary("", "input", (0,), "relu", 1), Boundary("", "output", (), "relu", 1)):
        watch(net, boundary, [boundary.path], lambda x: seen.append(float(x)) or x - 5)
    assert net(torch.ones(1)) == -5
    assert seen == [2, 0]


@pytest.mark.parametrize(
    ("function", "name"),
    [(torch.Tensor.add_, "add"), (torch.Tensor.__iadd__, "add"), (torch.Tensor.__rmul__, "mul"), (F.relu, "relu")],
)
def test_spellings_of_one_function_have_one_name(function: object, name: str) -> None:
    assert function_name(function) == name
