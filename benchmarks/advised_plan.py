"""Does the plan of ``advise`` beat one setting for all layers, at equal packed size and after equal fine-tuning?

    python benchmarks/advised_plan.py [--fashion-mnist DIRECTORY] [--seeds 3] [--only NAME] [--write]

For each seed a dense model is trained; ``advise`` plans for a budget by the measured loss and by the Hessian's trace;
and the same short compression-aware training follows from the dense weights with each plan, with uniform sparsity at
each of three bit widths, and with one global threshold at 4 bits. The sparsity of those is the least that keeps the
same budget. Accuracy is of the last epoch, on the test images. Without Fashion-MNIST a LeNet-300-100 on the digits
takes the place of LeNet-5.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import results
import torch
from torch import nn

from lightning_compress.apps.advise.advise import BITS, SPARSITIES
from lightning_compress.apps.advise.hessian import signs, traces
from lightning_compress.apps.advise.layer_options import places
from lightning_compress.apps.advise.plan import Budget, Planner
from lightning_compress.apps.advise.sensitivity import measure
from lightning_compress.apps.training_batches import TrainingBatches
from lightning_compress.callbacks import GradualMagnitudePruning, QuantizationAwareTraining
from lightning_compress.data import Digits, FashionMNIST
from lightning_compress.delivery.evaluation import duplicate
from lightning_compress.delivery.network_call import EntryWatch
from lightning_compress.export.packed.save_load import save_packed
from lightning_compress.models import MLP, Classifier, LeNet5, SmallCNN

WIDTHS = (2, 3, 4)


@dataclass(frozen=True)
class Case:
    """A model, its data, a budget in bytes, epochs of training and of fine-tuning, and batches in one of the latter."""

    name: str
    key: str
    net: Callable[[], nn.Module]
    data: Callable[[int], L.LightningDataModule]
    shape: tuple[int, ...]
    size: int
    epochs: int
    tuning: int
    every: int
    limit: int | None = None


class Row:
    """One kind of setting over the seeds."""

    def __init__(self) -> None:
        self.accuracy: list[float] = []
        self.bytes: list[int] = []
        self.planned: list[float] = []

    def add(self, found: tuple[float, int], planned: float) -> None:
        """Add a seed: its accuracy and bytes, and the bytes that were planned."""
        self.accuracy.append(100 * found[0])
        self.bytes.append(found[1])
        self.planned.append(planned)

    def summary(self) -> dict[str, float]:
        """Mean and deviation over the seeds, in percent, and bytes."""
        return {
            "accuracy": statistics.mean(self.accuracy),
            "accuracy_std": statistics.stdev(self.accuracy) if len(self.accuracy) > 1 else 0.0,
            "bytes": round(statistics.mean(self.bytes)),
            "off": max(abs(real / planned - 1) for real, planned in zip(self.bytes, self.planned, strict=True)),
        }

    def __str__(self) -> str:
        found = self.summary()
        return (
            f"{found['accuracy']:6.2f} ± {found['accuracy_std']:5.2f} %   {found['bytes']:9,.0f} bytes, "
            f"at most {found['off']:.1%} from what was planned"
        )


def fit(case: Case, seed: int, state: dict[str, torch.Tensor] | None, callbacks: list[L.Callback]) -> tuple[Any, float]:
    """Train, from the seed or from dense weights; gives the module and its test accuracy."""
    L.seed_everything(seed, verbose=False)
    dense = state is None
    module = Classifier(case.net(), num_classes=10, lr=3e-3 if dense else 1e-3, input_shape=case.shape)
    if state is not None:
        module.load_state_dict(state)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=case.epochs if dense else case.tuning,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        limit_train_batches=None if dense else case.limit,
    )
    data = case.data(seed)
    trainer.fit(module, datamodule=data)
    return module, trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"]


def tune(
    case: Case,
    seed: int,
    state: dict[str, torch.Tensor],
    sparsity: float,
    bits: int,
    distribution: str = "uniform",
    chosen: dict[str, tuple[float, int | None]] | None = None,
) -> tuple[float, int]:
    """Fine-tune with compression; gives test accuracy and bytes of the packed file."""
    own = chosen or {}
    pruning = GradualMagnitudePruning(
        final_sparsity=sparsity,
        start=0,
        end=0.5,
        every=case.every,
        distribution=distribution,
        overrides={name: {"final_sparsity": share} for name, (share, _) in own.items()},
    )
    quantization = QuantizationAwareTraining(
        bits, 8, start=0.4, overrides={name: {"weight_bits": width} for name, (_, width) in own.items()}
    )
    module, accuracy = fit(case, seed, state, [pruning, quantization])
    with tempfile.TemporaryDirectory() as folder:
        return accuracy, save_packed(duplicate(module), Path(folder) / "model.packed").bytes


def calibrated(module: L.LightningModule, data: L.LightningDataModule) -> TrainingBatches:
    """The model with eight training batches."""
    data.prepare_data()
    data.setup("fit")
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(8), strict=False)]
    model = duplicate(module)
    with EntryWatch(model, redirected=False, field="benchmark") as entries, torch.no_grad():
        model.training_step(batches[0], 0)
    return TrainingBatches(model, batches, entries.entry(), "advise")


def run(case: Case, seeds: int) -> dict[str, Row]:
    """Every kind of setting for every seed, printed as it goes."""
    rows: dict[str, Row] = {"dense": Row()}

    def add(name: str, found: tuple[float, int], planned: float) -> None:
        rows.setdefault(name, Row()).add(found, planned)
        print(f"  seed {seed}, {name}: {found[0]:.2%}, {found[1]:,} bytes", flush=True)

    for seed in range(seeds):
        module, accuracy = fit(case, seed, None, [])
        state = {name: value.clone() for name, value in module.state_dict().items()}
        calibration = calibrated(module, case.data(seed))
        quantization = QuantizationAwareTraining(4, 8).settings
        pruning = GradualMagnitudePruning(final_sparsity=0.5).settings
        among = places(calibration.model, pruning, quantization, SPARSITIES, sorted(BITS, reverse=True))
        planner = Planner(calibration, among, quantization)
        add("dense", (accuracy, planner.dense_bytes), planner.dense_bytes)
        parameters = {place.name: place.parameter for place in among}
        curvature = traces(calibration.losses, parameters, signs(parameters, 8))
        base, layers = measure(among, calibration.loss, work=planner.work, traces=curvature)
        for criterion in ("loss", "hessian"):
            plan = planner.plan(base, layers, Budget(size=case.size), criterion)
            print(
                f"  seed {seed}, {criterion}:", {n.removeprefix("net."): s for n, s in plan.chosen.items()}, flush=True
            )
            found = tune(case, seed, state, plan.sparsity, 4, chosen=plan.chosen)
            add(f"advised, by {criterion}", found, plan.packed)
        beside = plan.packed - sum(option.bytes for _, option in plan.layers)
        for width in WIDTHS:
            within = planner.least_uniform(width, Budget(size=case.size), beside)
            if within is None:
                continue
            found = tune(case, seed, state, within[0], width)
            add(f"uniform, {width} bits", found, within[1])
            if width == 4:
                found = tune(case, seed, state, within[0], width, "global")
                add("global threshold, 4 bits", found, within[1])
    print(f"{case.name}, budget {case.size:,} bytes, {seeds} seeds")
    for name, row in rows.items():
        print(f"  {name:26} {row}", flush=True)
    return rows


def write(case: Case, rows: dict[str, Row], seeds: int) -> None:
    """Keep what was found, as ``make tables`` wants it."""
    results.write(
        f"advised_{case.key}",
        [{"setting": name, **row.summary()} for name, row in rows.items()],
        columns={
            "setting": "setting",
            "accuracy": ("test accuracy, %", ".2f"),
            "bytes": "packed file, bytes",
            "off": ("most that the file differs from its plan", ".1%"),
        },
        seeds=list(range(seeds)),
        notes=[
            f"{case.name}, budget {case.size:,} bytes, {'one epoch' if case.tuning == 1 else f'{case.tuning} epochs'} "
            "of fine-tuning from the same dense weights."
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion-mnist", type=Path, metavar="DIRECTORY", help="its published files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", metavar="NAME", help="cases with this in their name")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/advised_CASE.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def digits(seed: int) -> L.LightningDataModule:
        return Digits(batch_size=64, seed=seed)

    def fashion(seed: int) -> L.LightningDataModule:
        return FashionMNIST(root=str(arguments.fashion_mnist), batch_size=128, seed=seed)

    cases = [Case("Digits, small CNN", "digits_cnn", lambda: SmallCNN(1, 10), digits, (1, 8, 8), 12_000, 12, 6, 5)]
    if arguments.fashion_mnist is not None:
        shape = (1, 28, 28)
        name, key = "Fashion-MNIST, LeNet-5", "fashion_mnist_lenet5"
        cases.append(Case(name, key, partial(LeNet5, 1, 28, 10), fashion, shape, 16_000, 2, 1, 10, 150))
    else:
        net = partial(MLP, 1, 8, 10, hidden=[300, 100])
        cases.append(Case("Digits, LeNet-300-100", "digits_lenet300", net, digits, (1, 8, 8), 6_000, 12, 6, 5))
    for case in cases:
        if arguments.only is None or arguments.only.lower() in case.name.lower():
            rows = run(case, arguments.seeds)
            if arguments.write:
                write(case, rows, arguments.seeds)


if __name__ == "__main__":
    main()
