"""The charts of a report; each returns one SVG, drawn from the report alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from assay.models.metrics import roc_curve
from assay.simulations.charts import (
    WIDTH,
    Plot,
    Span,
    axes,
    bar,
    clipped,
    label,
    legend,
    line,
    marker,
    segment,
    steps,
    svg,
    ticks,
)
from assay.simulations.findings import HolderLine, PersonLine, Report
from assay.simulations.tallies import CalibrationRow
from assay.simulations.wording import percent, short, signed

__all__ = [
    "SHOWN_HOLDERS",
    "SHOWN_POINTS",
    "calibration_chart",
    "comparison_chart",
    "points_chart",
    "privacy_chart",
    "roc_chart",
    "score_chart",
]

SHOWN_HOLDERS = 12  # in the chart of privacy budgets; the table has more
SHOWN_POINTS = 8  # features with the most points, per person
_SQUARE = Plot(x=Span(low=0, high=1, start=48, stop=WIDTH - 12), y=Span(low=0, high=1, start=290, stop=10))
_SQUARE_HEIGHT = 330
_ROC_POINTS = 257  # more would not be visible
_LARGEST_KS_LABEL = 0.25  # a smaller gap has no room for its label


def comparison_chart(report: Report) -> str:
    """Draw AUROC of the holders alone, of the federated and of the pooled model as dots on one axis."""
    local, federated, pooled = report.comparison.local, report.comparison.federated, report.comparison.pooled
    singles = [h.local_auroc for h in report.holders if h.local_auroc is not None]
    values = [federated.auroc, *singles]
    rows = [("Together, private", federated.auroc, "circle", "federated")]
    if local is not None:
        values += [local.low, local.high]
        rows.insert(0, ("Each holder alone, average", local.mean, "diamond", "local"))
    if pooled is not None:
        values.append(pooled.auroc)
        rows.append(("All records pooled, no privacy", pooled.auroc, "square", "pooled"))
    low = min(0.5, math.floor(min(values) * 20) / 20)
    high = min(1.0, math.ceil(max(values) * 20 + 0.2) / 20)
    bottom = 50.0 * len(rows) + 4
    plot = Plot(
        x=Span(low=low, high=high, start=14, stop=WIDTH - 14), y=Span(low=0, high=1, start=bottom, stop=4)
    )
    parts = [
        axes(
            plot,
            x_ticks=ticks(low, high),
            y_ticks=(),
            x_words=lambda v: f"{v:.2f}",
            y_words=str,
            x_title="AUROC (0.5 = coin toss, 1 = perfect)",
            y_title="",
        ),
        segment((plot.x(federated.auroc), 4), (plot.x(federated.auroc), bottom), "guide"),
    ]
    for index, (words, value, shape, kind) in enumerate(rows):
        y = 50.0 * index + 38
        parts += [
            label(14, y - 16, words, "strong halo"),
            label(WIDTH - 14, y - 16, f"{value:.3f}", "strong halo", anchor="end"),
        ]
        if kind == "local" and local is not None:
            parts.append(segment((plot.x(local.low), y), (plot.x(local.high), y), "line local solid"))
            parts += [marker("circle", plot.x(single), y, "mark local hollow", 3.5) for single in singles]
        parts.append(marker(shape, plot.x(value), y, f"mark {kind}"))
    desc = "; ".join(f"{words}: AUROC {value:.3f}" for words, value, _, _ in rows)
    return svg(
        "comparison", title="AUROC alone, together and pooled", desc=desc, height=bottom + 40, parts=parts
    )


def roc_chart(report: Report) -> str:
    """Draw the share of bad outcomes found against the share of good ones wrongly flagged."""
    curves = [("federated", "Federated", report.probability)]
    if report.pooled_probability is not None:
        curves.append(("pooled", "Pooled", report.pooled_probability))
    if report.local_probability is not None:
        curves.append(("local", "Best holder alone", report.local_probability))
    parts = [
        _shares("Good wrongly flagged", "Bad found"),
        segment(_SQUARE.at(0, 0), _SQUARE.at(1, 1), "guide"),
    ]
    x, y = _SQUARE.at(0.8, 0.8)
    parts.append(label(x, y + 14, "coin toss", "quiet", anchor="middle", turn=-45))
    rows = []
    for kind, words, probability in reversed(curves):
        false, true = roc_curve(report.y_true, probability)
        area = float(np.sum(np.diff(false) * (true[1:] + true[:-1])) / 2)
        rows.append((kind, f"{words} {area:.3f}"))
        parts.append(line(_SQUARE, *_thinned(false, true), kind))
        if kind == "federated":
            parts.append(_largest_gap(false, true))
    parts.append(legend(*_SQUARE.at(0.4, 0.05 + 0.061 * (len(rows) - 1)), rows[::-1]))
    desc = "ROC curves; AUROC: " + "; ".join(words for _, words in rows[::-1])
    return svg("roc", title="ROC curve", desc=desc, height=_SQUARE_HEIGHT, parts=parts)


def _thinned(
    false: NDArray[np.float64], true: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pick points of a curve at even steps along it."""
    keep = np.searchsorted(false + true, np.linspace(0, 2, _ROC_POINTS))
    keep = np.unique(np.minimum(keep, false.size - 1))
    return false[keep], true[keep]


