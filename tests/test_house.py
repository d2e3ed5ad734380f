"""Each check of the house fails where its rule is broken."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import lightning as L
import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", ROOT / ".ci" / "house.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(folder: Path, **files: str) -> Path:
    root = folder / "package"
    root.mkdir()
    for name, text in files.items():
        (root / f"{name}.py").write_text(text)
    return root


def test_a_module_over_the_limit_is_named(house: ModuleType, tmp_path: Path) -> None:
    root = package(tmp_path, short="x = 1\n" * house.MODULE_LINES, long="x = 1\n" * (house.MODULE_LINES + 1))
    (found,) = house.long_modules(root)
    assert found.startswith("package/long.py: 321 lines")


def test_a_folder_of_too_many_modules_is_named(house: ModuleType, tmp_path: Path) -> None:
    names = {f"m{i}": "" for i in range(house.FOLDER_MODULES)}
    root = package(tmp_path, __init__="", **names)
    assert not list(house.large_folders(root))
    (root / "one_more.py").write_text("")
    (found,) = house.large_folders(root)
    assert found.startswith("package: 17 modules")


def test_private_names_of_others_are_found_and_own_ones_are_not(house: ModuleType, tmp_path: Path) -> None:
    root = package(
        tmp_path,
        reads="from torch.nn.modules.conv import _ConvNd\nimport torch._inductor\nx = thing._buffers\n",
        own="class A:\n    def __init__(self):\n        self._mine = 1\n\ndef f(a):\n    return a._mine\n",
    )
    assert house.private_names(root) == {
        "._buffers": ["reads.py"],
        "torch._inductor": ["reads.py"],
        "torch.nn.modules.conv._ConvNd": ["reads.py"],
    }


def test_a_private_name_in_many_files_is_refused(house: ModuleType, tmp_path: Path) -> None:
    files = {f"m{i}": "x = thing._buffers\n" for i in range(house.FILES_OF_A_PRIVATE_NAME)}
    root = package(tmp_path, **files)
    assert not list(house.widespread(root))
    (root / "one_more.py").write_text("x = thing._buffers\n")
    (found,) = house.widespread(root)
    assert found.startswith("._buffers stands in 4 files")


LISTED = (ROOT / ".ci" / "private_names.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", [name for line in LISTED if (name := line.split(":")[0]).startswith("torch.")])
def test_what_is_private_to_torch_is_there_in_the_installed_version(name: str) -> None:
    """A release that renames one fails here, by its name, and not in the middle of a fit."""
    path, found = name.split("."), None
    for parts in range(len(path), 0, -1):
        try:
            found = importlib.import_module(".".join(path[:parts]))
        except ImportError:
            continue
        for attribute in path[parts:]:
            found = getattr(found, attribute)
        break
    assert found is not None


def test_what_is_private_to_lightning_is_there_in_the_installed_version() -> None:
    loop = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False).fit_loop
    assert not [name for name in ("_skip_backward", "_combined_loader", "_data_fetcher") if not hasattr(loop, name)]
    assert "_batches_that_stepped" in loop.epoch_loop.on_save_checkpoint()
    module = L.LightningModule()
    assert not [name for name in ("_compiler_ctx", "_metric_attributes") if not hasattr(module, name)]


def test_what_a_trace_replaces_is_there_in_the_installed_version() -> None:
    assert callable(torch.nn.modules.transformer._detect_is_causal_mask)
    assert hasattr(torch.distributions.Distribution, "_validate_args")
    assert callable(torch.distributions.Distribution._validate_sample)


def test_a_change_of_a_kept_list_is_shown(house: ModuleType, tmp_path: Path) -> None:
    kept = tmp_path / "names.txt"
    kept.write_text("a\nb\n")
    assert list(house.changes(kept, ["a", "b"])) == []
    assert list(house.changes(kept, ["a", "c"])) == ["names.txt: -b", "names.txt: +c"]


def test_an_import_into_a_higher_room_breaks_a_contract(tmp_path: Path) -> None:
    copy = tmp_path / "lightning_compress"
    shutil.copytree(ROOT / "lightning_compress", copy, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        *(sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"),
        *(str(ROOT / "importlinter.ini"), "--no-cache"),
    ]
    kept = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert kept.returncode == 0, kept.stdout
    with (copy / "errors.py").open("a") as file:
        file.write("\nfrom lightning_compress import timeline\n")
    broken = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert broken.returncode == 1
    assert "lightning_compress.errors -> lightning_compress.timeline" in broken.stdout
