"""Weights of which every process holds some rows: the rows, and counts over all processes.

FSDP2 (``torch.distributed.fsdp.fully_shard``) makes each parameter a ``DTensor`` that is split along its first
dimension. What concerns single entries works on the local rows as on any tensor; what is counted is summed here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError


def is_sharded(tensor: object) -> bool:
    """Whether a tensor is a ``DTensor``."""
    # Nobody has one in a process that has not loaded the module, and loading it takes time.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds, sharing memory; any other tensor itself.

    Example:
        >>> weight = torch.zeros(2)
        >>> local(weight) is weight
        True
    """
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


@dataclass(frozen=True)
class Shards:
    """The processes that hold the rows of all weights, in the order of the rows.

    Attributes:
        rank: This process's place among them.
        size: How many they are; 1 where weights are whole.
        group: Their process group.
        device: Where tensors have to be for the group; ``None`` for the CPU.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
    device: torch.device | None = None

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], field: str) -> Shards:
        """The processes among which weights are split.

        Args:
            weights: Full name → parameter.
            field: Name of the owner, for messages.

        Raises:
            CompressionError: Some are split and some are not, or along another dimension than the first.
        """
        split = {name: weight for name, weight in weights.items() if is_sharded(weight)}
        if not split:
            return WHOLE
        whole = sorted(weights.keys() - split.keys())
        if whole:
            raise CompressionError(
                f"{field}: {whole[0]} is not sharded while {next(iter(split))} is. Shard the root module with "
                "fully_shard(model), too, which takes all parameters that are left."
            )
        dims = {name: _split_dim(name, weight, field) for name, weight in split.items()}
        first = next(iter(split))
        mesh: Any = split[first].device_mesh  # type: ignore[attr-defined]
        group = mesh.get_group(dims[first])
        ranks = torch.distributed.get_process_group_ranks(group)
        for name, weight in split.items():
            other: Any = weight.device_mesh  # type: ignore[attr-defined]
            if torch.distributed.get_process_group_ranks(other.get_group(dims[name])) != ranks:
                raise CompressionError(f"{field}: {name} is sharded over other processes than {first}. Use one mesh.")
        device = local(split[first]).device
        return cls(mesh.get_local_rank(dims[first]), len(ranks), group, device)

    def total(self, counts: Tensor) -> Tensor:
        """Sum a tensor over the processes, on the CPU; one collective. One process gets it back where it lies."""
        if self.group is None:
            return counts
        summed = counts.to(self.device, copy=True)
        torch.distributed.all_reduce(summed, group=self.group)
        return summed.cpu()

    def gathered(self, counts: Tensor) -> Tensor:
        """Stack a tensor of the same shape from each process along a new first dimension; one collective."""
        if self.group is None:
            return counts.cpu()[None]
        mine = counts.to(self.device)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        torch.distributed.all_gather(every, mine, group=self.group)
        return torch.stack(every).cpu()

    def rows(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor that every process has whole."""
        chunk = math.ceil(len(whole) / self.size) if whole.ndim else 0
        return whole if self.group is None else whole[self.rank * chunk : (self.rank + 1) * chunk]

    def chunk(self, rows: int) -> int:
        """How many rows a full shard of so many has."""
        return math.ceil(rows / self.size)


WHOLE = Shards()
"""Weights that one process holds whole."""


def gather(parameter: Tensor, part: Tensor) -> Tensor:
    """Put together a tensor of a parameter's shape from what each process has for its rows, on the CPU.

    Args:
        parameter: The parameter; each process has the same rows of it and of ``part``.
        part: Tensor of the local shape; ``bool`` or floating point.
    """
    if not is_sharded(parameter):
        return part.cpu()
    from torch.distributed.tensor import DTensor

    like: Any = parameter
    values = part.to(torch.uint8) if part.dtype == torch.bool else part
    spread = DTensor.from_local(
        values.contiguous(), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return spread.full_tensor().cpu().to(part.dtype)


def reshard(modules: Iterable[torch.nn.Module]) -> None:
    """Free the gathered weights of modules that FSDP2 has wrapped, so that their parameters are the shards again."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for module in modules:
        if fsdp is not None and isinstance(module, fsdp.FSDPModule):
            module.reshard()


def _split_dim(name: str, weight: Any, field: str) -> int:
    """The dimension of the mesh along which a weight's rows are split."""
    placements = weight.placements
    split = [i for i, placement in enumerate(placements) if not placement.is_replicate()]
    if len(split) != 1 or not placements[split[0]].is_shard(0) or type(placements[split[0]]).__name__ != "Shard":
        raise CompressionError(
            f"{field}: {name} is placed as {list(placements)}; expected rows that are split along one dimension of the "
            "mesh, as fully_shard does. Tensor parallelism and shards along other dimensions are not supported."
        )
    return split[0]
