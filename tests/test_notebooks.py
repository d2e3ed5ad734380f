"""The notebooks run from top to bottom, and show what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"


def code_cells(name: str) -> list[dict]:
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["vision", "text"])
def test_a_notebook_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in code_cells(name):
        source = "".join(cell["source"])
        for epochs in ("max_epochs=8", "max_epochs=4"):
            source = source.replace(epochs, "max_epochs=2")
        exec(compile(source, name, "exec"), names)
    assert {"model.onnx", "model.packed", "report.html"} <= {path.name for path in (tmp_path / "compressed").iterdir()}
    printed = capsys.readouterr().out
    assert "model.packed" in printed
    if name == "text":
        assert "same answers as the trained model: 100.00%" in printed


@pytest.mark.parametrize("name", ["vision", "text"])
def test_a_notebook_shows_what_its_cells_print(name: str) -> None:
    for cell in code_cells(name):
        if "print(" in "".join(cell["source"]) and "stays_float" not in "".join(cell["source"]):
            assert cell["outputs"], cell["id"]
            assert not any(output.get("output_type") == "error" for output in cell["outputs"])
