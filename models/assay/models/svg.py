"""Primitives of small charts as inline SVG: a scale, bars, markers, paths and labels.

Every function is pure and returns markup; colours, dashes and fonts come from the page's style sheet
through class names. A chart is 340 units wide, so that its text stays readable on a phone.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["WIDTH", "Point", "Span", "bar", "clipped", "label", "marker", "path", "safe", "segment", "svg"]

WIDTH = 340.0
# Marks that turn the reading direction could make a name read as another one.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

Point = tuple[float, float]


def safe(text: str) -> str:
    """Escape ``text`` for HTML and SVG, in content and attributes; unprintable characters become U+FFFD."""
    kept = (
        "\ufffd" if c in _TURNING or (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") else c
        for c in text
    )
    return html.escape("".join(kept), quote=True)


def clipped(text: str, longest: int) -> str:
    """Return ``text``, cut to ``longest`` characters with an ellipsis; not escaped."""
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


@dataclass(frozen=True, kw_only=True)
class Span:
    """A linear map from values (``low``..``high``) to chart units (``start``..``stop``).

    Values outside are drawn at the edge; a span without extent maps everything to ``start``.
    """

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the place of ``value`` in chart units."""
        if not self.high > self.low:
            return self.start
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)


def svg(key: str, *, title: str, desc: str, height: float, parts: Iterable[str]) -> str:
    """Return a chart, announced by ``title`` and ``desc``; no other on the page has the same ``key``."""
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-labelledby="{key}-title {key}-desc">'
        f'<title id="{key}-title">{safe(title)}</title><desc id="{key}-desc">{safe(desc)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def label(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start", turn: float = 0) -> str:
    """Return ``words`` at a baseline point; ``anchor`` is start, middle or end, ``turn`` is in degrees."""
    turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"{turned}>{safe(words)}</text>'


def path(points: Sequence[Point], kind: str, *, closed: bool = False) -> str:
    """Return a path through chart points."""
    places = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{places}{"Z" if closed else ""}" class="{kind}"/>'


def segment(start: Point, stop: Point, kind: str) -> str:
    """Return a straight line between two chart points."""
    return path([start, stop], kind)


def bar(left: float, top: float, width: float, height: float, kind: str) -> str:
    """Return a rectangle in chart units; if not empty, at least half a unit wide, so that it shows."""
    drawn = max(width, 0.5) if width > 0 else 0.0
    return f'<rect x="{left:.1f}" y="{top:.1f}" width="{drawn:.1f}" height="{height:.1f}" class="{kind}"/>'


def marker(shape: str, x: float, y: float, kind: str, size: float = 5.5) -> str:
    """Return a circle, square, diamond or tick mark around a chart point; shapes tell series apart."""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" class="{kind}"/>'
    if shape == "tick":
        return segment((x, y - size), (x, y + size), kind)
    reach = size * (1.3 if shape == "diamond" else 0.9)
    corners = {
        "square": [
            (x - reach, y - reach),
            (x + reach, y - reach),
            (x + reach, y + reach),
            (x - reach, y + reach),
        ],
        "diamond": [(x, y - reach), (x + reach, y), (x, y + reach), (x - reach, y)],
    }[shape]
    return path(corners, kind, closed=True)
