"""KnowledgeDistillation inside real Trainers."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning_modules import PlainModule, loader, quiet_trainer
from networks import Mlp, ResidualNet
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import CompressedExport, CompressionError, KnowledgeDistillation
from lightning_compress.callbacks.pruning import GradualMagnitudePruning
from lightning_compress.callbacks.quantization import QuantizationAwareTraining
from lightning_compress.distillation import Attention, Features, Logits, Relations
from lightning_compress.quantization import find

ALL = [Logits(), Features(["net.block1"]), Attention(["re:net\\.block.*"]), Relations()]


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(value, other[name]) for name, value in one.items())


class Simple(L.LightningModule):
    """A multilayer perceptron without batch norm, so that a loop by hand is short."""

    def __init__(self, outputs: str = "tensor") -> None:
        super().__init__()
        self.net, self.outputs = Mlp(), outputs

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        if self.outputs == "none" and batch_idx % 2:
            return None
        return {"loss": loss, "mine": 7} if self.outputs == "dict" else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def vectors(count: int = 32, batch_size: int = 8) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 12, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(0, 5, (count,), generator=generator)), batch_size=batch_size)


def by_hand(student: nn.Module, teacher: nn.Module, accumulate: int = 1, context: Any = None) -> None:
    """One epoch on ``vectors`` with 0.5 · cross-entropy + 2 · T² · KL, T = 3."""
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for index, (x, y) in enumerate(vectors()):
        with context or torch.enable_grad():
            out = student(x)
            with torch.no_grad():
                wanted = teacher(x)
            task = F.cross_entropy(out, y)
        soft = 9 * F.kl_div((out.float() / 3).log_softmax(1), (wanted.float() / 3).softmax(1), reduction="batchmean")
        ((0.5 * task + 2.0 * soft) / accumulate).backward()
        if (index + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


def distilled(teacher: Any, **settings: Any) -> KnowledgeDistillation:
    return KnowledgeDistillation(teacher, [Logits(temperature=3.0, weight=2.0)], task_weight=0.5, **settings)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("outputs", ["tensor", "dict"])
def test_a_run_ends_at_the_weights_of_a_loop_written_by_hand(accumulate: int, outputs: str) -> None:
    module, teacher = Simple(outputs), Mlp().eval()
    other = copy.deepcopy(module.net)
    trainer = quiet_trainer(callbacks=[distilled(teacher)], max_epochs=1, accumulate_grad_batches=accumulate)
    trainer.fit(module, vectors())
    by_hand(other, teacher, accumulate)
    for found, expected in zip(module.net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_bf16_autocast_holds_for_the_teacher_and_the_losses_stay_float32() -> None:
    module, teacher = Simple(), Mlp().eval()
    other = copy.deepcopy(module.net)
    quiet_trainer(callbacks=[distilled(teacher)], max_epochs=1, precision="bf16-mixed").fit(module, vectors())
    by_hand(other, teacher, context=torch.autocast("cpu", torch.bfloat16))
    for found, expected in zip(module.net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_gradient_scaler_scales_the_distillation_loss_with_the_rest() -> None:
    module, teacher = Simple(), Mlp().eval()
    other = copy.deepcopy(module.net)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    quiet_trainer(callbacks=[distilled(teacher)], max_epochs=1, plugins=[plugin]).fit(module, vectors())
    by_hand(other, teacher, context=torch.autocast("cpu", torch.float16))
    for found, expected in zip(module.net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_teacher_in_half_precision_follows_a_student_in_half_precision() -> None:
    callback = distilled(Mlp())
    module = Simple()
    quiet_trainer(callbacks=[callback], max_epochs=1, precision="bf16-true").fit(module, vectors())
    assert {parameter.dtype for parameter in callback.teacher.parameters()} == {torch.bfloat16}


def test_a_step_that_returns_none_is_skipped_as_without_distillation() -> None:
    module, teacher = Simple("none"), Mlp().eval()
    other = copy.deepcopy(module.net)
    quiet_trainer(callbacks=[distilled(teacher)], max_epochs=1).fit(module, vectors(count=16))
    # Of two batches the second is skipped.
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    x, y = next(iter(vectors(count=16)))
    out = other(x)
    (0.5 * F.cross_entropy(out, y) + 2 * Logits(temperature=3.0).compare(out, teacher(x).detach())).backward()
    optimizer.step()
    for found, expected in zip(module.net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("where", ["init", "setup", "configure_model"])
@pytest.mark.parametrize("calls_net", [False, True])
def test_a_module_is_distilled_wherever_it_builds_and_calls_its_layers(where: str, calls_net: bool) -> None:
    trainer = quiet_trainer(callbacks=[KnowledgeDistillation(losses=ALL)], max_epochs=1)
    trainer.fit(PlainModule(where, calls_net=calls_net), loader(), loader(2, seed=1))
    names = {f"distill/{name}" for name in ("logits", "features", "attention", "relations", "total")}
    assert names <= set(trainer.callback_metrics)
    assert all(float(trainer.callback_metrics[name]) > 0 for name in names)


def test_the_logged_total_is_the_weighted_sum(tmp_path: Path) -> None:
    losses = [Logits(weight=2.0), Features(["net.block1"], weight=3.0)]
    trainer = quiet_trainer(
        callbacks=[KnowledgeDistillation(losses=losses, task_weight=0.5)],
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        max_epochs=1,
    )
    trainer.fit(PlainModule(), loader())
    found = trainer.callback_metrics
    expected = 0.5 * found["train/loss"] + 2 * found["distill/logits"] + 3 * found["distill/features"]
    torch.testing.assert_close(found["distill/total"], expected)
    assert "distill/total" in next(tmp_path.rglob("metrics.csv")).read_text()


def test_distillation_starts_and_ends_when_told() -> None:
    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            logged.append("distill/total" in trainer.callback_metrics)
            trainer._logger_connector._callback_metrics.clear()

    logged: list[bool] = []
    callback = KnowledgeDistillation(start=4, end="0.75dur")
    quiet_trainer(callbacks=[callback, Watch()]).fit(PlainModule(), loader(batches=8))
    assert callback.phases == {"start": 4, "end": 12}
    assert [callback.active(step) for step in range(16)] == [4 <= step < 12 for step in range(16)]


def test_before_the_start_the_model_trains_as_without_distillation() -> None:
    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            weights.append(pl_module.net.fc.weight.detach().clone())

    runs = []
    for callbacks in ([], [KnowledgeDistillation(losses=ALL, start=7)]):
        torch.manual_seed(1)
        weights: list[torch.Tensor] = []
        quiet_trainer(callbacks=[*callbacks, Watch()]).fit(PlainModule(), loader())
        runs.append(weights)
    plain, taught = runs
    assert all(torch.equal(a, b) for a, b in zip(plain[:7], taught[:7], strict=True))
    assert not torch.equal(plain[7], taught[7])


def test_a_network_that_is_compiled_is_distilled_from_a_late_start_too() -> None:
    found = []
    for compiled in (False, True):
        torch.manual_seed(1)
        torch.compiler.reset()
        module = PlainModule(calls_net=True)
        if compiled:
            module.net.compile(backend="eager")
        callback = KnowledgeDistillation(losses=[Logits(), Features(["net.block1"])], start=2)
        trainer = quiet_trainer(callbacks=[callback], max_steps=5)
        trainer.fit(module, loader(), loader(1, seed=1))
        found.append({name: float(value) for name, value in trainer.callback_metrics.items() if "distill" in name})
    assert found[1] == pytest.approx(found[0], rel=1e-4)


class CallsItself(Simple):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])


def test_a_compiled_module_is_distilled_by_its_own_start_and_not_by_itself() -> None:
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        torch.manual_seed(1)
        module = CallsItself()
        trainer = quiet_trainer(callbacks=[KnowledgeDistillation()], max_epochs=1)
        trainer.fit(torch.compile(module, backend="eager") if compiled else module, vectors())
        found.append(float(trainer.callback_metrics["distill/logits"]))
    assert found[0] > 0
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_with_pruning_and_quantization_the_order_of_callbacks_changes_nothing(order: tuple[int, ...]) -> None:
    def run(order: tuple[int, ...]) -> tuple[dict[str, torch.Tensor], KnowledgeDistillation, Any]:
        torch.manual_seed(1)
        module = PlainModule()
        dense = state_of(module)
        callbacks = [
            KnowledgeDistillation(losses=ALL),
            GradualMagnitudePruning(0.8, start=0, end=6, every=1),
            QuantizationAwareTraining(weight_bits=4, activation_bits=4, start=3),
        ]
        quiet_trainer(callbacks=[callbacks[i] for i in order], max_epochs=1).fit(module, loader())
        teacher = callbacks[0].teacher
        # The teacher is the dense start: neither pruned nor quantized, and its batch norm stood still.
        assert same(dense, state_of(teacher))
        assert find(teacher) is None
        assert not any(child._forward_hooks or child._forward_pre_hooks for child in teacher.modules())
        assert not any(child.training for child in teacher.modules())
        return state_of(module), callbacks[0], find(module)

    state, _, quantization = run(order)
    assert same(state, run((0, 1, 2))[0])
    weights = [state[name] for name in quantization.layers]
    assert sum(int((w == 0).sum()) for w in weights) >= 0.79 * sum(w.numel() for w in weights)


@pytest.mark.parametrize("first", [False, True])
def test_activations_are_quantized_where_they_are_without_distillation(first: bool) -> None:
    found = []
    for taught in (False, True):
        quantizer = QuantizationAwareTraining()
        teacher = [KnowledgeDistillation(losses=ALL)] if taught else []
        callbacks = [*teacher, quantizer] if first else [quantizer, *teacher]
        quiet_trainer(callbacks=callbacks, max_steps=2).fit(PlainModule(), loader())
        found.append((quantizer.quantization.placement.as_dict(), quantizer.quantization.unreached))
    assert found[0] == found[1]


def test_the_exported_model_is_the_student(tmp_path: Path) -> None:
    module = PlainModule(calls_net=True)
    callbacks = [
        CompressedExport(tmp_path / "out", formats=["packed"], latency=False),
        KnowledgeDistillation(losses=ALL),
        GradualMagnitudePruning(0.5, start=0, end=4, every=1),
        QuantizationAwareTraining(),
    ]
    quiet_trainer(callbacks=callbacks, max_epochs=1).fit(module, loader(), loader(2, seed=1))
    assert callbacks[0].report["agreement"] == 1.0
    assert [row["name"] for row in callbacks[0].report["layers"]] == [name for name, _ in module.named_parameters()]


def test_the_checkpoint_has_the_keys_of_the_plain_module(tmp_path: Path) -> None:
    module = PlainModule()
    trainer = quiet_trainer(callbacks=[KnowledgeDistillation(ResidualNet())], max_steps=2)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert list(saved["state_dict"]) == list(PlainModule().state_dict())
    assert list(saved["callbacks"]["KnowledgeDistillation"]) == ["digest", "teacher", "settings", "epoch_steps"]
    # Another module's weights are its owner's to keep.
    assert saved["callbacks"]["KnowledgeDistillation"]["teacher"] is None
    assert len(trainer.optimizers[0].param_groups[0]["params"]) == len(list(PlainModule().parameters()))


def test_while_training_the_module_can_be_copied_and_pickled_and_afterwards_has_its_own_step() -> None:
    class Copies(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            for copied in (copy.deepcopy(pl_module), pickle.loads(pickle.dumps(pl_module))):
                copied._current_fx_name = None
                loss = copied.training_step(batch, batch_idx)
                torch.testing.assert_close(loss, F.cross_entropy(copied.net(batch[0]), batch[1]))
                seen.append(copied.training_step.__self__ is copied)

    seen: list[bool] = []
    module = Simple()
    quiet_trainer(callbacks=[KnowledgeDistillation(), Copies()], max_steps=2).fit(module, vectors())
    assert seen == [True] * 4
    assert "training_step" not in vars(module)


def test_after_an_exception_the_module_has_its_own_step() -> None:
    class Fails(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("stop")

    module = Simple()
    with pytest.raises(RuntimeError, match="stop"):
        quiet_trainer(callbacks=[KnowledgeDistillation(), Fails()]).fit(module, vectors())
    assert "training_step" not in vars(module)


def test_a_module_given_as_teacher_is_left_as_it_was() -> None:
    teacher = ResidualNet()
    before = state_of(teacher)
    quiet_trainer(callbacks=[KnowledgeDistillation(teacher)], max_steps=2).fit(PlainModule(), loader())
    assert teacher.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    assert same(before, state_of(teacher))


def run_to(directory: Path, teacher: Any, ckpt_path: str | None = None) -> tuple[PlainModule, KnowledgeDistillation]:
    torch.manual_seed(1)
    callback = KnowledgeDistillation(teacher, ALL, start=3)
    callbacks = [
        ModelCheckpoint(directory, filename="{step}", every_n_train_steps=8, save_top_k=-1),
        callback,
        QuantizationAwareTraining(weight_bits=4, activation_bits=4, start=3),
        GradualMagnitudePruning(0.8, start=0, end=12, every=1),
    ]
    module = PlainModule()
    trainer = quiet_trainer(callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True)
    return module, callback


@pytest.mark.parametrize("source", ["self", "file", "module"])
def test_a_resumed_run_ends_bit_identical(tmp_path: Path, source: str) -> None:
    teacher: Any = {"self": "self", "file": tmp_path / "dense.pt", "module": ResidualNet()}[source]
    torch.save(PlainModule().state_dict(), tmp_path / "dense.pt")
    whole, callback = run_to(tmp_path / "a", teacher)
    resumed, again = run_to(tmp_path / "b", teacher, str(tmp_path / "a" / "step=8.ckpt"))
    assert same(state_of(callback.teacher), state_of(again.teacher))
    assert same(state_of(whole), state_of(resumed))


def test_resuming_with_another_teacher_is_refused(tmp_path: Path) -> None:
    run_to(tmp_path, ResidualNet())
    with pytest.raises(CompressionError, match=r"teacher was '\w{12}', now '\w{12}'"):
        run_to(tmp_path, ResidualNet(), str(tmp_path / "step=8.ckpt"))


def test_a_checkpoint_without_a_teacher_is_said_to_become_one(tmp_path: Path) -> None:
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(PlainModule(), loader())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.warns(UserWarning, match="the checkpoint has no teacher"):
        quiet_trainer(callbacks=[KnowledgeDistillation()]).fit(
            PlainModule(), loader(), ckpt_path=tmp_path / "plain.ckpt"
        )


def test_a_second_fit_learns_from_the_same_dense_start() -> None:
    callback, module = KnowledgeDistillation(), Simple()
    dense = state_of(module)
    for _ in range(2):
        quiet_trainer(callbacks=[callback], max_epochs=1).fit(module, vectors())
        assert same(dense, state_of(callback.teacher))
    other = Simple()
    expected = state_of(other)
    quiet_trainer(callbacks=[callback], max_epochs=1).fit(other, vectors())
    assert same(expected, state_of(callback.teacher))


def test_a_lightning_checkpoint_is_a_teacher(tmp_path: Path) -> None:
    dense, trainer = PlainModule(), quiet_trainer(max_epochs=1)
    trainer.fit(dense, loader())
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    callback = KnowledgeDistillation(str(tmp_path / "dense.ckpt"))
    quiet_trainer(callbacks=[callback], max_steps=2).fit(PlainModule(), loader())
    assert same(state_of(dense), state_of(callback.teacher))


class ByHand(Simple):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Owner(Simple):
    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher


SHARED = Mlp()


@pytest.mark.parametrize(
    ("settings", "module", "message"),
    [
        ({"start": 8}, Simple, r"KnowledgeDistillation\.start: expected a point before the end of the run \(8 opt"),
        (
            {"start": 3, "end": 2},
            Simple,
            r"KnowledgeDistillation\.end: expected a point after start \(optimizer step 3",
        ),
        ({"teacher": "no.ckpt"}, Simple, r"KnowledgeDistillation\.teacher: .*got 'no\.ckpt'. There is no file"),
        ({"teacher": SHARED}, lambda: Owner(SHARED), r"parameter '1\.weight' is the student's 'teacher\.1\.weight'"),
        ({}, ByHand, r"ByHand optimizes manually.*distillation\.Distiller"),
        ({"losses": [Features(["nett.1"])]}, Simple, r"KnowledgeDistillation\.losses: Features\.targets: .*net\.1"),
        ({"module": "nett"}, Simple, r"KnowledgeDistillation\.module: expected the full name.*Closest: net"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(settings: dict, module: Any, message: str) -> None:
    student = module()
    before = state_of(student)
    with pytest.raises(CompressionError, match=message):
        quiet_trainer(callbacks=[KnowledgeDistillation(**settings)]).fit(student, vectors())
    assert same(before, state_of(student))


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(Simple().state_dict(), tmp_path / "other.pt")
    with pytest.raises(CompressionError, match=r"KnowledgeDistillation\.teacher: the dense state lacks 'net\.stem"):
        quiet_trainer(callbacks=[KnowledgeDistillation(tmp_path / "other.pt")]).fit(PlainModule(), loader())


def test_networks_that_do_not_fit_are_refused_in_the_first_step_however_late_the_start() -> None:
    module = PlainModule()
    before = state_of(module.net.fc)
    callback = KnowledgeDistillation(ResidualNet(classes=7), start=0.9)
    with pytest.raises(CompressionError, match=r"Logits: .*\[8, 5\] .*\[8, 7\]"):
        quiet_trainer(callbacks=[callback]).fit(module, loader())
    assert same(before, state_of(module.net.fc))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"teacher": 3},
            r"KnowledgeDistillation\.teacher: expected the path of a checkpoint, a module, 'self' or None",
        ),
        ({"task_weight": -1.0}, r"KnowledgeDistillation\.task_weight: expected a finite number, at least 0"),
        ({"losses": []}, r"KnowledgeDistillation\.losses: expected at least one loss"),
        ({"start": 1.5}, r"KnowledgeDistillation\.start: expected an int"),
        ({"end": "soon"}, r"KnowledgeDistillation\.end: expected an int"),
    ],
)
def test_bad_settings_are_refused_at_construction(settings: dict, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        KnowledgeDistillation(**settings)
