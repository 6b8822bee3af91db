"""The charts of a sweep that have one row per thing: groups, canaries, attacks. Each returns one SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from assay.models.digits import percent, short
from assay.models.svg import WIDTH, Span, bar, clipped, label, marker, segment, svg
from assay.simulations.charts import ticks
from assay.simulations.sweep_cells import Band

__all__ = [
    "SHOWN_ROWS",
    "AttackRow",
    "AuditRow",
    "GroupRow",
    "attacks_chart",
    "audit_chart",
    "floored",
    "groups_chart",
]

SHOWN_ROWS = 14  # of a chart; the table has more
_FACETS = ((18.0, 104.0), (127.0, 213.0), (236.0, WIDTH - 18.0))
_ROW = 40.0
_LABEL = 34.0  # width of a tick label


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One group: what the joint model does to it, and what the same model without privacy does.

    Each a mean over seeds, or None where it was not measured or the group is too small.
    """

    group: str
    persons: float
    auroc: Band | None
    approval_rate: Band | None
    predicted: Band | None
    observed: Band | None
    open_auroc: Band | None
    open_approval_rate: Band | None


def groups_chart(key: str, rows: Sequence[GroupRow], *, title: str) -> str:
    """Draw AUROC, approval rate, and predicted beside observed rates, one row per group."""
    rows = rows[:SHOWN_ROWS]
    top, bottom = 20.0, 20.0 + _ROW * len(rows)
    facets = (
        ("AUROC", "{:.2f}", lambda r: ((r.open_auroc, "square", "open"), (r.auroc, "circle", "federated"))),
        (
            "Approved",
            "{:.0%}",
            lambda r: ((r.open_approval_rate, "square", "open"), (r.approval_rate, "circle", "federated")),
        ),
        (
            "Bad outcome",
            "{:.0%}",
            lambda r: ((r.observed, "diamond", "pooled"), (r.predicted, "circle", "federated")),
        ),
    )
    parts = []
    for (start, stop), (heading, form, read) in zip(_FACETS, facets, strict=True):
        parts.append(label(start, 12, heading, "quiet"))
        parts += _facet(rows, read, Span(low=0, high=1, start=start, stop=stop), form, top, bottom)
    parts.append(_group_names(rows, top))
    parts.append(
        _key(
            bottom + 34,
            (
                ("circle", "federated", "with privacy"),
                ("square", "open", "without"),
                ("diamond", "pooled", "observed"),
            ),
        )
    )
    desc = "; ".join(f"{row.group}: {_said(row)}" for row in rows)
    return svg(key, title=title, desc=desc, height=bottom + 46, parts=parts)


def _said(row: GroupRow) -> str:
    found = []
    if row.auroc is not None:
        found.append(f"AUROC {row.auroc.mean:.3f}")
    if row.approval_rate is not None:
        found.append(f"approved {percent(row.approval_rate.mean)}")
    return ", ".join(found) or "too small"


def _group_names(rows: Sequence[GroupRow], top: float) -> str:
    parts = []
    for index, row in enumerate(rows):
        y = top + _ROW * index
        parts += [
            segment((2, y), (WIDTH - 2, y), "grid"),
            label(8, y + 15, clipped(row.group, 28), "strong halo"),
            label(WIDTH - 8, y + 15, f"{row.persons:,.0f} records", "quiet halo", anchor="end"),
        ]
    return "".join(parts)


def _facet(
    rows: Sequence[GroupRow],
    read: Callable[[GroupRow], Sequence[tuple[Band | None, str, str]]],
    x: Span,
    form: str,
    top: float,
    bottom: float,
) -> list[str]:
    """Draw one column of marks with an axis of its own; nothing where no group has a value."""
    found = [each for row in rows for each, _, _ in read(row) if each is not None]
    if not found:
        return [label((x.start + x.stop) / 2, (top + bottom) / 2, "not measured", "quiet", anchor="middle")]
    low, high = min(each.ends[0] for each in found), max(each.ends[1] for each in found)
    room = max(0.01, 0.08 * (high - low))
    x = Span(low=max(0.0, low - room), high=min(1.0, high + room), start=x.start, stop=x.stop)
    parts = []
    marks = ticks(x.low, x.high, 3)
    if len(marks) == 3 and x(marks[1]) - x(marks[0]) < 1.5 * _LABEL:
        marks = marks[::2]
    for value in marks:
        parts += [
            segment((x(value), top), (x(value), bottom), "grid"),
            label(x(value), bottom + 14, form.format(value), anchor=_anchor(x(value), x)),
        ]
    parts.append(segment((x.start, bottom), (x.stop, bottom), "axis"))
    for index, row in enumerate(rows):
        y = top + _ROW * index + 27
        for each, shape, kind in read(row):
            if each is not None:
                style = f"line {kind} solid thin"
                parts += [segment((x(each.ends[0]), y), (x(each.ends[1]), y), style)] * (each.low is not None)
                parts.append(marker(shape, x(each.mean), y, f"mark {kind}", 4.5))
    return parts


