from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from lightning_compress.apps.configuration.overrides import at_home, quoted


def read(override: str) -> str:
    """The value as Hydra reads it."""
    return str(OverridesParser.create().parse_override(override).value())


@given(st.text(alphabet="ab/. '\\\"é数,=[]{}$()~", min_size=1))
def test_hydra_reads_a_path_as_it_was(path: str) -> None:
    assert read(f"key={quoted(path)}") == path


@pytest.mark.parametrize("home", ["/home/josé", "/home/O'Brien", "/data/数据", "/home/two words"])
def test_a_home_directory_of_any_name_is_expanded(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    assert read(at_home("data.root=~/data")) == str(Path(home) / "data")
