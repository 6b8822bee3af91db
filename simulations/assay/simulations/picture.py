"""A chart as a PNG: the very SVG that stands in the page, in the page's light colours.

Drawn by resvg with fonts of our own, so that a picture looks the same on a server that has no fonts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap

from assay.models.page import STYLE as BASE
from assay.models.svg import WIDTH, label
from assay.simulations.page import STYLE, columns

__all__ = ["png"]

_FONTS = Path(__file__).with_name("fonts")
_FAMILY = "DejaVu Sans"
_MARGIN = 14.0
_LINE = 17.0
_HEAD, _SOURCE = 44, 66  # characters that fit into the width of one chart
_ZOOM, _ZOOM_OF_SEVERAL = 3.0, 2.0  # one chart becomes 1104 pixels wide: sharp on a slide
_WHITE = "#ffffff"


def png(charts: Sequence[str], *, heading: str, source: str) -> bytes:
    """Return charts side by side as the bytes of a PNG.

    Args:
        charts: at least one, as :func:`assay.models.svg.svg` returns it.
        heading: set above them, wrapped.
        source: what they show and where it comes from, in small letters below.

    Raises:
        ValueError: a chart is no SVG.
    """
    import resvg_py  # late: only a sweep's report draws pictures

    drawn: bytes = resvg_py.svg_to_bytes(
        svg_string=_framed(charts, heading, source),
        style_sheet=_light(),
        background=_WHITE,
        zoom=_ZOOM if len(charts) == 1 else _ZOOM_OF_SEVERAL,
        font_files=[str(path) for path in sorted(_FONTS.glob("*.ttf"))],
        font_family=_FAMILY,
    )
    return drawn


def _framed(charts: Sequence[str], heading: str, source: str) -> str:
    wide = columns(len(charts))
    heads, sources = wrap(heading, _HEAD * wide), wrap(source, _SOURCE * wide)
    top = _MARGIN + _LINE * len(heads) + 6
    words = [label(_MARGIN, _MARGIN + 12 + _LINE * i, line, "heading") for i, line in enumerate(heads)]
    placed = []
    for first in range(0, len(charts), wide):
        row = charts[first : first + wide]
        tall = max(_height(chart) for chart in row)
        for index, chart in enumerate(row):
            place = f'x="{_MARGIN + index * (WIDTH + 2 * _MARGIN):g}" y="{top:g}"'
            size = f'width="{WIDTH:g}" height="{_height(chart):g}"'
            placed.append(chart.replace("<svg ", f"<svg {place} {size} ", 1))
        top += tall + 18
    words += [label(_MARGIN, top + 13 * i, line, "source") for i, line in enumerate(sources)]
    high = top + 13 * len(sources) - 13 + _MARGIN
    size = f'width="{wide * (WIDTH + 2 * _MARGIN):g}" height="{high:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(words)}{"".join(placed)}</svg>'


def _height(chart: str) -> float:
    found = re.match(rf'<svg viewBox="0 0 {WIDTH:g} (\S+)"', chart)
    if found is None:
        raise ValueError("a chart begins with <svg viewBox")
    return float(found[1])


@cache
def _light() -> str:
    """Return the pages' style sheets as resvg reads them: without media queries and variables."""
    text = "".join(sheet.read_text(encoding="utf-8") for sheet in (BASE, STYLE))
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", text)
    colours = dict(re.findall(r"--(\w+): (#\w+)", text))
    text = re.sub(r"var\(--(\w+)\)", lambda name: colours[name[1]], text)
    text = re.sub(r"system-ui[^;]*", f'"{_FAMILY}"', text).replace("font-weight: 650", "font-weight: bold")
    return (
        text + "svg .heading { font-size: 13.5px; font-weight: bold; }"
        f"svg .source {{ font-size: 9.5px; fill: {colours['quiet']}; }}"
    )
