"""The charts of a sweep over numbers on a logarithmic axis: AUROC, gain by size, run time.

Each returns one SVG. A curve differs from the others by colour, by dash or marker, and by the words at its
end, so that nobody needs the colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from assay.models.digits import count
from assay.models.svg import WIDTH, Span, label, marker, path, segment, svg
from assay.simulations.charts import Plot, axes, line, ticks
from assay.simulations.sweep_cells import Band

__all__ = ["MARKS", "Curve", "Panel", "Series", "curves_charts", "gains_chart", "is_cut", "seconds_chart"]

MARKS = {"federated": "circle", "pooled": "square", "local": "diamond"}
"""Markers by kind of curve; a kind without one is drawn as a line from edge to edge."""

_BESIDE = {"local": 0.87, "pooled": 1.15}  # of a place on the logarithmic axis: 16 units
_LEFT, _RIGHT = 62.0, WIDTH - 116.0  # the rest is for the words at the ends
_APART = 13.5  # lines of text on top of each other
_TALL = 172.0  # of a plot of curves
_TICK = 30.0  # least distance of tick labels on the x axis


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Means at places on the x axis, ascending; ``words`` stand at its end."""

    kind: str
    words: str
    points: tuple[tuple[float, Band], ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves that share axes."""

    heading: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points (x, y) of one kind, with a name."""

    kind: str
    shape: str
    words: str
    points: tuple[tuple[float, float], ...]


def curves_charts(
    name: str, panels: Sequence[Panel], *, title: str, x_title: str, x_words: Callable[[float], str]
) -> tuple[str, ...]:
    """Draw AUROC, one chart per panel, all with the same axes; x is logarithmic and above 0."""
    points = [point for panel in panels for curve in panel.curves for point in curve.points]
    places = sorted({x for x, _ in points})
    ends = places[0], places[-1]
    if len(places) == 1:
        ends, panels = (places[0] / 2, places[0] * 2), [_side_by_side(panel) for panel in panels]
    low, high = _range([each for _, each in points])
    plot = Plot(
        x=Span(low=math.log10(ends[0]), high=math.log10(ends[1]), start=_LEFT, stop=_RIGHT),
        y=Span(low=low, high=high, start=24 + _TALL, stop=24),
    )
    charts = []
    for number, panel in enumerate(panels, start=1):
        parts = [
            label(_LEFT, 14, panel.heading, "strong"),
            _log_axes(plot, places, x_words, x_title, "AUROC"),
            *_drawn(plot, panel.curves),
        ]
        said = (f"{each.words} {each.points[-1][1].mean:.3f}" for each in panel.curves)
        desc = f"At the right end: {', '.join(said)}"
        words = f"{title}: {panel.heading}"
        charts.append(svg(f"{name}-{number}", title=words, desc=desc, height=24 + _TALL + 40, parts=parts))
    return tuple(charts)


def _side_by_side(panel: Panel) -> Panel:
    """Move what has one place on the axis apart, so that marks and intervals do not cover each other."""
    return replace(
        panel,
        curves=tuple(
            replace(curve, points=tuple((x * _BESIDE.get(curve.kind, 1.0), each) for x, each in curve.points))
            for curve in panel.curves
        ),
    )


def is_cut(panels: Sequence[Panel]) -> bool:
    """Say whether an interval does not fit into the charts of :func:`curves_charts`."""
    bands = [each for panel in panels for curve in panel.curves for _, each in curve.points]
    low, high = _range(bands)
    return any(each.ends[0] < low or each.ends[1] > high for each in bands)


def _range(bands: Sequence[Band]) -> tuple[float, float]:
    """Fit an axis to means and intervals; an interval much wider than the means' own range is cut off."""
    means = [each.mean for each in bands]
    reach = max(0.02, 0.6 * (max(means) - min(means)))
    low = max(min(each.ends[0] for each in bands), min(means) - reach, 0.0)
    high = min(max(each.ends[1] for each in bands), max(means) + reach, 1.0)
    # A picture of AUROC that spans less than 0.04 would make chance look like a difference.
    room = max(0.06 * (high - low), 0.02 - (high - low) / 2)
    return max(0.0, low - room), min(1.0, high + room)


def _log_axes(
    plot: Plot, places: Sequence[float], x_words: Callable[[float], str], x_title: str, y_title: str
) -> str:
    """Draw axes with ticks at ``places``, thinned where their labels would touch."""
    kept: list[float] = []
    for place in (math.log10(place) for place in places):
        if not kept or plot.x(place) - plot.x(kept[-1]) >= _TICK:
            kept.append(place)
    y_ticks = ticks(plot.y.low, plot.y.high, 5)
    digits = 2 if len(y_ticks) < 2 or y_ticks[1] - y_ticks[0] > 0.0099 else 3
    return axes(
        plot,
        x_ticks=kept,
        y_ticks=y_ticks,
        x_words=lambda place: x_words(10**place),
        y_words=lambda value: f"{value:.{digits}f}".replace("-", "−"),
        x_title=x_title,
        y_title=y_title,
    )


def _drawn(plot: Plot, curves: Sequence[Curve]) -> list[str]:
    """Draw bands first, then lines and marks, then the words at the ends."""
    parts = [_band(plot, curve) for curve in curves if curve.kind in MARKS]
    for curve in reversed(curves):  # the joint model's on top
        xs = [math.log10(x) for x, _ in curve.points]
        ys = [each.mean for _, each in curve.points]
        if curve.kind not in MARKS:
            xs, ys = [plot.x.low, *xs, plot.x.high], [ys[0], *ys, ys[-1]]
        parts.append(line(plot, xs, ys, curve.kind))
    for curve in reversed(curves):
        if curve.kind in MARKS:
            for x, each in curve.points:
                where = plot.at(math.log10(x), each.mean)
                parts.append(marker(MARKS[curve.kind], *where, f"mark {curve.kind}", 4))
    return parts + _ends(plot, curves)


def _band(plot: Plot, curve: Curve) -> str:
    """Shade the interval between neighbouring points; a point by itself gets a bar."""
    rows = [(math.log10(x), *each.ends) for x, each in curve.points if each.low is not None]
    if len(rows) == 1:
        x, low, high = rows[0]
        return segment(plot.at(x, low), plot.at(x, high), f"line {curve.kind} solid thin")
    there = [plot.at(x, low) for x, low, _ in rows]
    back = [plot.at(x, high) for x, _, high in reversed(rows)]
    return path(there + back, f"fill {curve.kind}", closed=True) if rows else ""


def _ends(plot: Plot, curves: Sequence[Curve]) -> list[str]:
    """Write each curve's last value and name beside its end, none over another."""
    found = sorted(((plot.y(curve.points[-1][1].mean), curve) for curve in curves), key=lambda pair: pair[0])
    parts = []
    heights = _spread([y for y, _ in found], plot.y.stop + 2, plot.y.start - 2)
    for (y, curve), at in zip(found, heights, strict=True):
        x = plot.x(math.log10(curve.points[-1][0])) if curve.kind in MARKS else _RIGHT
        mean = curve.points[-1][1].mean
        parts += [
            path([(x + 5, y), (max(x + 5, _RIGHT + 5), y), (_RIGHT + 14, at)], "guide"),
            label(_RIGHT + 17, at + 4, f"{mean:.3f} {curve.words}", "halo"),
        ]
    return parts


def _spread(heights: Sequence[float], low: float, high: float) -> list[float]:
    """Move ascending heights apart by a line of text, within ``low``..``high`` where there is room."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, low if not found else found[-1] + _APART))
    for index in range(len(found) - 1, -1, -1):
        limit = high if index == len(found) - 1 else found[index + 1] - _APART
        found[index] = min(found[index], limit)
    return found


def gains_chart(
    series: Sequence[Series], trend: Sequence[tuple[float, float]], *, title: str, x_title: str
) -> str:
    """Draw each holder's gain against its own model by its number of records, and averages by size."""
    points = [point for each in series for point in each.points]
    sizes, gains = [math.log10(x) for x, _ in points], [y for _, y in points]
    reach = max(0.0, *gains) - min(0.0, *gains)
    room = max(0.01, 0.1 * reach)  # below zero there must be space for a line of text
    wide = 0.04 * max(max(sizes) - min(sizes), 0.5)
    top = 17.0 * math.ceil((len(series) + bool(trend)) / 2) + 12
    plot = Plot(
        x=Span(low=min(sizes) - wide, high=max(sizes) + wide, start=_LEFT, stop=WIDTH - 24),
        y=Span(low=min(0.0, *gains) - room, high=max(0.0, *gains) + room, start=top + 200, stop=top),
    )
    ends = 10**plot.x.low, 10**plot.x.high
    parts = [_log_axes(plot, _round_sizes(*ends), _amount, x_title, "Gain in AUROC")]
    parts += [
        segment((plot.x.start, plot.y(0)), (plot.x.stop, plot.y(0)), "gap"),
        label(plot.x.start + 4, plot.y(0) + 13, "no gain", "quiet halo"),
    ]
    for each in series:
        kind = f"mark {each.kind} dense"
        parts += [marker(each.shape, *plot.at(math.log10(x), y), kind, 3.6) for x, y in each.points]
    if trend:
        parts.append(line(plot, [math.log10(x) for x, _ in trend], [y for _, y in trend], "trend"))
    for index, each in enumerate(series):
        at = _LEFT + 144 * (index % 2), 10 + 17.0 * (index // 2)
        parts += [marker(each.shape, *at, f"mark {each.kind}", 4.5), label(at[0] + 10, at[1] + 4, each.words)]
    if trend:
        at = _LEFT + 144 * (len(series) % 2), 10 + 17.0 * (len(series) // 2)
        parts += [
            segment((at[0] - 6, at[1]), (at[0] + 8, at[1]), "line trend"),
            label(at[0] + 12, at[1] + 4, "average by size"),
        ]
    desc = f"{count(len(points), 'holder')}; " + "; ".join(
        f"about {_amount(x)} records: {y:+.3f}" for x, y in trend
    )
    return svg("gains", title=title, desc=desc, height=top + 240, parts=parts)


def _round_sizes(low: float, high: float) -> list[float]:
    """Return powers of ten within the ends, with 2 and 5 times those where they span little."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1,) if last - first > 3 else (1, 3) if last - first > 2 else (1, 2, 5)
    found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return [value for value in found if low <= value <= high] or [math.sqrt(low * high)]


def _amount(value: float) -> str:
    return f"{value:,.0f}"


def seconds_chart(points: Sequence[tuple[float, float]], *, title: str, x_title: str) -> str:
    """Draw run times by a size, with their means; the time axis is logarithmic where times differ much."""
    places = sorted({x for x, _ in points})
    means = [(x, sum(mine) / len(mine)) for x in places if (mine := [y for at, y in points if at == x])]
    times = [y for _, y in points]
    scaled = min(times) > 0 and max(times) / min(times) > 30
    at = math.log10 if scaled else float
    low, high = (at(min(times)), at(max(times))) if scaled else (0.0, max(*times, 0.1))
    room = 0.06 * (high - low)
    plot = Plot(
        x=Span(low=math.log10(places[0]), high=math.log10(places[-1]), start=_LEFT + 8, stop=WIDTH - 24),
        y=Span(low=low - scaled * room, high=high + room, start=180, stop=12),
    )
    marks = [at(v) for v in _round_sizes(min(times), max(times))] if scaled else ticks(low, high, 5)
    parts = [
        axes(
            plot,
            x_ticks=[math.log10(x) for x in _apart(plot, places)],
            y_ticks=marks,
            x_words=lambda place: _amount(10**place),
            y_words=lambda value: f"{10**value if scaled else value:,.3g}",
            x_title=x_title,
            y_title="Training, seconds",
        ),
        line(plot, [math.log10(x) for x, _ in means], [at(y) for _, y in means], "federated"),
    ]
    parts += [marker("circle", *plot.at(math.log10(x), at(y)), "mark federated dense", 4) for x, y in points]
    desc = "; ".join(f"{_amount(x)}: {y:.3g} s on average" for x, y in means)
    return svg("seconds", title=title, desc=desc, height=220, parts=parts)


def _apart(plot: Plot, places: Sequence[float]) -> list[float]:
    kept: list[float] = []
    for place in places:
        if not kept or plot.x(math.log10(place)) - plot.x(math.log10(kept[-1])) >= _TICK:
            kept.append(place)
    return kept
