"""A chart as a PNG: the very SVG that stands in the page, in the page's light colours.

Drawn by resvg with fonts of our own, so that a picture looks the same on a server that has no fonts.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from textwrap import wrap

from assay.models.page import STYLE as BASE
from assay.models.svg import WIDTH, label
from assay.simulations.page import STYLE

__all__ = ["png"]

_FONTS = Path(__file__).with_name("fonts")
_FAMILY = "DejaVu Sans"
_MARGIN = 14.0
_LINE = 17.0
_PER_LINE = 44  # characters of a heading that fit beside each other
_ZOOM = 4.0  # 368 units become 1472 pixels: sharp on a slide
_WHITE = "#ffffff"


def png(chart: str, *, heading: str, source: str) -> bytes:
    """Return a chart as the bytes of a PNG.

    Args:
        chart: as :func:`assay.models.svg.svg` returns it.
        heading: set above it, wrapped.
        source: what it shows and where it comes from, in small letters below.

    Raises:
        ValueError: ``chart`` is no SVG.
    """
    import resvg_py  # late: only a sweep's report draws pictures

    framed = _framed(chart, wrap(heading, _PER_LINE), wrap(source, _PER_LINE + 12))
    drawn: bytes = resvg_py.svg_to_bytes(
        svg_string=framed,
        style_sheet=_light(),
        background=_WHITE,
        zoom=_ZOOM,
        font_files=[str(path) for path in sorted(_FONTS.glob("*.ttf"))],
        font_family=_FAMILY,
    )
    return drawn


def _framed(chart: str, heading: list[str], source: list[str]) -> str:
    found = re.match(r'<svg viewBox="0 0 (\S+) (\S+)"', chart)
    if found is None:
        raise ValueError("a chart begins with <svg viewBox")
    tall = float(found[2])
    top = _MARGIN + _LINE * len(heading) + 6
    below = top + tall + 18
    height = below + 13 * len(source) - 13 + _MARGIN
    inner = chart.replace(
        "<svg ", f'<svg x="{_MARGIN:g}" y="{top:g}" width="{found[1]}" height="{tall:g}" ', 1
    )
    words = [label(_MARGIN, _MARGIN + 12 + _LINE * i, line, "heading") for i, line in enumerate(heading)]
    words += [label(_MARGIN, below + 13 * i, line, "source") for i, line in enumerate(source)]
    size = f'width="{WIDTH + 2 * _MARGIN:g}" height="{height:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(words)}{inner}</svg>'


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
