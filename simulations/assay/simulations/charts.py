"""What charts of a report have in common: a plot with ticks, axes, lines, steps and a legend.

Every function is pure and returns markup, made of the primitives in :mod:`assay.models.svg`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from assay.models.svg import Point, Span, label, path, segment

__all__ = ["Plot", "axes", "legend", "line", "steps", "ticks"]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """The area inside the axes; ``y.start`` is its lower edge."""

    x: Span
    y: Span

    def at(self, x: float, y: float) -> Point:
        """Return the place of a value pair in chart units."""
        return self.x(x), self.y(y)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most ``most`` round numbers (steps of 1, 2 or 5 times a power of ten) from low to high."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [index * step for index in range(first, last + 1)]
    return [low, high]


def line(plot: Plot, xs: Iterable[float], ys: Iterable[float], kind: str) -> str:
    """Return a line through value pairs."""
    return path([plot.at(x, y) for x, y in zip(xs, ys, strict=True)], f"line {kind}")


def steps(plot: Plot, edges: Sequence[float], heights: Sequence[float], kind: str) -> str:
    """Return a histogram's outline with a faint filling: len(edges) = len(heights) + 1."""
    points = [plot.at(edges[0], 0)]
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        points += [plot.at(left, height), plot.at(right, height)]
    points.append(plot.at(edges[-1], 0))
    return path(points, f"fill {kind}", closed=True) + path(points, f"line {kind}")


def axes(
    plot: Plot,
    *,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_words: Callable[[float], str],
    y_words: Callable[[float], str],
    x_title: str,
    y_title: str,
) -> str:
    """Return grid lines, tick labels and titles; the y title is turned, an empty ``y_ticks`` leaves y out."""
    left, right, bottom = plot.x.start, plot.x.stop, plot.y.start
    parts = []
    for value in y_ticks:
        y = plot.y(value)
        parts += [
            segment((left, y), (right, y), "grid"),
            label(left - 5, y + 4, y_words(value), anchor="end"),
        ]
    for value in x_ticks:
        x = plot.x(value)
        parts += [
            segment((x, plot.y.stop), (x, bottom), "grid"),
            label(x, bottom + 15, x_words(value), anchor="middle"),
        ]
    parts.append(segment((left, bottom), (right, bottom), "axis"))
    parts.append(label((left + right) / 2, bottom + 33, x_title, "axis-title", anchor="middle"))
    if y_ticks:
        parts.append(segment((left, plot.y.stop), (left, bottom), "axis"))
        middle = (plot.y.stop + bottom) / 2
        parts.append(label(11, middle, y_title, "axis-title", anchor="middle", turn=-90))
    return "".join(parts)


def legend(x: float, y: float, rows: Sequence[tuple[str, str]]) -> str:
    """Return line samples with words beside them: rows of (kind, words), 17 units apart, downwards."""
    parts = []
    for index, (kind, words) in enumerate(rows):
        height = y + 17 * index
        parts += [
            segment((x, height), (x + 24, height), kind),
            label(x + 30, height + 4, words, "halo"),
        ]
    return "".join(parts)
