"""Settings of single layers from the command line, where the pattern that names them cannot be a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_compress.errors import CompressionError


def by_pattern(node: DictConfig, key: str) -> dict[str, Any]:
    """The ``overrides`` of a node as the callbacks take them, if they are written as a list.

    Keys on Hydra's command line cannot hold the signs of a regular expression, so a list is taken as well:
    ``'pruning.overrides=[{pattern: "re:.*conv1", final_sparsity: 0.5}]'``.

    Args:
        node: The config of a callback.
        key: Its full config key, for messages.

    Returns:
        ``{"overrides": pattern → settings}``, or nothing where there is no list.

    Raises:
        CompressionError: An item of the list is no mapping with a ``pattern``, or repeats one.

    Example:
        >>> by_pattern(OmegaConf.create({"overrides": [{"pattern": "re:.*conv1", "final_sparsity": 0.5}]}), "pruning")
        {'overrides': {'re:.*conv1': {'final_sparsity': 0.5}}}
    """
    given = OmegaConf.to_container(node, resolve=True)
    listed = given.get("overrides") if isinstance(given, Mapping) else None
    if not isinstance(listed, list):
        return {}
    found: dict[str, Any] = {}
    for index, item in enumerate(listed):
        if not isinstance(item, Mapping) or not isinstance(item.get("pattern"), str):
            raise CompressionError.field(
                f"{key}.overrides[{index}]", expected='{pattern: "re:...", <setting>: <value>}', got=item
            )
        if item["pattern"] in found:
            raise CompressionError.field(
                f"{key}.overrides[{index}].pattern", expected="a pattern that is named once", got=item["pattern"]
            )
        found[item["pattern"]] = {name: value for name, value in item.items() if name != "pattern"}
    return {"overrides": found}
