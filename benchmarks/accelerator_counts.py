"""What a training step launches on an accelerator, and how often it waits for one, counted without one.

    python benchmarks/accelerator_counts.py

Fake tensors on a registered backend stand for the accelerator: autograd, hooks and checks of devices are real, kernels
are not run. Every call that reaches the device's dispatcher counts as an operation, autograd's questions for a tensor's
device among them; a value that Python reads (``bool(t)``, ``int(t)``, ``t.cpu()``) counts as a wait, with the line that
asked, and is answered with a constant.
"""

from __future__ import annotations

import argparse
import collections
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import results
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from lightning_compress import pruning, quantization


class _Simulated(_DummyBackendModule):
    """What PyTorch asks of a device: autocast looks at it even for tensors of the CPU, once it is there."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("simulated", backend_module=_Simulated())
DEVICE = torch.device("simulated:0")

CEILINGS = {
    "moving ranges": 1.30,
    "percentile": 1.60,
    "squared error": 1.60,
    "learned": 1.50,
    "4-bit weights": 1.15,
    "4-bit groups": 1.15,
    "masks": 1.02,
}
"""Operations ÷ those of the float network that a step may have; a test holds them."""
FIRST_CEILING = 3.0
"""The same for the first step, in which ranges are searched."""


class Simulated(FakeTensorMode):
    """Counts while it is active."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.operations: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            self.waits[_caller()] += 1
            # One: something changed, or is true, and nothing is wrong.
            return {True: 1.0, False: 1}[args[0].dtype.is_floating_point] if args[0].dtype != torch.bool else True
        self.operations[str(func)] += 1
        to = torch.device((kwargs or {}).get("device") or "cpu")
        if func is torch.ops.aten._to_copy.default and to == DEVICE and not isinstance(args[0], FakeTensor):
            return self.tensor(args[0])
        moved = func is torch.ops.aten._to_copy.default and args[0].device.type == DEVICE.type
        if moved and torch.device((kwargs or {}).get("device") or DEVICE).type == "cpu":
            self.waits[_caller()] += 1
        return super().__torch_dispatch__(func, types, args, kwargs)

    def tensor(self, like: torch.Tensor) -> FakeTensor:
        """A tensor without values on the accelerator."""
        return FakeTensor(self, like.detach().to("meta"), DEVICE)

    def adopt(self, network: nn.Module) -> nn.Module:
        """Put a network's parameters and buffers on the accelerator."""
        for module in network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(self.tensor(parameter))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = self.tensor(buffer)
        return network


def _caller() -> str:
    lines = [frame for frame in traceback.extract_stack() if "lightning_compress/" in frame.filename]
    return f"{lines[-1].filename.rsplit('lightning_compress/', 1)[-1]}:{lines[-1].lineno}" if lines else "elsewhere"


class Block(nn.Module):
    """Two convolutions with batch norm, and a residual sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Network(nn.Module):
    """A small residual network: six weights, nine activations to quantize."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


@dataclass
class Counts:
    """What each step took: operations by name, and waits by the line that waited."""

    operations: list[collections.Counter[str]] = field(default_factory=list)
    waits: list[collections.Counter[str]] = field(default_factory=list)

    def ratio(self, step: int, base: Counts) -> float:
        """Operations ÷ those of an ordinary step of another network."""
        return self.operations[step].total() / base.operations[-1].total()


def train(
    prepare: Callable[[nn.Module, torch.Tensor], Any] | None = None,
    after: Callable[[Any, int], Any] | None = None,
    steps: int = 4,
) -> Counts:
    """Count some training steps.

    Args:
        prepare: Attaches something to the network, given an input.
        after: Called behind each optimizer step with what ``prepare`` gave and the number of the step, from 1.
        steps: How many.
    """
    mode, found = Simulated(), Counts()
    network = mode.adopt(Network())
    with mode:
        x = mode.tensor(torch.randn(4, 3, 16, 16))
        made = prepare(network, x) if prepare else None
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
        for step in range(1, steps + 1):
            mode.operations, mode.waits = collections.Counter(), collections.Counter()
            network(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if after:
                after(made, step)
            found.operations.append(mode.operations)
            found.waits.append(mode.waits)
    return found


def quantized(**settings: Any) -> Counts:
    """Counts of a network that is quantized like this."""
    return train(lambda network, x: quantization.prepare(network, example_inputs=x, **settings))


def pruned(**settings: Any) -> Counts:
    """Counts of a network that is pruned like this: masks change in steps 1 and 2."""
    settings = {"final_sparsity": 0.5, "start": 0, "end": 2, "every": 2, **settings}
    return train(lambda network, x: pruning.Pruner(network, **settings), lambda pruner, step: pruner.step(step))


SETTINGS: dict[str, Callable[[], Counts]] = {
    "moving ranges": lambda: quantized(range="minmax"),
    "percentile": lambda: quantized(range="percentile"),
    "squared error": lambda: quantized(range="mse"),
    "learned": lambda: quantized(range="learned"),
    "4-bit weights": lambda: quantized(weight_bits=4, activation_bits=None),
    "4-bit groups": lambda: quantized(weight_bits=4, activation_bits=None, weight_granularity="group:32"),
    "masks": pruned,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/accelerator_counts.json")
    arguments = parser.parse_args()
    base, rows = train(), []
    print(f"float: {base.operations[-1].total()} operations a step")
    for name, count in SETTINGS.items():
        found = count()
        own = sum(n for key, n in found.operations[-1].items() if key.startswith("lightning_compress."))
        row = {
            "setting": name,
            "operations": found.operations[-1].total(),
            "ratio": found.ratio(-1, base),
            "first": found.ratio(0, base),
            "own": own,
            "waits": found.waits[-1].total(),
            "first_waits": found.waits[0].total(),
        }
        rows.append(row)
        print(
            f"{name:14} {row['operations']} operations, {row['ratio']:.2f} of float ({row['first']:.2f} in the first "
            f"step), {own} of our own; waits: {row['waits']} ({row['first_waits']} in the first step)"
        )
        for line, times in sum(found.waits, collections.Counter()).most_common(3):
            print(f"{'':14} {times} waits at {line}")
    if arguments.write:
        results.write(
            "accelerator_counts",
            rows,
            columns={
                "setting": "setting",
                "ratio": ("operations of a step ÷ float", ".2f"),
                "first": ("of the first step", ".2f"),
                "own": "operators of this package",
                "waits": "waits in a step",
                "first_waits": "in the first step",
            },
            notes=[
                f"A residual network of six layers, counted on a simulated accelerator: {base.operations[-1].total()} "
                "operations in float. An operator of this package is at most two launches. For masks the first step "
                "updates them."
            ],
        )


if __name__ == "__main__":
    main()
