"""A matplotlib figure as SVG that takes its colours and fonts from the page that it stands in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 72

# matplotlib needs real colours; each is replaced by a property of the page, which differs in light and dark.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--quiet)",
    "#030303": "var(--line)",
    "#040404": "var(--accent)",
    "#050505": "var(--second)",
    "#060606": "var(--wash)",
    "#070707": "var(--paper)",
    "#080808": "var(--part-1)",
    "#090909": "var(--part-2)",
    "#0a0a0a": "var(--part-3)",
    "#0b0b0b": "var(--part-4)",
    "#0c0c0c": "var(--part-5)",
}
INK, QUIET, LINE, ACCENT, SECOND, WASH, PAPER, *PARTS = _COLOURS


@contextmanager
def page_style(salt: str) -> Iterator[None]:
    """The page's style while a figure is made and rendered.

    Args:
        salt: Makes the names inside a picture differ from those of others on the page.
    """
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.hashsalt": salt,
        "svg.fonttype": "none",
        # Names of layers are no formulas.
        "text.parse_math": False,
        "font.size": 12,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlecolor": INK,
        "axes.labelcolor": QUIET,
        "axes.edgecolor": LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": False,
        "text.color": INK,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": QUIET,
        "ytick.labelcolor": QUIET,
        "ytick.major.size": 0,
        "xtick.major.size": 3,
        "legend.fontsize": 11,
        "path.simplify": True,
    }
    with matplotlib.rc_context():
        # Not the user's settings: equal reports give equal pictures everywhere.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def blank(width: int, height: int) -> Figure:
    """A figure without axes, in pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI)


def svg(figure: Figure, label: str) -> str:
    """Render a figure as an ``<svg>`` element that scales, with the page's fonts and colours."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Names that nothing refers to would be there once for every picture of the page.
    used = {*re.findall(r"url\(#([^)]+)\)", text), *re.findall(r'href="#([^"]+)"', text)}
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    box = re.search(r'viewBox="([^"]*)"', text)
    opening = (
        f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{label}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    text = re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)
    text = re.sub(r"font: (?:bold |700 )?([\d.]+px)[^;\"]*", _font, text)
    for colour, name in _COLOURS.items():
        text = text.replace(colour, name)
    return text.strip()


def _font(found: re.Match[str]) -> str:
    weight = "600" if "bold" in found[0] or "700" in found[0] else "400"
    return f"font-size: {found[1]}; font-weight: {weight}"
