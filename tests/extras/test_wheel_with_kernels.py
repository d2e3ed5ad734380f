"""The wheel with compiled kernels, on a machine without a compiler, a home directory or a cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning_compress

ROOT = Path(lightning_compress.__file__).parents[1]

QUANTIZES = """
import sys
import torch
from torch import nn
import lightning_compress
from lightning_compress import quantization
from lightning_compress.quantization.fake_quantize.cpu_library import KERNELS

torch.manual_seed(0)
net, x = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64)), torch.randn(64, 512)
quantization.prepare(net, example_inputs=x)
loss = net.train()(x).square().mean()
loss.backward()
numbers = [loss.item().hex(), net[0].weight.grad.sum().item().hex()]
print(lightning_compress.__file__, KERNELS.library is not None, *numbers)
"""


def ran(site: Path, tmp_path: Path) -> list[str]:
    bare = {"PATH": str(tmp_path), "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": "/proc/none"}
    done = subprocess.run([sys.executable, "-c", QUANTIZES], cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_its_kernels_serve_where_there_is_no_compiler_and_give_the_same_bits(tmp_path: Path) -> None:
    source = tmp_path / "source"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "lightning_compress", "conf", "setup.py", "pyproject.toml",
         "LICENSE", "docs/pypi.md", "MANIFEST.in"], cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in names.stdout.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    with_kernels = {**os.environ, "LIGHTNING_COMPRESS_KERNELS": "1"}
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True, env=with_kernels)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("any.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True)
    place, compiled, *numbers = ran(site, tmp_path)
    assert place.startswith(str(site))
    assert compiled == "True"
    for library in site.rglob("*.so"):
        library.unlink()
    _, compiled, *plain = ran(site, tmp_path)
    assert compiled == "False"
    assert numbers == plain
