from __future__ import annotations

import pytest
import torch
from networks import Mlp, ResidualNet
from torch import nn

from lightning_compress import CompressionError
from lightning_compress.delivery.network_call import EntryWatch
from lightning_compress.export.signatures import input_names


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor | None = None) -> torch.Tensor:
        out = self.net(x)
        return out if scale is None else out * scale


def test_a_step_that_calls_the_root_exports_the_root():
    root = Wrapped()
    with EntryWatch(root) as watch:
        root(torch.zeros(2, 12))
    assert watch.entry().name == ""


def test_a_step_that_calls_a_submodule_exports_that_submodule():
    root = Wrapped()
    with EntryWatch(root) as watch:
        root.net(torch.zeros(2, 12))
    assert watch.entry().name == "net"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_inputs_are_kept_in_float32_as_copies_of_the_model_are(dtype):
    root = nn.Embedding(3, 4).to(dtype)
    root.forward = lambda tokens, scale: nn.Embedding.forward(root, tokens) * scale
    with EntryWatch(root) as watch:
        root(torch.tensor([2, 1]), torch.tensor(0.5, dtype=dtype))
    assert [tensor.dtype for tensor in watch.entry().args] == [torch.int64, torch.float32]


def test_keyword_arguments_are_kept():
    root = Wrapped()
    with EntryWatch(root) as watch:
        root(torch.zeros(2, 12), scale=torch.tensor(3.0))
    entry = watch.entry()
    assert torch.equal(entry.kwargs["scale"], torch.tensor(3.0))
    assert entry.example_inputs[-1] is entry.kwargs


def test_a_call_without_keyword_arguments_says_so_in_its_example_inputs():
    root = nn.Linear(2, 2)
    with EntryWatch(root) as watch:
        root(torch.zeros(1, 2))
    assert watch.entry().example_inputs[1:] == ({},)


def test_inputs_are_the_first_samples_of_the_first_call():
    root = Mlp()
    first, second = torch.randn(9, 12), torch.randn(9, 12)
    with EntryWatch(root) as watch:
        root(first)
        root(second)
    assert torch.equal(watch.entry().args[0], first[:4])


def test_tensors_without_the_batch_dimension_are_kept_whole():
    class Table(nn.Linear):
        def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + table.sum()

    root = Table(2, 2)
    with EntryWatch(root) as watch:
        root(torch.zeros(9, 2), torch.zeros(7))
    assert [tuple(t.shape) for t in watch.entry().args] == [(4, 2), (7,)]


def test_inputs_seen_under_inference_mode_can_be_trained_on():
    root = nn.Linear(2, 2)
    with EntryWatch(root) as watch, torch.inference_mode():
        root(torch.zeros(3, 2))
    root(watch.entry().args[0]).sum().backward()
    assert root.weight.grad is not None


def test_the_watch_leaves_no_hook_behind():
    root = ResidualNet()
    with EntryWatch(root):
        pass
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in root.modules())


def test_a_redirected_step_is_not_taken_for_the_model():
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 2)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return self.net(batch)

    root = Step()
    with EntryWatch(root, redirected=True) as watch:
        root(torch.zeros(3, 2))
    assert watch.entry().name == "net"


def test_two_modules_side_by_side_are_refused_by_name():
    root = Wrapped()
    with EntryWatch(root, field="CompressedExport") as watch:
        root.head(root.net(torch.zeros(2, 12)))
    # What is advised was tried: the larger of both.
    with pytest.raises(
        CompressionError, match=r"CompressedExport.*side by side \(net, head\).*module='net'.*9\d%.*'packed'"
    ):
        watch.entry()


def test_a_named_module_is_watched_alone():
    root = Wrapped()
    with EntryWatch(root, module="head") as watch:
        root.head(root.net(torch.zeros(2, 12)))
    assert watch.entry().name == "head"


def test_an_unknown_module_name_shows_the_closest():
    with pytest.raises(CompressionError, match=r"got 'nett'.*net"):
        EntryWatch(Wrapped(), module="nett")


def test_a_step_that_calls_nothing_is_told_what_to_do():
    with EntryWatch(Wrapped()) as watch:
        pass
    with pytest.raises(CompressionError, match="called no module that has parameters"):
        watch.entry()


