"""The dense float model that a compressed one is compared with: kept at the start, or given."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError, closest, first_line
from lightning_compress.foundation.atomic_write import replacing
from lightning_compress.quantization import strip

_UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError)


def save_dense(state: Mapping[str, Tensor], path: Path) -> None:
    """Write the tensors of a ``state_dict`` as safetensors, atomically.

    Raises:
        CompressionError: It cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Tied tensors are written once for each name: safetensors refuses shared memory.
    copies = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    with replacing(path) as temporary:
        try:
            save_file(copies, temporary)
        except SafetensorError as error:
            raise CompressionError(f"{path}: cannot be written ({first_line(error)}). Free space.") from error


def read_dense(path: Path, field: str) -> dict[str, Tensor]:
    """Read a ``state_dict``: safetensors, a Lightning checkpoint, or what ``torch.save`` wrote of one.

    Args:
        path: The file. Nothing in it is executed.
        field: Name of the setting, for messages.

    Raises:
        CompressionError: The file is missing, or is neither.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (*_UNREADABLE, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CompressionError.field(
            field, expected="a checkpoint or state_dict that loads with weights_only", got=str(path), fix=reason
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise CompressionError.field(field, expected="a file with a state_dict", got=str(path))
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def refuse_other_model(state: Mapping[str, Tensor], module: nn.Module, field: str) -> None:
    """Check that a dense state is one of this architecture.

    Raises:
        CompressionError: A key or a shape differs.
    """
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    name = next((key for key in own if key not in state), None)
    if name is not None:
        raise CompressionError(
            f"{field}: the dense state lacks {name!r}, which {type(module).__name__} has. {closest(name, state)}"
        )
    name = next((key for key in own if state[key].shape != own[key].shape), None)
    if name is not None:
        raise CompressionError(
            f"{field}: {name!r} has shape {list(state[name].shape)} in the dense state and {list(own[name].shape)} "
            f"in {type(module).__name__}. Give a checkpoint of the same architecture."
        )


def as_dense(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Turn a copy of the compressed module into the dense one, in place."""
    strip(module)
    module.load_state_dict(dict(state), strict=False)
    return module