def _largest_gap(false: NDArray[np.float64], true: NDArray[np.float64]) -> str:
    """Draw the largest distance to the diagonal, which is the KS."""
    best = int(np.argmax(np.abs(true - false)))
    gap = abs(float(true[best] - false[best]))
    start, stop = _SQUARE.at(false[best], false[best]), _SQUARE.at(false[best], true[best])
    drawn = segment(start, stop, "guide strong-guide")
    if gap < _LARGEST_KS_LABEL or false[best] > 0.5:
        return drawn
    return drawn + label(start[0] + 5, (start[1] + stop[1]) / 2, f"KS {gap:.3f}", "halo")


def _shares(x_title: str, y_title: str, high: float = 1.0) -> str:
    """Draw square axes from 0 to ``high``, the same for both."""
    plot = _square(high)
    marks = ticks(0, high, 7)
    return axes(
        plot,
        x_ticks=marks,
        y_ticks=marks,
        x_words=lambda v: f"{100 * v:.0f} %",
        y_words=lambda v: f"{100 * v:.0f} %",
        x_title=x_title,
        y_title=y_title,
    )


def _square(high: float) -> Plot:
    x, y = _SQUARE.x, _SQUARE.y
    return Plot(
        x=Span(low=0, high=high, start=x.start, stop=x.stop),
        y=Span(low=0, high=high, start=y.start, stop=y.stop),
    )


def calibration_chart(rows: list[CalibrationRow]) -> str:
    """Draw observed against predicted bad rates with 95 % intervals, on equal axes."""
    largest = max(max(row.predicted, row.high) for row in rows)
    high = min(1.0, max(0.1, math.ceil(largest * 10) / 10))
    plot = _square(high)
    parts = [
        _shares("Predicted bad rate", "Observed bad rate", high),
        segment(plot.at(0, 0), plot.at(high, high), "guide"),
    ]
    for row in rows:
        x, y = plot.at(row.predicted, row.observed)
        top, bottom = plot.y(row.high), plot.y(row.low)
        parts.append(segment((x, bottom), (x, top), "line federated thin"))
        parts += [segment((x - 4, end), (x + 4, end), "line federated thin") for end in (bottom, top)]
        parts.append(marker("circle", x, y, "mark federated", 4.5))
    x, y = plot.at(0.88 * high, 0.88 * high)
    parts.append(label(x, y + 15, "as predicted", "quiet halo", anchor="middle", turn=-45))
    desc = "; ".join(f"predicted {percent(row.predicted)}, observed {percent(row.observed)}" for row in rows)
    return svg(
        "calibration", title="Predicted and observed bad rates", desc=desc, height=_SQUARE_HEIGHT, parts=parts
    )


def score_chart(report: Report) -> str:
    """Draw the distribution of scores for good and bad outcomes, each as shares of its own group."""
    scale = report.scale
    edges = np.linspace(scale.low, scale.high, 31)
    shares = {}
    for kind, outcome in (("good", 0.0), ("bad", 1.0)):
        counts, _ = np.histogram(report.score[report.y_true == outcome], bins=edges)
        shares[kind] = counts / counts.sum()
    high = max(float(heights.max()) for heights in shares.values()) * 1.12
    plot = Plot(
        x=Span(low=scale.low, high=scale.high, start=48, stop=WIDTH - 12),
        y=Span(low=0, high=high, start=210, stop=24),
    )
    parts = [
        axes(
            plot,
            x_ticks=[scale.low + (scale.high - scale.low) * i / 6 for i in range(7)],
            y_ticks=ticks(0, high, 5),
            x_words=lambda v: f"{v:.0f}",
            y_words=percent,
            x_title="Score (higher is safer)",
            y_title="Share of each group",
        ),
        steps(plot, edges.tolist(), shares["good"].tolist(), "good"),
        steps(plot, edges.tolist(), shares["bad"].tolist(), "bad"),
        *_peak_labels(plot, edges, shares),
    ]
    desc = "Histograms of scores; " + "; ".join(
        f"{kind} outcomes: median {np.median(report.score[report.y_true == outcome]):.0f}"
        for kind, outcome in (("good", 0), ("bad", 1))
    )
    return svg("scores", title="Scores by outcome", desc=desc, height=250, parts=parts)


