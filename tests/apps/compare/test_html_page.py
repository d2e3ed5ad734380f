from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from sweeps import pages, write_nine


@pytest.fixture
def sweep_dir(tmp_path: Path) -> Path:
    return write_nine(tmp_path)


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows(sweep_dir: Path) -> None:
    page, _ = pages(sweep_dir)
    assert set(re.findall(r"(?:https?:)?//[\w.]+/[\w/]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"""(?:src|href)=["'](?!data:,)[a-z]+:|@import|url\(""", page)
    assert "<script>boom" not in page
    assert "a &lt;b&gt;failed" in page


def test_links_lead_to_the_reports_of_the_jobs(sweep_dir: Path) -> None:
    page, _ = pages(sweep_dir)
    links = set(re.findall(r'<td><a href="([^"]+)"', page))
    assert len(links) == 9
    assert all((sweep_dir / unquote(link)).is_file() for link in links)


def test_the_markdown_table_has_a_row_for_every_job_and_the_choice_in_bold(sweep_dir: Path) -> None:
    _, text = pages(sweep_dir)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 9
    assert [row for row in rows if "**90 % global**" in row and "**w8a8**" in row] == rows[2:3]
    assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1
    assert r"failed: \</script\>" in text