def test_given_inputs_replace_those_that_were_seen():
    root = nn.Linear(2, 2)
    with EntryWatch(root) as watch:
        root(torch.zeros(8, 2))
    entry = watch.entry().with_inputs({"input": torch.ones(6, 2)}, root)
    assert entry.args == ()
    assert entry.kwargs["input"].shape == (6, 2)


def test_tensors_are_named_by_their_parameters():
    def forward(x, pair, *more, flag=True, **others): ...

    one = torch.zeros(1)
    named = input_names(forward, (one, (one, {"k": one}), one), {"extra": one, "flag": False})
    assert list(named) == ["x", "pair_0", "pair_1_k", "more_0", "extra"]


class Labelled(nn.Module):
    """Computes its loss where it is given labels, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.head(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("by_name", [True, False])
def test_labels_are_no_part_of_what_is_exported(by_name):
    root, x, labels = Labelled(), torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
    with EntryWatch(root) as watch:
        root(x, labels=labels) if by_name else root(x, labels)
    entry = watch.entry().without_labels(root)
    assert (len(entry.args), entry.kwargs, entry.left_out) == (1, {}, ("labels",))
    given = entry.passed(root, (x,), {"labels": labels}) if by_name else entry.passed(root, (x, labels), {})
    assert given == ((x,), {})


def test_labels_that_a_module_cannot_do_without_stay():
    class Forced(Labelled):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return self.head(x) + labels[:, None]

    root = Forced()
    with EntryWatch(root) as watch:
        root(torch.randn(6, 4), labels=torch.zeros(6))
    entry = watch.entry().without_labels(root)
    assert (list(entry.kwargs), entry.left_out) == (["labels"], ())


def test_inputs_that_the_user_gives_leave_out_what_the_steps_pass_beyond_them():
    root = Labelled()
    with EntryWatch(root) as watch:
        root(torch.randn(6, 4), labels=torch.zeros(6, dtype=torch.long))
    entry = watch.entry().with_inputs(torch.ones(2, 4), root)
    assert (entry.kwargs, entry.left_out) == ({}, ("labels",))


class OnGraph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return other @ y if other.is_floating_point() else y[other[0]] + y[other[1]]


@pytest.mark.parametrize("other", [torch.randint(0, 9, (2, 30)), torch.rand(9, 9)], ids=["edges", "adjacency"])
def test_a_graph_stays_whole(other):
    root, nodes = OnGraph(), torch.randn(9, 4)
    with EntryWatch(root) as watch:
        root(nodes, other)
    entry = watch.entry()
    assert torch.equal(entry.args[0], nodes)
    assert entry.first(1, root).args[0].shape == nodes.shape
    with EntryWatch(plain := Mlp()) as watch:
        plain(torch.zeros(9, 12))
    assert watch.entry().first(1, plain).args[0].shape == (1, 12)


def test_a_part_that_cannot_be_traced_is_not_advised():
    class ByValue(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if float(x.sum()) > 0 else -super().forward(x)

    root = nn.ModuleDict({"large": ByValue(4, 40), "small": nn.Linear(40, 1)})
    with EntryWatch(root) as watch:
        root["small"](root["large"](torch.ones(2, 4)))
    with pytest.raises(CompressionError, match="module='small'"):
        watch.entry()


def test_a_step_that_calls_itself_and_parts_besides_is_exported_as_itself():
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    root = Whole()
    with EntryWatch(root) as watch:
        root.net(torch.zeros(3, 2))
        root(torch.zeros(3, 2))
    assert watch.entry().name == ""


def test_a_module_that_a_step_calls_beside_its_own_parts_is_exported_whole():
    root = nn.ModuleDict({"model": Wrapped(), "other": nn.Linear(12, 2)})
    with EntryWatch(root) as watch:
        root["model"].head(torch.zeros(2, 5))
        root["model"](torch.zeros(3, 12))
    assert (watch.entry().name, watch.entry().args[0].shape) == ("model", (3, 12))
    with EntryWatch(root) as watch:
        root["model"](torch.zeros(3, 12))
        root["other"](torch.zeros(3, 12))
    with pytest.raises(CompressionError, match=r"several modules side by side \(model, other\)"):
        watch.entry()