def _peak_labels(plot: Plot, edges: NDArray[np.float64], shares: dict[str, NDArray[np.float64]]) -> list[str]:
    """Name each histogram beside its peak, away from the other one."""
    peaks = {kind: int(np.argmax(heights)) for kind, heights in shares.items()}
    leftmost = "good" if peaks["good"] < peaks["bad"] else "bad"
    parts = []
    for kind, peak in peaks.items():
        to_left = kind == leftmost
        x = plot.x(edges[peak]) - 5 if to_left else plot.x(edges[peak + 1]) + 5
        words = f"{kind} outcome"
        room = 6.4 * len(words)  # a generous width of the text
        x = max(x, plot.x.start + room + 4) if to_left else min(x, plot.x.stop - room)
        y = plot.y(float(shares[kind][peak])) + 2
        parts.append(label(x, y, words, f"strong halo {kind}-words", anchor="end" if to_left else "start"))
    return parts


def privacy_chart(holders: tuple[HolderLine, ...]) -> str:
    """Draw for each holder what one person's privacy has cost, against the holder's own cap."""
    shown = holders[:SHOWN_HOLDERS]
    largest = max(max(h.epsilon_spent, h.epsilon_limit or 0.0) for h in shown)
    across = Span(low=0, high=largest, start=14, stop=WIDTH - 16)
    parts, words = [], []
    for index, holder in enumerate(shown):
        y = 42.0 * index + 14
        limit = "no cap" if holder.epsilon_limit is None else f"of {holder.epsilon_limit:.3g}"
        spent = f"ε {holder.epsilon_spent:.3g} {limit}"
        words.append(f"{holder.name}: {spent}")
        parts += [label(14, y, clipped(holder.name, 28), "strong"), label(WIDTH - 14, y, spent, anchor="end")]
        if holder.epsilon_limit is not None:
            parts.append(bar(14, y + 7, across(holder.epsilon_limit) - 14, 12, "track"))
            parts.append(marker("tick", across(holder.epsilon_limit), y + 13, "line cap", 9))
        parts.append(bar(14, y + 7, across(holder.epsilon_spent) - 14, 12, "bar federated"))
    return svg(
        "privacy",
        title="Privacy budget spent at each holder",
        desc="; ".join(words),
        height=42.0 * len(shown) + 2,
        parts=parts,
    )


def points_chart(person: PersonLine, key: str) -> str:
    """Draw the features with the most points, left for points lost and right for points gained."""
    ranked = sorted(person.points, key=lambda row: -abs(row[2]))
    rows = [
        (f"{clipped(name, 24)}: {clipped(value, 14)}", points)
        for name, value, points in ranked[:SHOWN_POINTS]
    ]
    if ranked[SHOWN_POINTS:]:
        rest = ranked[SHOWN_POINTS:]
        rows.append((f"{len(rest)} more features", sum(points for _, _, points in rest)))
    reach = max([1, *(abs(points) for _, points in rows)])
    across = Span(low=-reach, high=reach, start=14, stop=WIDTH - 14)
    height = 32.0 * len(rows) + 4
    parts = [segment((across(0), 18), (across(0), height), "axis")]
    for index, (words, points) in enumerate(rows):
        y = 32.0 * index + 13
        left, right = sorted((across(0), across(points)))
        parts += [
            label(14, y, words, "halo"),
            label(WIDTH - 14, y, signed(points), "strong halo", anchor="end"),
            bar(left, y + 5, right - left, 9, "bar gain" if points >= 0 else "bar loss"),
        ]
    desc = "; ".join(f"{words}: {signed(points)}" for words, points in rows)
    return svg(key, title=f"Points of {person.title}", desc=desc, height=height, parts=parts)
