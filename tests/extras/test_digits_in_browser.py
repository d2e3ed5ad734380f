"""The page that classifies a drawn digit, in headless Chromium, built and served as the guide says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from devtools import Browser

from lightning_compress.export.onnx.session import open_session

ROOT = Path(__file__).parents[2]
PORT = 8317
SITE = f"http://127.0.0.1:{PORT}/"
# Corners of the strokes, in a box of one by one.
DIGITS = {
    0: ["50 0 20 10 5 40 5 65 20 90 50 100 75 90 90 65 90 40 75 10 50 0"],
    1: ["30 25 50 0 50 100"],
    2: ["10 20 30 0 60 2 75 25 60 55 10 100", "10 100 85 100"],
    3: ["10 5 50 0 75 15 70 40 35 48", "35 48 75 60 80 85 50 100 10 95"],
    4: ["50 0 5 65 90 65", "60 40 60 100"],
    5: ["80 0 20 0 15 45 55 40 80 65 70 92 40 100 10 90"],
    6: ["60 0 30 30 15 65 25 95 55 100 75 80 60 58 30 62 17 75"],
    7: ["10 0 85 0 45 100"],
    8: ["50 48 20 30 25 5 50 0 75 8 75 30 50 48 20 70 25 95 50 100 78 93 78 70 50 48"],
    9: ["75 25 55 2 25 10 20 38 45 50 72 35 75 25 70 65 50 100"],
}


@pytest.fixture(scope="module")
def site(digits_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, ROOT / "recipes/deploy_browser/build.py", digits_export, folder], check=True)
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", folder, str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                urlopen(SITE, timeout=1).close()
                break
            except URLError:
                time.sleep(0.1)
        yield folder
    finally:
        server.terminate()
        server.wait(10)


def draw(browser: Browser, digit: int) -> dict[str, object]:
    left, top = browser.evaluate("(r => [r.left, r.top])(document.getElementById('pad').getBoundingClientRect())")
    browser.evaluate("document.getElementById('clear').click()")
    for stroke in DIGITS[digit]:
        numbers = [int(part) for part in stroke.split()]
        browser.evaluate("delete document.body.dataset.result")
        corners = zip(numbers[::2], numbers[1::2], strict=True)
        browser.drag([(left + 70 + 1.1 * x, top + 30 + 1.9 * y) for x, y in corners])
        found = browser.wait_for("document.body.dataset.result")
    return dict(json.loads(found))


def test_drawn_digits_are_classified_as_onnx_runtime_classifies_them(site: Path, tmp_path: Path) -> None:
    session = open_session(site / "model.onnx")
    with Browser(tmp_path) as browser:
        browser.call("Page.navigate", url=SITE)
        browser.wait_for("document.body && 'ready' in document.body.dataset")
        right = 0
        for digit in DIGITS:
            found = draw(browser, digit)
            image = np.array(found["input"], np.float32).reshape(1, 1, 8, 8)
            (logits,) = session.run(None, {session.get_inputs()[0].name: image})
            np.testing.assert_allclose(found["logits"], logits[0], atol=0.05 * np.abs(logits).max())
            assert found["answer"] == logits[0].argmax()
            assert browser.evaluate("document.getElementById('answer').textContent") == f"This is a {found['answer']}."
            right += found["answer"] == digit
        assert right >= 7, "a page that scales or normalises wrongly lets the model guess"
        assert browser.complaints == []
        assert browser.requests
        assert all(address.startswith(SITE) for address in browser.requests), browser.requests


def test_the_page_sees_a_drawing_as_the_data_set_has_its_digits(site: Path, tmp_path: Path) -> None:
    facts = json.loads((site / "model.json").read_text())
    with Browser(tmp_path) as browser:
        browser.call("Page.navigate", url=SITE)
        browser.wait_for("document.body && 'ready' in document.body.dataset")
        found = draw(browser, 1)
    image = np.array(found["input"]).reshape(8, 8) * facts["std"][0] + facts["mean"][0]
    assert 0 <= image.min() < 1e-6
    assert 1 - 1e-6 < image.max() <= 1 + 1e-6
    assert (image.sum(1) > 0).all(), "the drawing fills the height"
    assert image[:, :1].sum() == pytest.approx(0, abs=1e-5), "and keeps its proportions"


def test_a_page_without_its_model_says_so(site: Path, tmp_path: Path) -> None:
    (site / "model.onnx").rename(site / "gone")
    try:
        with Browser(tmp_path) as browser:
            browser.call("Page.navigate", url=SITE)
            said = "document.getElementById('answer')?.textContent"
            assert "model.onnx: 404" in browser.wait_for(f"{said}?.includes('cannot') && {said}")
    finally:
        (site / "gone").rename(site / "model.onnx")


def test_an_export_without_onnx_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "recipes/deploy_browser/build.py", tmp_path, tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no model.onnx and no report.json" in done.stderr
