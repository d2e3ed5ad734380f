"""A recipe, trained again."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_checker_runs_the_digits_recipe_and_finds_its_numbers_again(tmp_path: Path) -> None:
    recipe = tmp_path / "recipes" / "digits_cnn_sparse80_w8a8"
    shutil.copytree(ROOT / "recipes" / recipe.name, recipe)
    command = [sys.executable, str(ROOT / "recipes" / "check.py"), str(recipe), "--seeds", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("\nAs expected.\n")
    assert "| Packed file of the same weights | as deployed | " in done.stdout
