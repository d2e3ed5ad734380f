from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from reports import example_report

from lightning_compress import report
from lightning_compress.errors import CompressionError

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects text, pictures and addresses, and checks that tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def write(found: dict[str, Any], directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in report.write(found, directory)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write(example_report(), tmp_path_factory.mktemp("report") / "new")


def test_three_files_are_written(written: dict[str, str]) -> None:
    assert list(written) == ["report.json", "report.md", "report.html"]


def test_json_reads_back_as_it_was(written: dict[str, str]) -> None:
    assert json.loads(written["report.json"]) == example_report()


def test_equal_reports_give_equal_bytes(written: dict[str, str], tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 20, "lines.color": "red", "svg.fonttype": "path"}):
        assert write(example_report(), tmp_path) == written


def test_a_broken_report_leaves_the_old_files(tmp_path: Path) -> None:
    before = write(example_report(), tmp_path)
    broken = example_report()
    del broken["results"]["deployed"]["bytes"]
    with pytest.raises(CompressionError, match="bytes is missing"):
        report.write(broken, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(CompressionError, match="taken"):
        report.write(example_report(), tmp_path / "taken")


def test_html_asks_nothing_of_the_network(written: dict[str, str]) -> None:
    html = written["report.html"]
    assert [address for address in Page(html).addresses if not address.startswith("#")] == []
    without_namespaces = re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)
    assert not re.search(r"https?://|<script|@import|url\((?!#)", without_namespaces)


def test_pictures_are_well_formed_and_take_the_page_s_colours(written: dict[str, str]) -> None:
    html = written["report.html"]
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) == 8
    for picture in pictures:
        ElementTree.fromstring(picture)
        assert "var(--" in picture
        assert not re.search(r"(fill|stroke): ?#", picture)


def test_every_reference_inside_the_pictures_is_defined_once(written: dict[str, str]) -> None:
    html = written["report.html"]
    for picture in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        defined = re.findall(r'id="([^"]+)"', picture)
        used = {*re.findall(r"url\(#([^)]+)\)", picture), *re.findall(r'href="#([^"]+)"', picture)}
        assert used <= set(defined)
    everywhere = re.findall(r'id="([^"]+)"', html)
    assert len(everywhere) == len(set(everywhere))


def test_html_says_what_was_gained_and_lost(written: dict[str, str]) -> None:
    words = Page(written["report.html"]).words
    for expected in ("3.61×", "310.6 kB → 86.1 kB", "98.33 %", "−0.28 points against dense", "0.034 ms", "100.00 %"):
        assert expected in words


def test_it_is_said_that_scattered_zeros_give_no_speed(written: dict[str, str], tmp_path: Path) -> None:
    dense = example_report()
    for row in dense["layers"]:
        row.update(sparsity=0.0, pattern="none")
    unpruned = write(dense, tmp_path)
    for name in ("report.md", "report.html"):
        assert "Unstructured zeros give size, not speed." in written[name]
        assert "not speed" not in unpruned[name]


@pytest.mark.parametrize(
    ("pattern", "speeds"),
    [
        ("unstructured", ["none"] * 4),
        ("4:8", ["none"] * 4),
        ("block:1x4", ["none"] * 4),
        ("2:4", ["none", "none", "none", "TensorRT and torch.sparse, from Ampere on; not measured here"]),
        ("channel", ["as a smaller network"] * 4),
    ],
)
def test_it_is_said_what_speed_each_runtime_gets_out_of_the_zeros(
    pattern: str, speeds: list[str], tmp_path: Path
) -> None:
    found = example_report()
    for row in found["layers"]:
        row["pattern"] = pattern if row["pattern"] != "none" else "none"
    pages = write(found, tmp_path)
    assert f"| `{pattern}` | {' | '.join(speeds)} |" in pages["report.md"]
    assert " ".join([pattern, *speeds]) in " ".join(Page(pages["report.html"]).words.split())


def test_html_escapes_what_users_name(tmp_path: Path) -> None:
    found = example_report()
    found["name"] = "<b>bold</b> & co"
    found["layers"][0]["name"] = "a<script>.weight"
    html = write(found, tmp_path)["report.html"]
    assert "<b>bold" not in html
    assert "<script" not in html
    assert "<b>bold</b> & co" in Page(html).words


def test_names_that_look_like_formulas_are_names(tmp_path: Path) -> None:
    report = example_report()
    for row in report["layers"]:
        row["name"] = f"$\\frac$_{row['name']}"
    write(report, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "$\\frac$_net.fc.weight" in re.sub(r"<[^>]+>", "", page)


def test_a_report_of_the_least_still_renders(tmp_path: Path) -> None:
    found = example_report()
    found.update(seed=None, data=None, agreement=None, max_abs_difference=None)
    found.update(artifacts=[], layers=[], history=[], stays_float=[])
    found["plan"] = {"pruning": None, "quantization": None, "phases": []}
    found["results"].update(dense=None, fake_quantized=None)
    found["results"]["deployed"].update(metrics={}, latency_ms=None, bytes=None, compression_ratio=None)
    contents = write(found, tmp_path)
    assert found["name"] in contents["report.md"]
    assert found["name"] in Page(contents["report.html"]).words


def test_a_hundred_layers_stay_readable(tmp_path: Path) -> None:
    found = example_report()
    found["layers"] = [{**found["layers"][3], "name": f"blocks.{i}.attention.projection.weight"} for i in range(100)]
    words = Page(write(found, tmp_path)["report.html"]).words
    assert "The 60 largest layers are shown." in words
    assert "All 100 parameters" in words


def test_markdown_tables_have_as_many_cells_in_each_row(written: dict[str, str]) -> None:
    markdown = written["report.md"]
    for table in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "| test/acc | 98.61 % | 98.33 % | 98.33 % |" in markdown
