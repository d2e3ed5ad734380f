"""What a callback costs in a training step while it is in the list and has nothing to do.

Each callback is set up in a real fit, and its phase lies beyond the steps that are timed (the monitor has nothing new
to measure). A difference of one percent drowns in the noise of whole steps, so what is added to a step is timed where
it happens: Lightning's calls of callbacks (less what they take without ours), our hooks on modules, the slower path
that a module with hooks takes, and what is wrapped around ``training_step``. It is compared with the whole step of a
fit without callbacks. All are medians over the steps; torch has one thread.

    python benchmarks/callback_cost.py --write

Exit code 1 if the share of a single callback is above the limit (1 % by default).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import timeit
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import results
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer import call
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import (
    CompressedCheckpoint,
    CompressionMonitor,
    GradualMagnitudePruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
)
from lightning_compress.models.resnet import ResNet

WARM = 10
FAR = 100_000


class Meter:
    """Adds up the seconds of the functions that it times; what they call in turn counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False
        self._undo: list[tuple[Any, str, Any]] = []
        self.hooked: set[nn.Module] = set()

    def timed(self, function: Callable[..., Any], sign: int = 1) -> Callable[..., Any]:
        """The function, added, or with ``sign=-1`` taken off."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            if self._inside and sign > 0:
                return function(*args, **kwargs)
            outer, self._inside = self._inside, sign > 0
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += sign * (time.perf_counter() - began)
                self._inside = outer

        return measured

    def _replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        self._undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, function)

    def __enter__(self) -> Meter:
        """Time Lightning's calls of callbacks, what surrounds a training step, and hooks from their registration on."""
        self._replace(call, "_call_callback_hooks", self.timed(call._call_callback_hooks))
        self._replace(Strategy, "training_step", self.timed(Strategy.training_step))
        self._replace(Module, "training_step", self.timed(Module.training_step, sign=-1))
        for owner, name in (
            (nn.Module, "register_forward_pre_hook"),
            (nn.Module, "register_forward_hook"),
            (torch.optim.Optimizer, "register_step_post_hook"),
        ):
            register = getattr(owner, name)

            def timed(self_: Any, hook: Any, *args: Any, register: Any = register, **kwargs: Any) -> Any:
                if isinstance(self_, nn.Module):
                    self.hooked.add(self_)
                return register(self_, self.timed(hook), *args, **kwargs)

            self._replace(owner, name, timed)
        return self

    def __exit__(self, *_: object) -> None:
        """Put everything back."""
        for owner, name, function in reversed(self._undo):
            setattr(owner, name, function)


class Module(L.LightningModule):
    """A classifier."""

    def __init__(self, net: nn.Module, example: torch.Tensor) -> None:
        super().__init__()
        self.net, self.example_input_array = net, example

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the network."""
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self.net(batch[0]).flatten(1), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


class Clock(Callback):
    """Notes each step and what was added to it, before every other callback."""

    def __init__(self, meter: Meter, steps: int) -> None:
        self.steps: list[float] = []
        self.added: list[float] = []
        self._meter, self._count = meter, steps
        self._began: float | None = None

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """End a step and begin the next."""
        now = time.perf_counter()
        if self._began is not None:
            self.steps.append(now - self._began)
            self.added.append(self._meter.seconds)
        # The limit is far: callbacks were promised many more steps.
        trainer.should_stop = len(self.steps) >= WARM + self._count
        self._began, self._meter.seconds = now, 0.0


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-20": (lambda: ResNet(3, 10), (16, 3, 32, 32)),
    "encoder": (encoder, (8, 64, 256)),
}
WAYS: dict[str, Callable[[], list[Callback]]] = {
    "pruning": lambda: [GradualMagnitudePruning(0.8, start=FAR, end=FAR + 10, every=1)],
    "quantization": lambda: [QuantizationAwareTraining(start=FAR)],
    "distillation": lambda: [KnowledgeDistillation("self", start=FAR)],
    "monitor": lambda: [CompressionMonitor(print_phases=False)],
    "checkpoint": lambda: [CompressedCheckpoint(every_n_train_steps=FAR)],
    "all five": lambda: [callback for make in list(WAYS.values())[:-1] for callback in make()],
}


def slow_path() -> float:
    """Seconds that a module's call takes longer with two hooks that do nothing."""
    plain, hooked, x = nn.Identity(), nn.Identity(), torch.zeros(1)
    hooked.register_forward_pre_hook(lambda *_: None)
    hooked.register_forward_hook(lambda *_: None)
    return (timeit.timeit(lambda: hooked(x), number=20_000) - timeit.timeit(lambda: plain(x), number=20_000)) / 20_000


def fit(network: str, callbacks: list[Callback], steps: int) -> tuple[float, float]:
    """Train, and give the medians of a step and of what was added to it, in seconds."""
    build, shape = NETWORKS[network]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    copies = 200
    images, classes = x.repeat(copies, *[1] * (x.dim() - 1)), torch.zeros(len(x) * copies).long()
    with Meter() as meter:
        clock = Clock(meter, steps)
        L.Trainer(
            max_steps=2 * FAR,
            accelerator="cpu",
            callbacks=[clock, *callbacks],
            logger=False,
            enable_checkpointing=any(isinstance(c, CompressedCheckpoint) for c in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Module(build(), x[:1]), DataLoader(TensorDataset(images, classes), len(x)))
    added = statistics.median(clock.added[WARM:]) + len(meter.hooked) * slow_path()
    return statistics.median(clock.steps[WARM:]), added


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--limit", type=float, default=1.0, help="the highest share of a step that is fine, in percent")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/callback_cost.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    worst, rows = 0.0, []
    for network in NETWORKS:
        step, alone = fit(network, [], arguments.steps)
        for way, make in WAYS.items():
            added = fit(network, make(), arguments.steps)[1] - alone
            share = 100 * added / step
            print(f"{network:<10} {way:<14} {1e6 * added:5.0f} µs of {1e3 * step:.1f} ms: {share:.2f} %", flush=True)
            worst = max(worst, share if way != "all five" else 0.0)
            rows.append({"network": network, "callback": way, "ms": step * 1e3, "us": added * 1e6, "share": share})
    print(f"the highest of a single callback is {worst:.2f} %, the limit {arguments.limit} %")
    if arguments.write:
        results.write(
            "callback_cost",
            rows,
            columns={
                "network": "network",
                "callback": "callback with nothing to do",
                "ms": ("step without it, ms", ".1f"),
                "us": ("added, µs", ".0f"),
                "share": ("of the step, %", ".2f"),
            },
            seeds=[0],
            threads=1,
            notes=[f"Medians over {arguments.steps} steps."],
        )
    return 0 if worst <= arguments.limit else 1


if __name__ == "__main__":
    sys.exit(main())
