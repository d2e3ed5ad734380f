"""The comparison page in headless Chromium. Collected by ``make test-extras`` alone, since it needs that browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from sweeps import pages, write_nine

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def sweep_dir(tmp_path: Path) -> Path:
    return write_nine(tmp_path)


# Drives the page as a reader would, and writes down what it finds.
READER = """
<script>
addEventListener("load", () => setTimeout(() => {
  const found = {};
  const dots = () => document.querySelectorAll("#plot a").length;
  const press = (text) => [...document.querySelectorAll("#controls label")].find((l) => l.textContent === text).click();
  found.dots = dots();
  document.querySelector("#plot a[data-name*='0.9,quantization=8']").dispatchEvent(new PointerEvent("pointerenter"));
  found.hover = document.querySelector(".tip.shown").innerText;
  found.row = document.querySelectorAll("#table tr.on").length;
  press("w2a2");
  found.withoutW2 = dots();
  press("within limits only");
  found.kept = dots();
  press("latency");
  found.axis = [...document.querySelectorAll("#plot .axis")].pop().textContent;
  found.rows = [...document.querySelectorAll("#table tbody tr")].filter((row) => !row.hidden).length;
  document.querySelectorAll("#table thead button")[4].click();
  found.smallest = document.querySelector("#table tbody tr:not([hidden])").dataset.name;
  const link = document.querySelector("#plot a[data-name*='0.9,quantization=8']").getAttribute("href");
  found.link = decodeURIComponent(link);
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  found.requests = performance.getEntriesByType("resource").length;
  const out = document.createElement("output");
  out.textContent = JSON.stringify(found);
  document.body.append(out);
}, 100));
</script>
"""


def test_a_reader_can_hover_filter_sort_and_click_through_in_a_browser(sweep_dir: Path) -> None:
    page, _ = pages(sweep_dir)
    (sweep_dir / "compare.html").write_text(page + READER)
    dom, log = chromium(sweep_dir / "compare.html", "--dump-dom", "--window-size=1200,1600")
    written = re.search(r"<output>(.*)</output>", dom)
    assert written is not None, log
    found = json.loads(unescape(written[1]))
    assert "CONSOLE" not in log
    assert (found["dots"], found["withoutW2"], found["kept"], found["rows"]) == (9, 6, 4, 4)
    for part in ("90 % global, w8a8", "97.10 %", "−0.90 points", "packed size", "10.9 kB", "The choice."):
        assert part in found["hover"]
    assert found["row"] == 1
    assert found["axis"] == "latency →"
    assert "0.9,quantization=8" in found["smallest"]
    assert (sweep_dir / found["link"]).is_file()
    assert found["overflow"] <= 0
    assert found["requests"] == 0


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)])
def test_screenshots_have_the_readers_colours_and_no_errors(sweep_dir: Path, width: int, dark: bool) -> None:
    from matplotlib.image import imread

    page, _ = pages(sweep_dir)
    (sweep_dir / "compare.html").write_text(page)
    shot = sweep_dir / "shot.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    size = f"--window-size={width},1600"
    _, log = chromium(sweep_dir / "compare.html", f"--screenshot={shot}", size, *scheme)
    assert "CONSOLE" not in log
    pixels = imread(shot)[..., :3]
    assert pixels.shape[:2] == (1600, width)
    assert (pixels[0, 0].mean() < 0.2) == dark
    assert (abs(pixels - pixels[0, 0]).sum(-1) > 0.1).mean() > 0.03, "something is drawn"


def chromium(page: Path, *arguments: str) -> tuple[str, str]:
    """Output and log of a browser that no name resolves for."""
    assert CHROMIUM is not None, "install Chromium, for example Debian's package chromium"
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={page.parent / 'browser'}",
            "--virtual-time-budget=3000",
            *arguments,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, done.stderr
