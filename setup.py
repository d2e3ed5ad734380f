"""Packages of the distribution, and its kernels; everything else about it stands in pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithKernels(build_py):
    """Puts a compiled library beside every C++ source, for machines without a compiler."""

    def run(self):
        """Copy the package, then compile in the copy."""
        super().run()
        sys.path.insert(0, str(ROOT))
        from lightning_compress.foundation.compile_cpp import compile_to_ship

        for source in Path(self.build_lib).rglob("*.cpp"):
            compile_to_ship(source)


class PlatformWheel(bdist_wheel):
    """A wheel for one kind of machine and any Python 3."""

    def finalize_options(self):
        """Say that it is not for all machines."""
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        """The tags of its name."""
        return "py3", "none", super().get_tag()[2]


# LIGHTNING_COMPRESS_KERNELS=1, as the release sets it: with compiled kernels.
kernels = (
    {"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel} if "LIGHTNING_COMPRESS_KERNELS" in os.environ else {}
)

# conf/ lies at the root, where people look for it, and is installed as lightning_compress.conf, where Hydra's
# pkg:// finds it. pyproject.toml cannot say "all packages found, and this one from elsewhere".
setup(
    packages=[
        *find_packages(include=["lightning_compress", "lightning_compress.*"]),
        "lightning_compress.conf",
    ],
    package_dir={"lightning_compress": "lightning_compress", "lightning_compress.conf": "conf"},
    cmdclass=kernels,
)
