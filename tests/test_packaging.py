from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lightning_compress

ROOT = Path(lightning_compress.__file__).parents[1]

FOREIGN_APP = """
import hydra
from hydra.utils import get_class

import lightning_compress


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    print("package", lightning_compress.__file__)
    print("pruning", cfg.callbacks.pruning._target_, cfg.callbacks.pruning.final_sparsity)
    print("bits", cfg.callbacks.quantization.weight_bits, cfg.callbacks.quantization.activation_bits)
    print("model", cfg.model.net._target_, cfg.model.net.in_channels, cfg.data.seed)


main()
"""

FOREIGN_CONFIG = """
defaults:
  - data: digits
  - model: cnn
  - callbacks: compress
  - _self_

hydra:
  searchpath: [pkg://lightning_compress.conf]
"""

FOREIGN_CALLBACKS = """
defaults:
  - /pruning@pruning: uniform
  - /quantization@quantization: w4a8
  - _self_

pruning:
  final_sparsity: 0.7
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources so that no build directory is left or found."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if name.split("/")[0] in ("tests", "recipes", "benchmarks") or not (ROOT / name).is_file():
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_module_and_config(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_compress").rglob("*.py")}
    configs = {f"lightning_compress/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(configs) > 30
    assert (
        modules | configs | {"lightning_compress/conf/__init__.py", "lightning_compress/py.typed"}
    ) - packed == set()


def test_the_wheel_holds_nothing_but_the_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lightning_compress"}


def test_another_hydra_application_finds_the_groups_of_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    site, app = tmp_path / "site", tmp_path / "app"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True)
    (app / "conf" / "callbacks").mkdir(parents=True)
    (app / "train.py").write_text(FOREIGN_APP)
    (app / "conf" / "config.yaml").write_text(FOREIGN_CONFIG)
    (app / "conf" / "callbacks" / "compress.yaml").write_text(FOREIGN_CALLBACKS)
    # The target directory comes before site-packages, where this project may be installed in another way.
    answer = subprocess.run(
        [sys.executable, "train.py", "hydra.run.dir=out"],
        cwd=app,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == [
        f"package {site / 'lightning_compress' / '__init__.py'}",
        "pruning lightning_compress.callbacks.GradualMagnitudePruning 0.7",
        "bits 4 8",
        "model lightning_compress.models.SmallCNN 1 0",
    ]
