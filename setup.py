"""Packages of the distribution; everything else about it stands in pyproject.toml."""

from setuptools import find_packages, setup

# conf/ lies at the root, where people look for it, and is installed as lightning_compress.conf, where Hydra's
# pkg:// finds it. pyproject.toml cannot say "all packages found, and this one from elsewhere".
setup(
    packages=[
        *find_packages(include=["lightning_compress", "lightning_compress.*"]),
        "lightning_compress.conf",
    ],
    package_dir={"lightning_compress": "lightning_compress", "lightning_compress.conf": "conf"},
)
