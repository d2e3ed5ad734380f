"""A configuration as ``train`` composes it, for commands that do not train."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


@contextlib.contextmanager
def composed(overrides: Sequence[str], folder: str) -> Iterator[DictConfig]:
    """The config as ``train`` composes it, with a directory for what it writes; Hydra's own set-up is left alone."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from lightning_compress.apps.configuration.settings import COMPOSITION_ERRORS, CONFIG_MODULE, CONFIG_NAME, explain

    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        try:
            cfg = compose(CONFIG_NAME, list(overrides), return_hydra_config=True)
        except COMPOSITION_ERRORS as error:
            raise explain(error, overrides) from error
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = folder
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        try:
            yield cfg
        finally:
            HydraConfig.instance().cfg = None


@contextlib.contextmanager
def working_directory_importable() -> Iterator[None]:
    """For ``model._target_=my_module.MyModel``, as in ``train``."""
    path = list(sys.path)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = path
