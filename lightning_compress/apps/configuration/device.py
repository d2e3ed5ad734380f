"""Profiles of devices: which file runs there, and what it may take. They are YAML files in ``conf/device``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib.resources import files

import yaml

from lightning_compress.apps.configuration.settings import CONFIG_MODULE
from lightning_compress.errors import CompressionError, closest


@dataclass(frozen=True)
class Device:
    """What a device runs.

    Attributes:
        name: Name of its file.
        format: The format that runs there.
        settings: Overrides of ``train`` that write such a file.
        max_size: Largest file, as ``--max-size`` takes it.
        max_latency: Longest call, as ``--max-latency`` takes it.
        max_flash: Largest file of a microcontroller.
        max_ram: Most RAM of a microcontroller.
    """

    name: str
    format: str
    settings: tuple[str, ...]
    max_size: str | None = None
    max_latency: str | None = None
    max_flash: str | None = None
    max_ram: str | None = None


def devices() -> list[str]:
    """Names of the profiles that there are."""
    found = (files(CONFIG_MODULE) / "device").iterdir()
    return sorted(path.name.removesuffix(".yaml") for path in found if path.name.endswith(".yaml"))


def read_device(name: str) -> Device:
    """Read a profile.

    Args:
        name: Of one in ``conf/device``.

    Raises:
        CompressionError: There is none of that name.

    Example:
        >>> read_device("cortex_m4").format
        'litert'
    """
    known = devices()
    if name not in known:
        raise CompressionError.field(
            "--device", expected=f"one of {', '.join(known)}", got=name, fix=closest(name, known)
        )
    content = yaml.safe_load((files(CONFIG_MODULE) / "device" / f"{name}.yaml").read_text(encoding="utf-8"))
    unknown = set(content) - {each.name for each in fields(Device)}
    if unknown:
        raise CompressionError.field(f"conf/device/{name}.yaml", expected="known settings", got=sorted(unknown))
    return Device(name=name, **{**content, "settings": tuple(content["settings"])})
