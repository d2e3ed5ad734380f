"""Profiles of devices, and the choice for one of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sweeps import write, write_job

from lightning_compress.apps.compare.limits import parse_size
from lightning_compress.apps.configuration.compose import composed
from lightning_compress.apps.configuration.device import devices, read_device
from lightning_compress.cli.main import main
from lightning_compress.errors import CompressionError


@pytest.mark.parametrize("name", devices())
def test_the_settings_of_a_profile_write_its_format_in_8_bits(name: str, tmp_path: Path) -> None:
    device = read_device(name)
    with composed(device.settings, str(tmp_path)) as cfg:
        assert list(cfg.export.formats) == [device.format]
        assert (cfg.quantization.weight_bits, cfg.quantization.activation_bits) == (8, 8)
    sizes = [size for size in (device.max_size, device.max_flash, device.max_ram) if size is not None]
    assert sizes
    assert all(parse_size(size) > 0 for size in sizes)


def test_an_unknown_device_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(CompressionError, match=r"--device: expected one of .*, got 'cortex_m5'. Closest: cortex_m"):
        read_device("cortex_m5")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two networks for microcontrollers: the better one needs too much RAM for a Cortex-M4."""
    for name, acc, flash, ram in (("large", 0.99, 300_000, 200_000), ("small", 0.98, 90_000, 40_000)):
        job = write_job(tmp_path / "sweep", name, acc=acc, sparsity=0.0)
        report = json.loads((job / "compressed" / "report.json").read_text())
        report["artifacts"].append(
            {"format": "litert", "file": "model.tflite", "bytes": flash, "sha256": "0", "breakdown": {}}
        )
        report["microcontroller"] = {"flash_bytes": flash, "arena_bytes": ram}
        write(job / "compressed" / "report.json", report)
    return tmp_path / "sweep"


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (["--device", "cortex_m4"], "small"),
        (["--device", "cortex_m4", "--max-ram", "256KB"], "large"),
        (["--max-flash", "64KB"], None),
        (["--max-flash", "100KB"], "small"),
        (["--device", "cortex_m0"], None),
    ],
)
def test_flash_and_ram_are_limits_of_the_choice(
    given: list[str], chosen: str | None, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(sweep), "--json", *given]) == (0 if chosen else 1)
    found = json.loads(capsys.readouterr().out)
    assert found["choice"] == chosen
    if chosen is None:
        assert any("limit on flash alone" in reason or "limit on ram alone" in reason for reason in found["reasons"])


def test_flash_and_ram_are_columns_where_any_job_has_them(
    sweep: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["compare", str(sweep), "--markdown", str(tmp_path / "with.md")]) == 0
    row = next(line for line in (tmp_path / "with.md").read_text().splitlines() if "300.0 kB" in line)
    assert "200.0 kB" in row
    write_job(tmp_path / "other", "job")
    assert main(["compare", str(tmp_path / "other"), "--markdown", str(tmp_path / "without.md")]) == 0
    assert "RAM" not in (tmp_path / "without.md").read_text()
