"""What the documentation shows is run, page by page, and what it links to exists."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RUN = ["tutorial.md", "calibration.md", *sorted(f"concepts/{path.name}" for path in (DOCS / "concepts").glob("*.md"))]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", [page for page in RUN if blocks(page)])
def test_the_code_of_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Pytest would format every record of the tracer, which takes longer than the page.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)


def test_the_tutorial_ends_with_the_files_it_speaks_of() -> None:
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    for name in ("compressed/model.onnx", "compressed/model.packed", "compressed/report.html"):
        assert name in text


def test_every_message_that_troubleshooting_quotes_is_one_of_the_program() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    sources = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "lightning_compress").rglob("*.py"))
    # A message is written over several lines of source; quotes and line breaks between its parts do not matter.
    plain = re.sub(r'"\s*f?"|\s+', " ", sources).replace('" "', " ")
    for quoted in re.findall(r'^\*\*"([^"]+)"\*\*', text, flags=re.MULTILINE):
        for part in (part.strip() for part in quoted.split("...")):
            assert re.sub(r"\s+", " ", part) in plain, part


@pytest.mark.parametrize("page", ["README.zh.md"])
def test_every_file_that_a_page_at_the_root_links_to_exists(page: str) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_chinese_readme_shows_the_code_of_the_english_one() -> None:
    english, chinese = (
        re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
        for name in ("README.md", "README.zh.md")
    )
    assert chinese == english


def test_the_chinese_guide_shows_the_results_of_the_english_one() -> None:
    english, chinese = (
        re.findall(r"<!-- results:([\w.-]+) -->", (DOCS / name).read_text(encoding="utf-8"))
        for name in ("choosing.md", "choosing.zh.md")
    )
    assert chinese == english


sys.path.insert(0, str(DOCS / "extensions"))
import generated  # noqa: E402

SECTION = re.compile(r"^(?:Args|Attributes):\n((?:    .*\n|\n)+)", flags=re.MULTILINE)
ENTRY = re.compile(r"^    ([*\w][*\w, ]*):", flags=re.MULTILINE)


def explained(*objects: object) -> set[str]:
    """Names that docstrings have an entry for."""
    texts = [inspect.cleandoc(value.__doc__ or "") + "\n" for value in objects]
    entries = [entry for text in texts for section in SECTION.findall(text) for entry in ENTRY.findall(section)]
    return {name.strip("* ") for entry in entries for name in entry.split(",")}


def arguments(value: object) -> set[str]:
    return set(inspect.signature(value).parameters) - {"self", "args", "kwargs"}  # type: ignore[arg-type]


@pytest.mark.parametrize("package", generated.API)
def test_the_reference_explains_every_argument(package: str) -> None:
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    seen = 0
    for name, value in public.items():
        if inspect.isfunction(value):
            assert arguments(value) <= explained(value), name
            seen += 1
        elif isinstance(value, type) and not issubclass(value, Exception):
            assert arguments(value) <= explained(*value.__mro__), name
            seen += 1
            for method in set(vars(value)) - set(generated.hooks(value)):
                found = vars(value)[method]
                if inspect.isfunction(found) and not method.startswith("_"):
                    same = [vars(base)[method] for base in value.__mro__ if method in vars(base)]
                    assert arguments(found) <= explained(*same), f"{name}.{method}"
    assert seen
