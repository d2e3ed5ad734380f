"""The dense float model that a compressed one is compared with: kept at the start, or given."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError, closest, first_line
from lightning_compress.foundation.atomic_write import replacing
from lightning_compress.quantization import strip
from lightning_compress.report.number_text import is_share, metric

UNTRAINED = 1.5
"""A start whose error is this many times that of the trained model was no trained model."""
_LESS_IS_BETTER = re.compile(r"loss|err|mse|mae|perplexity|ppl|nll|wer|cer|distance|(^|[/_])(fid|bpc|bpd)")
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


def untrained_start(
    start: Mapping[str, float], trained: Mapping[str, float], monitor: str | None = None, mode: str | None = None
) -> str | None:
    """Why the weights that a fit began with are no dense control; ``None`` if they may be one.

    A fit that fine-tunes begins with a trained model, one from scratch with random numbers. They are told apart by the
    error of the first against that of the model that came out: 1 − value for a share such as an accuracy, the value
    itself for a loss.

    Args:
        start: Metrics of the weights at the start of the fit.
        trained: Metrics of the trained model.
        monitor: The metric to look at; by default the first share, or else the first whose name says that less of it is
            better.
        mode: ``"max"`` if more of ``monitor`` is better, ``"min"`` if less; by default as its name says.

    Example:
        >>> untrained_start({"val/acc": 0.1}, {"val/acc": 0.95})
        'val/acc is 10.00 % with the weights that this fit began with, and 95.00 % after it'
        >>> untrained_start({"val/loss": 0.31}, {"val/loss": 0.33}) is None
        True
    """
    both = [name for name in start if name in trained]
    names = [monitor] if monitor in both else sorted(filter(_direction, both), key=lambda name: not is_share(name))
    if not names:
        return None
    name = names[0]
    better = mode if name == monitor and mode is not None else _direction(name)
    before, after = start[name], trained[name]
    if better == "max" and is_share(name) and max(before, after) <= 1:
        before, after = 1 - before, 1 - after
    elif better == "max":
        before, after = -before, -after
    if not before > (UNTRAINED * after if after > 0 else after):
        return None
    shown = (metric(name, values[name]) for values in (start, trained))
    return "{} is {} with the weights that this fit began with, and {} after it".format(name, *shown)


def _direction(name: str) -> str | None:
    """Whether more (``"max"``) or less (``"min"``) of a metric is better, as its name says; ``None`` if it does not."""
    return "max" if is_share(name) else "min" if _LESS_IS_BETTER.search(name.lower()) else None


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
