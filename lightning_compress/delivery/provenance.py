"""What an ONNX file says of where it comes from, in its ``metadata_props``.

There is nothing in it that differs between two equal runs, such as a time of day or a logger's number of the run: equal
seeds give equal bytes. Which logged run wrote a file stands in the logger, to which the file goes as an artifact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import nn

from lightning_compress import __version__, report

_PACKAGES = ("python", "torch", "lightning", "onnxruntime")
_DATA = ("mean", "std", "classes", "class_names")


def provenance(module: nn.Module, *, run: str | None = None, data: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Text by key; what is not known is left out, and what is no text is JSON.

    Args:
        module: The module as trained.
        run: The run's name, as in the report.
        data: What the data module's ``split_record`` gives: ``mean`` and ``std`` of the training inputs, by which
            inputs were normalised, ``classes`` (how many there are) and ``class_names`` (in the order of the outputs).

    Returns:
        ``producer``, ``module``, ``versions``, and, where known, ``run``, ``mean``, ``std``, ``classes``,
        ``class_names`` and ``seed`` (that of ``seed_everything``).

    Example:
        >>> found = provenance(nn.Linear(1, 1), data={"mean": [0.5], "source": "a file"})
        >>> found["module"], found["mean"], "source" in found
        ('Linear', '[0.5]', False)
    """
    surroundings = report.environment()
    versions = {key: surroundings[key] for key in _PACKAGES if surroundings[key]}
    seed = os.environ.get("PL_GLOBAL_SEED")
    known = {
        "versions": versions,
        **{key: data[key] for key in _DATA if data is not None and key in data},
        **({"seed": int(seed)} if seed is not None else {}),
    }
    text = {key: json.dumps(value, ensure_ascii=False, default=str) for key, value in known.items()}
    named = {} if run is None else {"run": run}
    return {"producer": f"lightning-compress {__version__}", "module": type(module).__name__, **named, **text}


def data_record(trainer: L.Trainer, split: str | None) -> Mapping[str, Any] | None:
    """What the data module says of its data, and which part of it was evaluated.

    Args:
        trainer: The Trainer that fitted.
        split: ``"val"`` or ``"test"``; ``None`` if nothing was evaluated.
    """
    evaluated = {} if split is None else {"evaluated": split}
    record = getattr(getattr(trainer, "datamodule", None), "split_record", None)
    return {**record(), **evaluated} if callable(record) else evaluated or None
