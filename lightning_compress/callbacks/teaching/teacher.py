"""The teacher: a frozen float copy, apart from the student."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.compile import to_uncompiled
from torch import Tensor, nn

from lightning_compress.delivery.dense_baseline import read_dense, refuse_other_model
from lightning_compress.delivery.evaluation import duplicate
from lightning_compress.errors import CompressionError
from lightning_compress.lightning_packages import is_instance
from lightning_compress.quantization import strip


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy in eval mode, without gradients, quantizers or Trainer; a LightningModule's is on the CPU.

    Example:
        >>> frozen_copy(nn.Linear(2, 2)).weight.requires_grad
        False
    """
    copied = duplicate(module) if is_instance(module, L.LightningModule) else copy.deepcopy(module)
    if is_instance(copied, L.LightningModule) and copied._compiler_ctx is not None:
        # Lightning binds compiled methods to a compiled module; those of a copy would run the original.
        to_uncompiled(copied)
        for name in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
            copied.__dict__.pop(name, None)
    return strip(copied).eval().requires_grad_(False)


def from_state(student: L.LightningModule, state: Mapping[str, Tensor], field: str) -> nn.Module:
    """A teacher of the student's architecture, with other weights.

    Raises:
        CompressionError: The state is not one of this architecture.
    """
    refuse_other_model(state, student, field)
    teacher = frozen_copy(student)
    teacher.load_state_dict(dict(state), strict=False)
    return teacher


def from_file(student: L.LightningModule, path: Path, field: str) -> nn.Module:
    """A teacher of the student's architecture, with the weights of a checkpoint.

    Raises:
        CompressionError: The file is missing, or holds no such weights.
    """
    return from_state(student, read_dense(path, field), field)


def weights(teacher: nn.Module) -> dict[str, Tensor]:
    """All tensors of a teacher's ``state_dict``, on the CPU."""
    return {name: value.cpu() for name, value in teacher.state_dict().items() if isinstance(value, Tensor)}


def digest(teacher: nn.Module) -> str:
    """SHA-256 over names, types, shapes and contents of a teacher's tensors.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> digest(net) == digest(copy.deepcopy(net))
        True
    """
    found = hashlib.sha256()
    for name, value in weights(teacher).items():
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def share(teacher: nn.Module) -> None:
    """Give all processes the weights of the first one, in place."""
    for value in teacher.state_dict().values():
        if isinstance(value, Tensor):
            whole = value.contiguous()
            torch.distributed.broadcast(whole, 0)
            value.copy_(whole)


def refuse_shared(student: nn.Module, teacher: nn.Module, field: str) -> None:
    """Refuse a teacher that is a part of the student, or contains it.

    Raises:
        CompressionError: They have a parameter in common.
    """
    own = {id(parameter): name for name, parameter in student.named_parameters()}
    for name, parameter in teacher.named_parameters():
        if id(parameter) in own:
            raise CompressionError(
                f"{field}: expected a module apart from the student, but its parameter {name!r} is the student's "
                f"{own[id(parameter)]!r}, and would be in the student's checkpoint. Do not assign the teacher to an "
                f"attribute of the student; give 'self' to learn from the student's own start."
            )
