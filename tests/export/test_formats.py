"""Names of formats, and what is said where a format's runtime is missing."""

from __future__ import annotations

import importlib.util

import pytest

from lightning_compress import CompressionError
from lightning_compress.export.formats import check_formats, deployed_of, files_of


@pytest.mark.parametrize(
    ("runtime", "package"), [("executorch", "executorch"), ("openvino", "openvino"), ("litert", "litert_torch")]
)
def test_a_format_without_its_runtime_is_refused_with_the_command_that_installs_it(
    runtime: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == package else found(name, *more)
    )
    with pytest.raises(CompressionError, match=rf"formats: .* not installed.*lightning-compress\[{runtime}\]"):
        check_formats([runtime], "formats")


def test_what_runs_in_integers_counts_as_deployed_before_what_is_only_stored() -> None:
    assert deployed_of(["compressed_tensors", "packed", "executorch"]) == "executorch"
    assert deployed_of(["compressed_tensors", "packed"]) == "packed"


def test_a_format_of_two_files_has_both() -> None:
    assert files_of(["compressed_tensors"]) == ["model.safetensors", "config.json"]
