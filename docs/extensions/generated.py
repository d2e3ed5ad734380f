"""Pages and pictures that are made from the program, before the build reads its sources.

``docs/generated/`` gets the reference of the config groups from ``conf/``, the pages of the API from each package's
``__all__``, the list of refused configurations from the tests, and the pictures.
"""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import pictures
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "generated"

ARGUMENT = re.compile(r"^ {8}(\w+): (.*?)(?=^ {8}\w+: |\Z)", flags=re.DOTALL | re.MULTILINE)
"""An argument in a Google docstring of a class: its name, and what it means."""

API = {
    "lightning_compress": "Callbacks",
    "lightning_compress.pruning": "Pruning",
    "lightning_compress.quantization": "Quantization",
    "lightning_compress.distillation": "Distillation",
    "lightning_compress.metrics": "Metrics",
    "lightning_compress.export": "Export and verification",
    "lightning_compress.apps.doctor.diagnose": "Diagnosis",
    "lightning_compress.apps.inspect.inspect": "Inspection",
    "lightning_compress.report": "Report",
    "lightning_compress.data": "Data",
    "lightning_compress.models": "Models",
}


def api() -> None:
    """One page for each package with public names."""
    for package, title in API.items():
        module = importlib.import_module(package)
        lines = [f"# {title}", "", f"`{package}`", ""]
        for name in sorted(module.__all__, key=str.lower):
            value = getattr(module, name)
            if not callable(value):
                continue
            # A type alias of typing is callable, and has nothing to show but its name.
            kind = "autoclass" if isinstance(value, type) else "autofunction"
            if not getattr(value, "__doc__", None) or getattr(value, "__module__", "typing") == "typing":
                continue
            options = []
            if isinstance(value, type):
                options = ["   :members:", "   :show-inheritance:", f"   :exclude-members: {', '.join(hooks(value))}"]
            lines += ["```{eval-rst}", f".. {kind}:: {package}.{name}", *options, "```", ""]
        (FOLDER / f"api_{package.rpartition('.')[2]}.md").write_text("\n".join(lines), encoding="utf-8")


def hooks(value: type) -> list[str]:
    """Methods that Lightning or PyTorch calls, and describes."""
    return sorted(
        {
            name
            for base in value.__mro__
            if base.__module__.partition(".")[0] in ("lightning", "torch")
            for name in vars(base)
            if not name.startswith("_") and name in vars(value)
        }
    )


def configuration() -> None:
    """Every group with its choices, and what the settings of its first class mean."""
    lines = [
        "# Configuration",
        "",
        "Every group of `lightning-compress train`, made from the files themselves. A group is chosen by "
        "`group=choice`, a setting by `group.setting=value`; `lightning-compress train --help` prints the same "
        "for your overrides.",
        "",
        "## Settings of a run",
        "",
        "```yaml",
        _file(ROOT / "conf" / "train.yaml"),
        "```",
        "",
    ]
    for group in sorted(path for path in (ROOT / "conf").iterdir() if path.is_dir() and any(path.glob("*.yaml"))):
        lines += [f"## `{group.name}`", ""]
        for path in sorted(group.glob("*.yaml"), key=lambda path: (path.stem != "default", path.stem)):
            lines += [f"### `{group.name}={path.stem}`", "", *_comment(path), "```yaml", _file(path), "```", ""]
            lines += _meanings(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    (FOLDER / "configuration.md").write_text("\n".join(lines), encoding="utf-8")


def mistakes() -> None:
    """The configurations that the tests write and the program refuses."""
    cases = yaml.safe_load((ROOT / "tests" / "bad_configurations.yaml").read_text(encoding="utf-8"))
    lines = ["| written | named in the message | the message says |", "|---|---|---|"]
    for case in cases:
        written = {key: value for key, value in case.items() if key not in ("field", "says")}
        text = yaml.safe_dump(written, default_flow_style=True, width=1000, allow_unicode=True).strip()
        cells = [f"`` {cell} ``".replace("|", r"\|") for cell in (text, case["field"] or "–", case["says"])]
        lines.append(f"| {' | '.join(cells)} |")
    (FOLDER / "mistakes.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


def _file(path: Path) -> str:
    """A config without the comment at its head, which stands above it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    while lines and lines[0].startswith("#") and "@package" not in lines[0]:
        lines.pop(0)
    return "\n".join(lines).strip()


def _comment(path: Path) -> list[str]:
    """The comment at a config's head as a paragraph."""
    head: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            head.append(line.removeprefix("#").strip())
    return [*head, ""] if head else []


def _meanings(content: dict[str, Any]) -> list[str]:
    """What the settings mean, from the docstring of the class that takes them."""
    nodes = [content, *(value for value in content.values() if isinstance(value, dict))]
    lines: list[str] = []
    for node in nodes:
        target = node.get("_target_", "")
        if not isinstance(target, str) or not target.startswith("lightning_compress."):
            continue
        module, _, name = target.rpartition(".")
        known = _arguments(getattr(importlib.import_module(module), name))
        described = [(key, known[key]) for key in node if key in known]
        if described:
            lines += ["| setting | meaning |", "|---|---|", *(f"| `{key}` | {text} |" for key, text in described), ""]
    return lines


def _arguments(owner: type) -> dict[str, str]:
    """Argument → meaning, from the Google docstrings of a class, its bases, and the class whose arguments it takes."""
    found: dict[str, str] = {}
    doc = owner.__doc__ or ""
    named = [re.search(r"All arguments are those of :class:`([\w.]+)`", doc)]
    classes: list[type] = [*reversed(owner.__mro__)]
    for match in named:
        if match is not None and "." in match[1]:
            module, _, name = match[1].rpartition(".")
            classes.append(getattr(importlib.import_module(module), name))
    for part in classes:
        section = re.search(r"\n    Args:\n(.*?)(?:\n\n|\Z)", part.__doc__ or "", flags=re.DOTALL)
        if part.__module__.startswith("lightning_compress") and section is not None:
            for argument in re.finditer(ARGUMENT, section[1]):
                found[argument[1]] = _markdown(" ".join(argument[2].split()))
    return found


def _markdown(text: str) -> str:
    """A sentence of reStructuredText in a table of Markdown."""
    text = re.sub(r":\w+:`(?:~)?([^`]+)`", r"`\1`", text).replace("``", "`")
    return text.replace("|", r"\|")


def _generate(app: Any, config: Any) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    api()
    configuration()
    mistakes()
    pictures.draw(FOLDER)


def setup(app: Any) -> dict[str, bool]:
    """Generate before the sources are found."""
    app.connect("config-inited", _generate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
