"""Files of a sweep's jobs, which may be damaged, half written or another user's: only what can be used is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_compress.apps.regular_file import regular_text
from lightning_compress.errors import CompressionError
from lightning_compress.foundation.checksum import sha256


def other_file(folder: Path, artifacts: Iterable[Mapping[str, Any]]) -> str | None:
    """Name of a file in an export's directory that is not the one its report speaks of; missing ones are none."""
    for artifact in artifacts:
        # A report may come from anywhere, so that names with directories in them are not looked at.
        path = folder / Path(artifact["file"]).name
        if path.is_file() and sha256(path) != artifact["sha256"]:
            return path.name
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A mapping in JSON.

    Raises:
        CompressionError: It holds something else.
    """
    content = json.loads(regular_text(path))
    if not isinstance(content, dict):
        raise CompressionError(f"{path}: expected a mapping, got {type(content).__name__}.")
    return content


def hydra_overrides(path: Path) -> list[str]:
    """A job's overrides as Hydra notes them, a YAML list; none where a killed job left half of it."""
    file = path / ".hydra" / "overrides.yaml"
    try:
        return texts(yaml.safe_load(regular_text(file)) if file.is_file() else None)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []


def texts(value: Any) -> list[str]:
    """What of a list is text."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping, empty where it is none."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float | None:
    """A number that can be shown and compared."""
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if fine else None


def setting(override: str) -> str:
    """What an override sets, adds or deletes."""
    return override.lstrip("+~").partition("=")[0]