def _anchor(at: float, x: Span) -> str:
    """Keep a tick's label within its own column."""
    half = _LABEL / 2
    return "start" if at - x.start < half else "end" if x.stop - at < half else "middle"


def _key(y: float, rows: Sequence[tuple[str, str, str]]) -> str:
    """Name the marks on one line."""
    parts = []
    for index, (shape, kind, words) in enumerate(rows):
        x = 14 + 116.0 * index
        parts += [marker(shape, x, y - 4, f"mark {kind}", 4.5), label(x + 10, y, words)]
    return "".join(parts)


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """What canaries showed in one setting, in the run that is in the middle of its seeds by lower bound.

    With a single bound the claim is exceeded by chance in one of so many runs; the lower of the two in the
    middle is exceeded by chance more rarely, and the highest of several would be more often.

    Attributes:
        words: the setting.
        lower_bound: of epsilon.
        claimed: epsilon, above 0.
        estimate: of epsilon in the same run if the noise is Gaussian, or None.
        ends: its interval, or Nones.
    """

    words: str
    lower_bound: float
    claimed: float
    estimate: float | None = None
    ends: tuple[float | None, float | None] = (None, None)


def audit_chart(rows: Sequence[AuditRow]) -> str:
    """Draw the epsilon that an attack proves as a share of the claimed one; beyond the mark is a breach."""
    rows = rows[:SHOWN_ROWS]
    most = max(
        1.05, *(max(row.lower_bound, row.estimate or 0, row.ends[1] or 0) / row.claimed for row in rows)
    )
    across = Span(low=0, high=min(most, 3.0), start=2, stop=WIDTH - 6)
    parts, words = [], []
    for index, row in enumerate(rows):
        y = 42.0 * index + 14
        beyond = row.lower_bound > row.claimed
        said = f"at least {floored(row.lower_bound)} of {short(row.claimed)}"
        words.append(f"{row.words}: {said}{', more than claimed' if beyond else ''}")
        parts += [
            label(2, y, row.words, "strong"),
            label(WIDTH - 3, y, said, anchor="end"),
            bar(2, y + 7, across(1.0) - 2, 12, "track"),
            bar(
                2,
                y + 7,
                across(row.lower_bound / row.claimed) - 2,
                12,
                "bar open" if beyond else "bar federated",
            ),
            marker("tick", across(1.0), y + 13, "line cap", 9),
        ]
        if row.estimate is not None:
            low, high = (across((end or 0) / row.claimed) for end in row.ends)
            parts += [
                segment((low, y + 13), (high, y + 13), "gap"),
                marker("diamond", across(row.estimate / row.claimed), y + 13, "mark pooled", 4),
            ]
    return svg(
        "canaries",
        title="What canaries prove, against the claim",
        desc="; ".join(words),
        height=42.0 * len(rows) + 2,
        parts=parts,
    )


def floored(value: float) -> str:
    """Return a lower bound with three decimals, never rounded up: it is a claim about what was proved."""
    return f"{math.floor(value * 1000) / 1000:.3f}"


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """One kind of attack: how often holders made it, and how often it went on to the end of a run."""

    words: str
    made: int
    believed: int


def attacks_chart(rows: Sequence[AttackRow]) -> str:
    """Draw what share of attacks was stopped, and what share went on to the end of its run."""
    rows = rows[:SHOWN_ROWS]
    across = Span(low=0, high=1, start=2, stop=WIDTH - 4)
    parts, words = [], []
    for index, row in enumerate(rows):
        y = 42.0 * index + 14
        stopped = row.made - row.believed
        said = f"{stopped:,} of {row.made:,} stopped"
        words.append(f"{row.words}: {said}")
        middle = across(stopped / row.made)
        parts += [
            label(2, y, row.words, "strong"),
            label(WIDTH - 3, y, said, anchor="end"),
            bar(2, y + 7, middle - 2, 12, "bar federated"),
            bar(middle, y + 7, across(1.0) - middle, 12, "bar believed"),
        ]
    return svg(
        "attacks",
        title="Attacks that were stopped",
        desc="; ".join(words),
        height=42.0 * len(rows) + 2,
        parts=parts,
    )
