"""One of several processes: prunes under FSDP2, beside a whole copy of the model that one process would prune."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import CompressionError, GradualMagnitudePruning
from lightning_compress.foundation import shards
from lightning_compress.pruning import Pruner

RANK, WORLD = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
STEPS = 6
COMMON: dict[str, Any] = {"final_sparsity": 0.8, "start": 1, "end": STEPS, "every": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "global": {},
    "floor": {"layer_floor": 0.15},
    "uniform": {"distribution": "uniform"},
    "erk": {"distribution": "erk"},
    "2:4": {"pattern": "2:4", "final_sparsity": 0.5, "ignore": ["0"]},
    "block": {"pattern": "block:1x4", "ignore": ["0"]},
    "movement": {"criterion": "movement"},
    "taylor": {"criterion": "taylor"},
    "random": {"criterion": "random"},
    "rigl": {"regrow": "gradient", "initial_sparsity": 0.6},
    "set": {"regrow": "random", "initial_sparsity": 0.6},
}
"""What is pruned how."""


def network(hidden: int = 1) -> nn.Sequential:
    """Rows that no number of processes divides."""
    torch.manual_seed(0)
    middle = [layer for _ in range(hidden) for layer in (nn.ReLU(), nn.Linear(16, 16))]
    return nn.Sequential(nn.Conv2d(1, 13, 3), nn.Flatten(), nn.Linear(13 * 4, 16), *middle, nn.ReLU(), nn.Linear(16, 3))


def sharded(hidden: int = 1) -> nn.Sequential:
    model, mesh = network(hidden), init_device_mesh("cpu", (WORLD,))
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if shards.is_sharded(tensor) else tensor


def masks(pruner: Pruner) -> dict[str, Tensor]:
    return {name: shards.gather(pruner.parameters[name], mask) for name, mask in pruner.masks.items()}


def beside_one_process(settings: dict[str, Any]) -> dict[str, Any]:
    """Train shards; give what a pruner of the shards and one of the whole weights choose."""
    model, one = sharded(), network()
    pruner, reference = (Pruner(net, **{**COMMON, **settings}) for net in (model, one))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    equal = []
    for step in range(1, STEPS + 1):
        generator = torch.Generator().manual_seed(100 * step + RANK)
        optimizer.zero_grad()
        model(torch.randn(8, 1, 4, 4, generator=generator)).square().mean().backward()
        for own, copy in zip(model.parameters(), one.parameters(), strict=True):
            copy.data, copy.grad = whole(own.detach()).clone(), whole(own.grad).clone()
        for each in (pruner, reference):
            each.observe(step)
        optimizer.step()
        with torch.no_grad():
            for own, copy in zip(model.parameters(), one.parameters(), strict=True):
                if step == 3:  # many equal scores
                    shards.local(own).mul_(40).round_().div_(40)
                copy.data = whole(own.detach()).clone()
        for each in (pruner, reference):
            each.step(step)
        found, expected = masks(pruner), reference.masks
        equal += [torch.equal(found[name], expected[name]) for name in expected]
        equal += [not whole(pruner.parameters[name].detach())[~mask].any() for name, mask in found.items()]
    state, alone = pruner.state_dict(), reference.state_dict()
    again = Pruner(sharded(), **{**COMMON, **settings})
    again.load_state_dict(alone)
    one_again = Pruner(network(), **{**COMMON, **settings})
    one_again.load_state_dict(state)
    return {
        "equal": all(equal) and len(equal) > STEPS,
        "sparsity": (pruner.sparsity(), reference.sparsity()),
        "targets": pruner.layer_sparsity_target() == reference.layer_sparsity_target(),
        "dead": pruner.dead_channels() == reference.dead_channels(),
        "churn": pruner.churn == reference.churn,
        "state": same(state["sums"], alone["sums"])
        and all(torch.equal(state["masks"][n]["bits"], alone["masks"][n]["bits"]) for n in alone["masks"]),
        "resumed": same(masks(again), reference.masks) and same(one_again.masks, found),
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def collectives(hidden: int, settings: dict[str, Any]) -> tuple[int, int]:
    """How many a mask update takes, and a step without one."""
    pruner = Pruner(sharded(hidden), **{**COMMON, **settings}, initial_sparsity=0.5)
    calls = []
    for name in ("all_reduce", "all_gather"):
        original = getattr(distributed, name)

        def counted(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            calls.append(1)
            return original(*args, **kwargs)

        setattr(distributed, name, counted)
    pruner.step(1)
    update = len(calls)
    pruner.step(2)
    return update, len(calls) - update


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for layer in self.net:
            if list(layer.parameters()) and not shards.is_sharded(next(layer.parameters())):
                fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 0.01)


def fit(folder: Path, ckpt_path: Path | None = None, distributed_checkpoint: bool = False) -> dict[str, Any]:
    """A fit with Lightning's strategy; what is left of it, whole."""
    data = TensorDataset(torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(RANK)), torch.arange(32) % 3)
    pruning = GradualMagnitudePruning(0.8, start=1, end=6, every=1, criterion="movement", regrow="random")
    trainer = L.Trainer(
        accelerator="cpu",
        devices=WORLD,
        strategy=ModelParallelStrategy(WORLD, 1, save_distributed_checkpoint=distributed_checkpoint),
        max_epochs=2,
        callbacks=[pruning, ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    module = Module()
    trainer.fit(module, DataLoader(data, 8), ckpt_path=ckpt_path)
    assert pruning.pruner is not None
    return {
        "masks": masks(pruning.pruner),
        "weights": {name: whole(p.detach()) for name, p in module.named_parameters()},
        "sparsity": pruning.pruner.sparsity(),
    }


def refused(**settings: Any) -> str:
    try:
        Pruner(sharded(), **{**COMMON, **settings})
    except CompressionError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if WORLD == 2:
        found["fit"] = fit(out / "whole")
        found["resumed"] = fit(out / "resumed", out / "whole" / "step=4.ckpt")
        found["distributed"] = fit(out / "distributed", distributed_checkpoint=True)
        found["distributed_resumed"] = fit(out / "again", out / "distributed" / "step=4.ckpt", True)
    else:
        distributed.init_process_group("gloo")
    found |= {name: beside_one_process(SETTINGS[name]) for name in (SETTINGS if WORLD == 2 else ("global", "uniform"))}
    found["channel"] = refused(pattern="channel", example_inputs=torch.zeros(1, 1, 4, 4))
    found["rows"] = refused(pattern="block:16x1", targets=["2"])
    found["recorded"] = sorted(Pruner(sharded(), **COMMON, example_inputs=torch.zeros(1, 1, 4, 4)).masks)
    found["collectives"] = {
        name: [collectives(hidden, SETTINGS[name]) for hidden in (1, 4)] for name in ("global", "uniform", "erk")
    }
    torch.save(found, out / f"{RANK}.pt")
