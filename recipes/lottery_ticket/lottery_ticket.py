"""Iterative magnitude pruning with rewinding on the digits (Frankle and Carbin 2019; Frankle and others 2020).

    python recipes/lottery_ticket/lottery_ticket.py

Each round trains the network, prunes a fifth of the weights that are left, and sets the others back to what they were
early in the first training. The last row trains the last mask from other initial weights: where that is worse, the
ticket is the weights and not only where they are.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_compress.data import Digits
from lightning_compress.models import MLP
from lightning_compress.pruning import Pruner

LAST_LAYER = "layers.5"
"""Left dense, as in the paper, where it is pruned at half the rate; it is small."""


@dataclass
class Round:
    """One training.

    Attributes:
        sparsity: Share of zeros in the pruned layers.
        accuracy: On the test set, after the last step.
        masks: Name → mask under which it was trained.
    """

    sparsity: float
    accuracy: float
    masks: dict[str, Tensor]


def load(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test images of 8 x 8 pixels with their labels."""
    data = Digits(batch_size=4096, eval_batch_size=4096, seed=seed)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))


def make(seed: int) -> nn.Module:
    """LeNet-300-100 for the digits."""
    torch.manual_seed(seed)
    return MLP(1, 8, 10, hidden=(300, 100))


def batches(data: tuple[Tensor, Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled batches of 60."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(data[0]), generator=generator).split(60):
            yield data[0][index], data[1][index]


def train(model: nn.Module, pruner: Pruner, data: tuple[Tensor, Tensor], first: int, steps: int, seed: int) -> None:
    """Train from step ``first`` to ``steps``; what the pruner has pruned stays zero."""
    optimizer = torch.optim.Adam(model.parameters(), 1.2e-3)
    source = batches(data, seed)
    for step in range(steps):
        x, y = next(source)
        if step < first:
            continue
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        pruner.apply()


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of right answers."""
    return float((model(data[0]).argmax(1) == data[1]).float().mean())


def masked(model: nn.Module, sparsity: float) -> Pruner:
    """Prune to a sparsity at once, by magnitude over all layers but the last; zeros that are there stay."""
    settings = {"start": 0, "end": 0, "keep_zeros": True, "ignore": [LAST_LAYER]}
    pruner = Pruner(model, final_sparsity=sparsity, **settings) if sparsity else Pruner(model, freeze=True)
    pruner.step(0)
    return pruner


def lottery(rounds: int = 10, rate: float = 0.2, rewind: int = 20, steps: int = 500, seed: int = 0) -> list[Round]:
    """Find a ticket.

    Args:
        rounds: How often to prune.
        rate: Share of the weights left that each round prunes.
        rewind: Step of the first training to which the weights are set back; 0 is the initialization.
        steps: Steps of each training.
        seed: Of weights, batches and split.

    Returns:
        The dense training, one for each round, and at last the last mask with other weights.
    """
    training, test = load(seed)
    model = make(seed)
    pruner = masked(model, 0.0)
    train(model, pruner, training, 0, rewind, seed)
    early = copy.deepcopy(model.state_dict())
    found = []
    for number in range(rounds + 1):
        train(model, pruner, training, rewind, steps, seed)
        kept = {name: mask.clone() for name, mask in pruner.masks.items()}
        found.append(Round(pruner.sparsity() if number else 0.0, accuracy(model, test), kept))
        if number < rounds:
            pruner = masked(model, 1 - (1 - rate) ** (number + 1))
            model.load_state_dict(early)
            pruner.apply()
    # The mask lives in the pruner, so other weights under it are a matter of loading them.
    model.load_state_dict(make(seed + 1000).state_dict())
    pruner.apply()
    train(model, pruner, training, 0, steps, seed)
    found.append(Round(pruner.sparsity(), accuracy(model, test), found[-1].masks))
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 10), ("rewind", 20), ("steps", 500), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=0.2)
    asked = parser.parse_args()
    found = lottery(asked.rounds, asked.rate, asked.rewind, asked.steps, asked.seed)
    print("| weights left, % | test accuracy, % |\n|---:|---:|")
    for one in found[:-1]:
        print(f"| {100 * (1 - one.sparsity):.1f} | {100 * one.accuracy:.2f} |")
    print(f"| {100 * (1 - found[-1].sparsity):.1f}, other initial weights | {100 * found[-1].accuracy:.2f} |")


if __name__ == "__main__":
    main()
