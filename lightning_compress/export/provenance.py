"""What an ONNX file says of where it comes from, in its ``metadata_props``.

There is no time of day in it: the same run with the same seed gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from torch import nn

from lightning_compress import __version__, report

_PACKAGES = ("python", "torch", "lightning", "onnxruntime")
_DATA = ("mean", "std", "classes", "class_names")


def provenance(
    module: nn.Module, *, data: Mapping[str, Any] | None = None, loggers: Iterable[Logger] = ()
) -> dict[str, str]:
    """Text by key; what is not known is left out, and what is no text is JSON.

    Args:
        module: The module as trained.
        data: What the data module's ``split_record`` gives: ``mean`` and ``std`` of the training inputs, by which
            inputs were normalised, ``classes`` (how many there are) and ``class_names`` (in the order of the outputs).
        loggers: The Trainer's; each names its run.

    Returns:
        ``producer``, ``module``, ``versions``, and, where known, ``mean``, ``std``, ``classes``, ``class_names``,
        ``seed`` (that of ``seed_everything``) and ``runs``.

    Example:
        >>> found = provenance(nn.Linear(1, 1), data={"mean": [0.5], "source": "a file"})
        >>> found["module"], found["mean"], "source" in found
        ('Linear', '[0.5]', False)
    """
    surroundings = report.environment()
    versions = {key: surroundings[key] for key in _PACKAGES if surroundings[key]}
    runs = [
        {"logger": type(logger).__name__, "name": str(logger.name), "version": str(logger.version)}
        for logger in loggers
        if logger.name
    ]
    seed = os.environ.get("PL_GLOBAL_SEED")
    known = {
        "versions": versions,
        **{key: data[key] for key in _DATA if data is not None and key in data},
        **({"seed": int(seed)} if seed is not None else {}),
        **({"runs": runs} if runs else {}),
    }
    text = {key: json.dumps(value, ensure_ascii=False, default=str) for key, value in known.items()}
    return {"producer": f"lightning-compress {__version__}", "module": type(module).__name__, **text}
