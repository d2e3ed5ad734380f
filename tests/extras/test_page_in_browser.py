"""The report and the comparison in headless Chromium. Collected by ``make test-extras`` alone, since it needs that.

Screenshots stay where pytest keeps the files of its last runs: look at them after a change of either page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devtools import Browser
from reports import example_report
from sweeps import pages, write_job, write_nine

from lightning_compress import report

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
CHOSEN = "pruning.final_sparsity=0.9,quantization=8"
# A layer of a real network, and a job whose every word is too long for a phone.
LAYER = "model.encoder.layers.23.self_attention.output_projection.parametrizations.weight.original0"
JOB = "model.net.hidden=[1024,1024,1024],pruning.overrides.encoder_layers_23_self_attention_output_projection=0.97531"

# Text that ends beyond the window, unless it can be scrolled to or lies in a closed part.
OUTSIDE = """
[...document.querySelectorAll("body *")].filter((element) => {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || element.closest(".scroll, script, style, noscript, [hidden]") || !element.checkVisibility()) return false;
  const box = element.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map((element) => element.textContent.trim().slice(0, 60))
"""
# WCAG's ratio of the lightnesses of the quiet text and of the paper.
CONTRAST = """
(() => {
  const light = (name) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(${name})`;
    const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    probe.remove();
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  return ["--ink", "--quiet", "--accent"].map((name) => {
    const [dark, bright] = [light(name), light("--paper")].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  });
})()
"""


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten finished jobs with real reports, one of them with names too long for a phone; and a failed one."""
    folder = write_nine(tmp_path_factory.mktemp("sweep"))
    write_job(folder, JOB, acc=0.975, packed=40_000, sparsity=0.97531, bits=4, latency=0.034)
    for job in folder.glob("*/compressed"):
        report.write(json.loads((job / "report.json").read_text()), job)
    (folder / "compare.html").write_text(pages(folder)[0])
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def page(browser: Browser, sweep_dir: Path) -> Iterator[Browser]:
    """The comparison in a window. What the test did may neither complain nor ask for anything but local pages."""
    browser.view(*WIDTHS["desktop"])
    browser.open((sweep_dir / "compare.html").as_uri())
    browser.requests.clear()
    browser.complaints.clear()
    yield browser
    assert browser.complaints == []
    assert all(address.startswith("file:") for address in browser.requests), browser.requests


def dots(browser: Browser) -> list[str]:
    found: list[str] = browser.evaluate("[...document.querySelectorAll('#plot a')].map((link) => link.dataset.name)")
    return found


def dot(name: str) -> str:
    return f'#plot a[data-name="{name}"] .dot'


def option(text: str) -> str:
    return f'#controls input[value="{text}"]'


def long_report() -> dict[str, Any]:
    """A report with names too long for a phone in every place that has names."""
    found = example_report()
    found["name"] = JOB
    found["layers"][1]["name"] = found["layers"][3]["name"] = LAYER + ".weight"
    found["layers"] += [{**found["layers"][3], "name": f"{LAYER}.{index}.weight"} for index in range(40)]
    found["stays_float"] = [f"{LAYER}: its output meets no quantizer (forward, line 48)"]
    found["notes"] = [f"The weights of {LAYER} left their range."]
    found["artifacts"][0]["file"] = f"{LAYER}.onnx"
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", list(WIDTHS))
@pytest.mark.parametrize("kind", ["report", "long_report", "compare"])
def test_a_page_fits_its_window_in_the_readers_colours_without_errors_or_network(
    browser: Browser, sweep_dir: Path, tmp_path: Path, kind: str, width: str, dark: bool
) -> None:
    from matplotlib.image import imread

    path = sweep_dir / "compare.html"
    if kind != "compare":
        report.write(example_report() if kind == "report" else long_report(), tmp_path)
        path = tmp_path / "report.html"
    browser.requests.clear()
    browser.complaints.clear()
    browser.view(*WIDTHS[width], dark=dark, touch=width == "phone")
    browser.open(path.as_uri())
    browser.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    browser.screenshot(tmp_path / f"{kind}-{width}-{'dark' if dark else 'light'}.png")

    assert browser.complaints == []
    assert [address for address in browser.requests if not address.startswith("data:")] == [path.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") == WIDTHS[width][0]
    assert browser.evaluate(OUTSIDE) == []
    assert min(browser.evaluate(CONTRAST)) >= 4.5, "small text is legible by WCAG's level AA"
    (shot,) = tmp_path.glob("*.png")
    pixels = imread(shot)[..., :3]
    assert pixels.shape[1] == WIDTHS[width][0]
    assert (pixels[0, 0].mean() < 0.2) == dark
    assert (abs(pixels - pixels[0, 0]).sum(-1) > 0.1).mean() > 0.03, "something is drawn"


def test_the_mouse_shows_a_jobs_numbers_and_lights_up_its_row(page: Browser) -> None:
    assert len(dots(page)) == 10
    page.hover(dot(CHOSEN))
    tip = page.wait_for("document.querySelector('.tip.shown')?.innerText")
    for part in ("90 % global, w8a8", "97.10 %", "−0.90 points", "packed size", "10.9 kB", "The choice."):
        assert part in tip
    assert page.evaluate("[...document.querySelectorAll('#table tr.on')].map((row) => row.dataset.name)") == [CHOSEN]


def test_the_numbers_of_a_job_at_any_place_stay_within_the_picture(page: Browser) -> None:
    for name in dots(page):
        page.hover(dot(name))
        box, plot = (
            page.evaluate(f"((r) => [r.left, r.right])(document.querySelector('{found}').getBoundingClientRect())")
            for found in (".tip.shown", "#plot")
        )
        assert plot[0] - 0.5 <= box[0] < box[1] <= plot[1] + 0.5


def test_filters_leave_out_jobs_in_the_picture_and_in_the_table(page: Browser) -> None:
    page.click(option("w2a2"))
    assert len(dots(page)) == 7
    page.click(option("within limits only"))
    kept = dots(page)
    assert len(kept) == 5
    rows = (
        "[...document.querySelectorAll('#table tbody tr')].filter((row) => !row.hidden).map((row) => row.dataset.name)"
    )
    assert sorted(page.evaluate(rows)) == sorted(kept)
    page.click(option("latency"))
    assert page.evaluate("[...document.querySelectorAll('#plot .axis')].pop().textContent") == "latency →"
    page.evaluate("document.querySelectorAll('#table thead button')[4].click()")
    assert page.evaluate("document.querySelector('#table tbody tr:not([hidden])').dataset.name") == CHOSEN


def test_no_job_left_is_said(page: Browser) -> None:
    for name in ("float", "w8a8", "w4a4", "w2a2"):
        page.click(option(name))
    assert page.evaluate("document.querySelector('#plot text').textContent") == "No job is left by these filters."


@pytest.mark.parametrize("place", [dot(CHOSEN), f'#table tr[data-name="{CHOSEN}"] a', ".verdict a"])
def test_a_click_opens_the_jobs_own_report(page: Browser, sweep_dir: Path, place: str) -> None:
    page.click(place)
    page.wait_for("document.title.endsWith('compression report') && document.readyState === 'complete'")
    assert page.evaluate("location.href") == (sweep_dir / CHOSEN / "compressed" / "report.html").as_uri().replace(
        ",", "%2C"
    )
    assert page.evaluate("document.querySelectorAll('figure svg').length") == 6


def test_a_finger_sees_the_numbers_first_and_then_opens_the_report(page: Browser, sweep_dir: Path) -> None:
    page.view(*WIDTHS["phone"], touch=True)
    page.open((sweep_dir / "compare.html").as_uri())
    page.tap(dot(CHOSEN))
    assert "10.9 kB" in page.wait_for("document.querySelector('.tip.shown')?.innerText")
    left, right = page.evaluate("((r) => [r.left, r.right])(document.querySelector('.tip').getBoundingClientRect())")
    assert 0 <= left < right <= WIDTHS["phone"][0]
    assert page.evaluate("document.title").endswith("comparison")
    page.tap(".tip a")
    page.wait_for("document.title.endsWith('compression report')")
