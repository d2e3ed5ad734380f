"""What keeps the code easy to find one's way in: lengths, folder sizes, private names of others, the public surface.

``python .ci/house.py`` prints every violation and exits with 1; ``--write`` brings the two lists beside it up to date
after a change that was meant: ``private_names.txt`` and ``public_surface.txt``.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
PACKAGE = ROOT / "lightning_compress"
MODULE_LINES = 320
FOLDER_MODULES = 16
FILES_OF_A_PRIVATE_NAME = 3
PRIVATE = HERE / "private_names.txt"
SURFACE = HERE / "public_surface.txt"
PUBLIC = ("lightning_compress", *(f"lightning_compress.{room}" for room in ("export", "pruning", "quantization",
          "distillation", "metrics", "callbacks", "loggers", "data", "models")))  # fmt: skip


def long_modules(package: Path = PACKAGE) -> Iterator[str]:
    """Modules that hold more than one idea, by their length."""
    for path in sorted((*package.rglob("*.py"), *package.rglob("*.cpp"), *package.rglob("*.h"))):
        lines, name = len(path.read_text(encoding="utf-8").splitlines()), path.relative_to(package.parent).as_posix()
        if lines > MODULE_LINES:
            yield f"{name}: {lines} lines, at most {MODULE_LINES}: split it by idea"


def large_folders(package: Path = PACKAGE) -> Iterator[str]:
    """Folders in which a reader no longer sees at once where to go."""
    for folder in sorted({path.parent for path in package.rglob("*.py")}):
        count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        name = folder.relative_to(package.parent).as_posix()
        if count > FOLDER_MODULES:
            yield f"{name}: {count} modules, at most {FOLDER_MODULES}: make rooms in it"


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore."""
    return name.startswith("_") and not name.startswith("__")


def own_names(trees: dict[Path, ast.Module]) -> set[str]:
    """Underscore names that the package defines itself."""
    own: set[str] = set()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), ctx=ast.Store()):
                own.add(node.attr)
            case ast.FunctionDef() | ast.ClassDef():
                own.add(node.name)
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                own.add(name)
            case ast.Constant(value=str(name)) if is_private(name):  # __slots__, setattr
                own.add(name)
    return own


def private_names(package: Path = PACKAGE) -> dict[str, list[str]]:
    """Private names of other packages, each with the files that read, import or assign it."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}
    own = own_names(trees)
    found: dict[str, set[str]] = {}
    for path, tree in trees.items():
        place = path.relative_to(package).as_posix()
        for node in ast.walk(tree):
            names: list[str] = []
            match node:
                case ast.ImportFrom(module=str(module)) if not module.startswith("lightning_compress"):
                    names = [f"{module}.{alias.name}" for alias in node.names
                             if is_private(alias.name) or any(map(is_private, module.split(".")))]  # fmt: skip
                case ast.Import():
                    names = [alias.name for alias in node.names if any(map(is_private, alias.name.split(".")))]
                case ast.Attribute(attr=attribute, value=value) if is_private(attribute):
                    base = ast.unparse(value)
                    if base not in ("self", "cls") and (attribute not in own or base.split(".")[0] == "torch"):
                        names = [f"{base if base.startswith(('torch', 'sys')) else ''}.{attribute}"]
            for name in names:
                found.setdefault(name, set()).add(place)
    whole = {name: sorted(places) for name, places in sorted(found.items())}
    return {name: kept for name, places in whole.items() if (kept := _outermost(name, places, whole))}


def _outermost(name: str, places: list[str], whole: dict[str, list[str]]) -> list[str]:
    """The files in which a name is not only the beginning of a longer one, as ``torch._C`` is of ``torch._C._nn``."""
    longer = {place for other, others in whole.items() if other.startswith(f"{name}.") for place in others}
    return [place for place in places if place not in longer]


def private_lines(package: Path = PACKAGE) -> list[str]:
    """The list of private names as it is kept: a name and its files a line."""
    return [f"{name}: {', '.join(places)}" for name, places in private_names(package).items()]


def widespread(package: Path = PACKAGE) -> Iterator[str]:
    """Private names that stand in too many files to be fenced off."""
    for name, places in private_names(package).items():
        if len(places) > FILES_OF_A_PRIVATE_NAME:
            yield f"{name} stands in {len(places)} files, at most {FILES_OF_A_PRIVATE_NAME}: name it in one place"


def surface_lines() -> list[str]:
    """Every public name with its signature, methods of classes included."""
    lines: list[str] = []
    for module in map(importlib.import_module, PUBLIC):
        for name in sorted(module.__all__):
            thing = getattr(module, name)
            lines.append(f"{module.__name__}.{name}{signature(thing)}")
            if inspect.isclass(thing):
                foreign = {name for base in thing.__mro__ if not ours(base) for name in vars(base)}
                own = {name: getattr(thing, name) for base in thing.__mro__ if ours(base) for name in vars(base)}
                for method, function in sorted(own.items()):
                    if not method.startswith("_") and callable(function) and method not in foreign:
                        lines.append(f"{module.__name__}.{name}.{method}{signature(function)}")
    return lines


def ours(thing: type) -> bool:
    """Whether a class is defined in the package; what it overrides of other packages' classes is their surface."""
    return thing.__module__.split(".")[0] == "lightning_compress"


def signature(thing: object) -> str:
    """The parameters of a callable, or nothing for what has none."""
    try:
        return str(inspect.signature(thing)) if callable(thing) else ""
    except (TypeError, ValueError):
        return ""


def changes(kept: Path, lines: list[str]) -> Iterator[str]:
    """How a kept list differs from what the code says."""
    old = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    for line in difflib.unified_diff(old, lines, kept.name, "the code", lineterm="", n=0):
        if not line.startswith(("---", "+++", "@@")):
            yield f"{kept.name}: {line}"


def main() -> int:
    """Check, or write the lists."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the two lists")
    lists = {PRIVATE: private_lines(), SURFACE: surface_lines()}
    if parser.parse_args().write:
        for path, lines in lists.items():
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = [*long_modules(), *large_folders(), *widespread()]
    for path, lines in lists.items():
        found += changes(path, lines)
    print("\n".join(found) or "Lengths, folders, private names and public surface are as agreed.")
    if any(line.startswith((PRIVATE.name, SURFACE.name)) for line in found):
        print("Where the change of a list is meant: python .ci/house.py --write")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
