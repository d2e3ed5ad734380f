"""Distillation in plain PyTorch loops."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import FunctionalResidualNet, Mlp, ResidualNet
from torch import nn

from lightning_compress.distillation import Attention, Distiller, Features, Logits, Relations
from lightning_compress.errors import CompressionError


def networks() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    return ResidualNet(), ResidualNet().eval(), torch.randn(6, 3, 8, 8)


def seen(distiller: Distiller, step: Any) -> dict[str, torch.Tensor]:
    with distiller:
        step()
    return distiller.terms()


def test_gradients_are_those_of_a_loop_written_by_hand() -> None:
    student, teacher, x = networks()
    other, y = copy.deepcopy(student), torch.randint(0, 5, (6,))
    losses = [Logits(temperature=3.0, weight=2.0), Features(["block1", "block2"], weight=0.5)]
    distiller = Distiller(student, teacher, losses, task_weight=0.25)
    with distiller:
        task = F.cross_entropy(student(x), y)
    distiller.total(task, distiller.terms()).backward()

    def forward(net: nn.Module) -> list[torch.Tensor]:
        one = net.block1(net.stem(x))
        two = net.block2(one)
        return [one, two, net.fc(net.pool(two).flatten(1))]

    with torch.no_grad():
        one, two, logits = forward(teacher)
    mine, mine2, out = forward(other)
    soft = 9 * F.kl_div((out / 3).log_softmax(1), (logits / 3).softmax(1), reduction="batchmean")
    features = F.mse_loss(mine, one) + F.mse_loss(mine2, two)
    (0.25 * F.cross_entropy(out, y) + 2.0 * soft + 0.5 * features).backward()
    for found, expected in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_a_module_followed_by_in_place_operations_is_compared_as_it_was() -> None:
    student, teacher, x = networks()
    # bn2's output has the shortcut added and a ReLU applied in place.
    found = seen(Distiller(student, teacher, [Features(["block1.bn2"])]), lambda: student(x))["features"]

    def bn2(net: nn.Module) -> torch.Tensor:
        x1 = net.stem(x)
        return net.block1.bn2(net.block1.conv2(net.block1.relu(net.block1.bn1(net.block1.conv1(x1)))))

    with torch.no_grad():
        torch.testing.assert_close(found.detach(), F.mse_loss(bn2(student), bn2(teacher)))


def test_a_module_is_compared_as_the_next_module_sees_it_behind_all_other_hooks() -> None:
    student, teacher, x = networks()
    student.eval()
    distiller = Distiller(student, teacher, [Features(["block1"])])
    # As a quantizer that is placed after the first batch.
    student.block1.register_forward_hook(lambda module, args, output: output.round())
    found = seen(distiller, lambda: student(x))["features"]
    with torch.no_grad():
        expected = F.mse_loss(student.block1(student.stem(x)), teacher.block1(teacher.stem(x)))
    torch.testing.assert_close(found.detach(), expected)


def test_hooks_exist_only_while_a_step_is_watched() -> None:
    student, teacher, x = networks()
    distiller = Distiller(student, teacher, [Features(["block1"])])
    for _ in range(2):
        seen(distiller, lambda: student(x))
        for module in (*student.modules(), *teacher.modules()):
            assert not module._forward_hooks
            assert not module._forward_pre_hooks


def test_the_teacher_gets_no_gradients_and_runs_once_for_each_call() -> None:
    student, teacher, x = networks()
    runs: list[bool] = []
    teacher.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    terms = seen(Distiller(student, teacher), lambda: student(x))
    terms["logits"].backward()
    assert runs == [False]
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_several_calls_are_averaged_and_calls_without_gradients_are_none() -> None:
    student, teacher, x = networks()
    student.eval()
    z = torch.randn(4, 3, 8, 8)
    distiller = Distiller(student, teacher)

    def step() -> None:
        student(x)
        with torch.no_grad():
            student(torch.randn(9, 3, 8, 8))
        student(z)

    one, two = (float(seen(distiller, lambda v=v: student(v))["logits"].detach()) for v in (x, z))
    assert float(seen(distiller, step)["logits"].detach()) == pytest.approx((one + two) / 2)


@pytest.mark.parametrize("wrap", [lambda t: (t, 0), lambda t: {"loss": 0, "logits": t}])
def test_logits_are_found_in_tuples_and_output_objects(wrap: Any) -> None:
    class Wrapped(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> Any:
            return wrap(self.net(x))

    student, teacher, x = networks()
    student.eval()
    plain = seen(Distiller(student, teacher), lambda: student(x))["logits"]
    wrapped = Wrapped(student).eval()
    found = seen(Distiller(wrapped, Wrapped(teacher).eval()), lambda: wrapped(x))["logits"]
    assert torch.equal(found, plain)


def test_keyword_arguments_reach_the_teacher() -> None:
    student, teacher, x = networks()
    student.eval()
    distiller = Distiller(student, teacher)
    assert torch.equal(seen(distiller, lambda: student(x=x))["logits"], seen(distiller, lambda: student(x))["logits"])


def test_a_teacher_of_another_class_has_its_own_names() -> None:
    student, teacher, x = ResidualNet(), FunctionalResidualNet().eval(), torch.randn(6, 3, 8, 8)
    student.eval()
    found = seen(Distiller(student, teacher, [Logits(), Features({"block1": "block"})]), lambda: student(x))
    with torch.no_grad():
        ours = student.block1(student.stem(x))
        theirs = teacher.block(F.relu(teacher.bn1(teacher.conv1(x))))
        torch.testing.assert_close(found["features"].detach(), F.mse_loss(ours, theirs))


def test_a_teacher_that_is_the_network_alone_has_the_same_names_without_the_first_part() -> None:
    net, teacher, x = networks()
    student = nn.ModuleDict({"net": net.eval()})
    alone = seen(Distiller(net, teacher, [Features(["re:block."])]), lambda: net(x))
    inside = seen(Distiller(student, teacher, [Features(["re:net.block."])]), lambda: student["net"](x))
    assert torch.equal(alone["features"], inside["features"])


def test_patterns_name_modules_as_everywhere() -> None:
    student, teacher, x = networks()
    student.eval()
    whole = seen(Distiller(student, teacher, [Attention(["ResidualBlock"])]), lambda: student(x))
    regex = seen(Distiller(student, teacher, [Attention(["re:block[12]"])]), lambda: student(x))
    parts = [
        seen(Distiller(student, teacher, [Attention([name])]), lambda: student(x)) for name in ("block1", "block2")
    ]
    assert torch.equal(whole["attention"], regex["attention"])
    torch.testing.assert_close(whole["attention"], sum(part["attention"] for part in parts))


def test_the_network_that_a_step_calls_among_several_can_be_named() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = Mlp(), nn.Linear(5, 2)

    student, teacher, x = Both(), Both(), torch.randn(4, 12)
    step = lambda: student.head(student.net(x))  # noqa: E731
    with pytest.raises(CompressionError, match=r"side by side \(net, head\).*module='net'"):
        seen(Distiller(student, teacher), step)
    found = seen(Distiller(student, teacher, module="net"), step)["logits"]
    assert torch.equal(found, Logits().compare(student.net(x), teacher.net(x)))


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([Features(["block3"])], r"Distiller\.losses: Features\.targets: .*block3.*Closest: block"),
        ([Features({"blok1": "block1"})], r"Features\.modules: .*of the student, ResidualNet, got 'blok1'"),
        ([Features({"block1": "blok1"})], r"Features\.modules: .*of the teacher, ResidualNet, got 'blok1'"),
    ],
)
def test_names_of_no_module_are_refused_before_training(losses: list[Any], message: str) -> None:
    student, teacher, _ = networks()
    with pytest.raises(CompressionError, match=message):
        Distiller(student, teacher, losses)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda net, x: x.mean(), r"called no module with parameters.* not self\.net\.forward\(x\)"),
        (lambda net, x: net.fc(net.block2(net.block1(net.stem(x))).mean((2, 3))), "several modules side by side"),
        (lambda net, x: net(x).mul_(2), "changed in place, in the call or after it"),
        (lambda net, x: net.stem(x), "'block1', which gave a tensor 0 times"),
    ],
)
def test_a_step_that_cannot_be_distilled_is_refused(step: Any, message: str) -> None:
    student, teacher, x = networks()
    losses = [Logits(), Features(["block1"])]
    with pytest.raises(CompressionError, match=message):
        seen(Distiller(student, teacher, losses), lambda: step(student, x))


def test_a_network_that_writes_to_its_own_input_is_refused_since_the_teacher_would_get_another() -> None:
    class Normalizing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.sub_(5.0))

    student, teacher, x = Normalizing(4, 3), nn.Linear(4, 3), torch.randn(2, 4)
    with pytest.raises(CompressionError, match=r"^Distiller: the inputs or the output of 'the network' were changed"):
        seen(Distiller(student, teacher), lambda: student(x))
    with pytest.raises(CompressionError, match=r"^Distiller\.teacher: the inputs"):
        seen(Distiller(teacher, student), lambda: teacher(x))


def test_outputs_of_different_shapes_are_refused_with_both() -> None:
    student, teacher, x = ResidualNet(classes=5), ResidualNet(classes=7).eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(CompressionError, match=r"Logits: the student's output has shape \[2, 5\] .* \[2, 7\]"):
        seen(Distiller(student, teacher), lambda: student(x))
    assert float(seen(Distiller(student, teacher, [Relations()]), lambda: student(x))["relations"].detach()) >= 0


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_network_is_distilled_as_an_eager_one(how: str) -> None:
    student, teacher, x = networks()
    student.eval()
    expected = seen(Distiller(student, teacher, [Logits(), Features(["block1"])]), lambda: student(x))
    torch.compiler.reset()
    root, other = nn.ModuleDict({"net": student}), nn.ModuleDict({"net": teacher})
    if how == "wrapped":
        root["net"] = torch.compile(student, backend="eager")
        names = {"net._orig_mod.block1": "net.block1"}
    else:
        student.compile(backend="eager")
        names = {"net.block1": "net.block1"}
    distiller = Distiller(root, other, [Logits(), Features(names)])
    for _ in range(2):
        found = seen(distiller, lambda: root["net"](x))
        assert {name: float(v.detach()) for name, v in found.items()} == pytest.approx(
            {name: float(v.detach()) for name, v in expected.items()}, rel=1e-5
        )
