from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from lightning_compress.apps.advise.advise import Advice
from lightning_compress.apps.advise.layer_options import places
from lightning_compress.apps.advise.plan import Budget, Plan, Planner, Unreachable
from lightning_compress.apps.advise.plot import save
from lightning_compress.apps.advise.sensitivity import measure
from lightning_compress.apps.training_batches import TrainingBatches
from lightning_compress.delivery.network_call import EntryWatch
from lightning_compress.errors import CompressionError
from lightning_compress.export.packed.save_load import save_packed
from lightning_compress.pruning import Pruner
from lightning_compress.pruning.settings import Settings
from lightning_compress.quantization import prepare
from lightning_compress.quantization.settings import QuantizationSettings

PRUNING = Settings.check(final_sparsity=0.5, field="GradualMagnitudePruning", start=0, end=1.0)
QUANTIZATION = QuantizationSettings(weight_bits=8, activation_bits=8, field="QuantizationAwareTraining")


class Module(L.LightningModule):
    """A first layer on which everything rests, and a large one that hardly matters."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 4))
        with torch.no_grad():
            self.net[2].weight.mul_(0.05)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


Solve = Callable[[Budget], Plan]


@pytest.fixture
def planner() -> Planner:
    model = Module().eval()
    batches = [(torch.randn(32, 16), torch.randint(4, (32,))) for _ in range(2)]
    with EntryWatch(model, redirected=False, field="test") as entries, torch.no_grad():
        model.training_step(batches[0], 0)
    among = places(model, PRUNING, QUANTIZATION, (0.0, 0.5, 0.9), (8, 4, 2))
    return Planner(TrainingBatches(model, batches, entries.entry(), {}, "test"), among, QUANTIZATION)


@pytest.fixture
def solve(planner: Planner) -> Solve:
    base, layers = measure(planner.among, planner.calibration.loss, work=planner.work)
    return lambda budget: planner.plan(base, layers, budget, "loss")


def test_the_plan_packs_as_what_the_training_core_prunes_and_quantizes(
    planner: Planner, solve: Solve, tmp_path: Path
) -> None:
    plan = solve(Budget(size=4_000))
    model = Module().eval()
    model.load_state_dict(planner.calibration.model.state_dict())
    overrides = {name: {"final_sparsity": share} for name, (share, _) in plan.chosen.items()}
    Pruner(model, final_sparsity=0.5, start=0, end=0, total_steps=1, overrides=overrides).step(1)
    bits = {name: {"weight_bits": width} for name, (_, width) in plan.chosen.items()}
    inputs = planner.calibration.entry.first(1).args
    prepare(model.net, example_inputs=inputs, overrides={n.removeprefix("net."): own for n, own in bits.items()})
    model.net.training = True
    model.net(*planner.calibration.entry.args)
    packed = save_packed(model, tmp_path / "by_hand.packed").bytes
    assert plan.packed <= 4_000
    # The names of the layers in the file's settings have the prefix of the module, and the prefix its field.
    assert packed == pytest.approx(plan.packed, rel=0.02)
    assert plan.estimated == pytest.approx(plan.packed, rel=0.05)


def test_no_layer_could_expect_less_loss_in_a_packed_file_within_the_budget(planner: Planner, solve: Solve) -> None:
    plan = solve(Budget(size=4_000))
    for layer, chosen in plan.layers:
        costs = dict(zip(layer.options, layer.costs("loss"), strict=True))
        for other in layer.options:
            if costs[other] < costs[chosen]:
                assert planner.pack({**plan.chosen, layer.name: (other.sparsity, other.bits)}) > 4_000


def test_a_larger_budget_never_expects_more_loss(solve: Solve) -> None:
    plans = [solve(Budget(size=size)) for size in (3_400, 4_000, 6_000, 9_000, 50_000)]
    assert [plan.expected for plan in plans] == sorted((plan.expected for plan in plans), reverse=True)
    assert plans[-1].expected <= min(plan.expected for plan in plans)
    assert all(plan.gap == 0.0 for plan in plans)


def test_bit_operations_are_bounded_and_counted_by_hand(solve: Solve, planner: Planner) -> None:
    macs = {"net.0.weight": 16 * 32, "net.2.weight": 32 * 256, "net.4.weight": 256 * 4}
    assert planner.dense_operations == sum(macs.values()) * 32 * 32
    plan = solve(Budget(bit_operations=0.04 * planner.dense_operations))
    by_hand = sum(macs[name] * 8 * (bits or 32) for name, (_, bits) in plan.chosen.items())
    assert plan.bit_operations == by_hand <= 0.04 * planner.dense_operations


def test_the_measured_loss_is_that_of_all_layers_together_and_the_model_is_left_as_it_was(
    planner: Planner, solve: Solve
) -> None:
    before = {name: value.clone() for name, value in planner.calibration.model.state_dict().items()}
    base = planner.calibration.loss()
    plan = solve(Budget(size=4_000))
    assert planner.loss(plan.chosen) == base + plan.measured
    assert planner.calibration.loss() == base
    assert all(torch.equal(v, before[name]) for name, v in planner.calibration.model.state_dict().items())


def test_the_uniform_setting_keeps_the_same_budget(solve: Solve, planner: Planner) -> None:
    plan = solve(Budget(size=4_000))
    assert plan.uniform is not None
    alike = dict.fromkeys(plan.chosen, (plan.uniform.sparsity, plan.uniform.bits))
    assert planner.pack(alike) <= 4_000 * 1.02
    assert plan.uniform.loss == pytest.approx(planner.loss(alike) - planner.calibration.loss())


def test_a_budget_out_of_reach_names_the_smallest(solve: Solve, planner: Planner) -> None:
    with pytest.raises(Unreachable) as caught:
        solve(Budget(size=500))
    least = caught.value.least
    assert least.size == planner.pack(dict.fromkeys(planner.work, (0.9, 2)))
    assert least.bit_operations == sum(work.macs * 2 * 8 for work in planner.work.values())
    assert solve(Budget(size=least.size)).packed <= least.size


@pytest.mark.parametrize(("name", "start"), [("s.svg", b"<?xml"), ("s.png", b"\x89PNG")])
def test_the_picture_shows_every_layer(planner: Planner, solve: Solve, tmp_path: Path, name: str, start: bytes) -> None:
    plan = solve(Budget(size=4_000))
    layers = tuple(layer for layer, _ in plan.layers)
    advice = Advice(plan, None, Budget(size=4_000), layers, 1.0, planner.dense_bytes, planner.dense_operations, 28, 1.0)
    save(advice, "loss", tmp_path / name)
    first = (tmp_path / name).read_bytes()
    assert first.startswith(start)
    save(advice, "loss", tmp_path / name)
    assert (tmp_path / name).read_bytes() == first, "equal advice gives equal pictures"
    with pytest.raises(CompressionError, match=r"--picture: expected a name that ends in .svg or .png"):
        save(advice, "loss", tmp_path / "s.gif")
