"""One person's points as bars: left for points lost, right for points gained."""

from __future__ import annotations

from collections.abc import Sequence

from assay.models.digits import signed
from assay.models.svg import WIDTH, Span, bar, clipped, label, segment, svg

__all__ = ["points_chart"]

_ROW = 37.0
_LINE = 22.0
_SHORT_VALUE = 14


def points_chart(
    key: str,
    *,
    title: str,
    rows: Sequence[tuple[str, str, int]],
    shown: int,
    longest: int,
    before: tuple[str, int] | None = None,
    after: Sequence[tuple[str, str]] = (),
) -> str:
    """Return bars around zero, those with the most points first.

    Args:
        key: of the SVG, see :func:`assay.models.svg.svg`.
        title: what the chart shows, in plain text.
        rows: name, value and points of each feature.
        shown: bars at most; the features with the fewest points are drawn as one, so that the sum is kept.
        longest: characters of name and value that fit on a line.
        before: a line above the bars, words and points, e.g. the starting points.
        after: lines below them, in words.
    """
    ranked = sorted(rows, key=lambda row: -abs(row[2]))
    bars = [(_named(name, value, longest), points) for name, value, points in ranked[:shown]]
    rest = ranked[shown:]
    if rest:
        bars.append((f"{len(rest)} more features", sum(points for _, _, points in rest)))
    reach = max([1, *(abs(points) for _, points in bars)])
    across = Span(low=-reach, high=reach, start=1, stop=WIDTH - 1)
    parts, y = [], 14.0
    if before is not None:
        parts.append(_line(y, before[0], str(before[1])))
        y += _LINE
    for words, points in bars:
        left, right = sorted((across(0), across(points)))
        parts += [
            label(1, y, words),
            label(WIDTH - 1, y, signed(points), "strong halo", anchor="end"),
            bar(left, y + 6, right - left, 10, "bar gain" if points > 0 else "bar loss"),
            segment((across(0), y + 4), (across(0), y + 18), "axis"),
        ]
        y += _ROW
    for words, value in after:
        parts.append(_line(y, words, value))
        y += _LINE
    told = [(words, signed(points)) for words, points in bars]
    told = [*([(before[0], str(before[1]))] if before else []), *told, *after]
    desc = "; ".join(f"{words}: {value}" for words, value in told)
    return svg(key, title=title, desc=desc, height=max(1.0, y - 14), parts=parts)


def _line(y: float, words: str, value: str) -> str:
    return label(1, y, words, "strong") + label(WIDTH - 1, y, value, "strong", anchor="end")


def _named(name: str, value: str, longest: int) -> str:
    """Fit a feature and its value on one line, the value in what the name leaves or in 14 characters."""
    value = clipped(value, max(_SHORT_VALUE, longest - 2 - len(name)))
    return f"{clipped(name, longest - 2 - len(value))}: {value}"
