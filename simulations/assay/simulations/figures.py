"""The charts of a report; each returns one SVG, drawn from the report alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from assay.models.digits import percent, short
from assay.models.metrics import auroc, roc_curve
from assay.models.svg import WIDTH, Span, bar, clipped, label, marker, segment, svg
from assay.simulations.charts import Plot, axes, legend, line, steps, ticks
from assay.simulations.findings import HolderLine, Report
from assay.simulations.tallies import CalibrationRow

__all__ = [
    "SHOWN_HOLDERS",
    "calibration_chart",
    "comparison_chart",
    "privacy_chart",
    "roc_chart",
    "score_chart",
]

SHOWN_HOLDERS = 12  # in the chart of privacy budgets; the table has more
_SQUARE = Plot(x=Span(low=0, high=1, start=54, stop=WIDTH - 20), y=Span(low=0, high=1, start=276, stop=10))
_SQUARE_HEIGHT = 316
_ROC_POINTS = 257  # more would not be visible


def comparison_chart(report: Report) -> str:
    """Draw AUROC of the holders alone, of the federated and of the pooled model as dots on one axis."""
    local, federated, pooled = report.comparison.local, report.comparison.federated, report.comparison.pooled
    singles = [h.local_auroc for h in report.holders if h.local_auroc is not None]
    rows = [("Together, private", federated.auroc, "circle", "federated")]
    if local is not None:
        rows.insert(0, ("Each holder alone, average", local.mean, "diamond", "local"))
        singles += [local.low, local.high]
    if pooled is not None:
        rows.append(("All records pooled, same ε", pooled.auroc, "square", "pooled"))
    if report.comparison.neural is not None:
        rows.append(("Neural network, together, same ε", report.comparison.neural.auroc, "circle", "hollow"))
    if report.comparison.unprotected is not None:
        rows.append(
            ("All records pooled, no privacy", report.comparison.unprotected.auroc, "square", "hollow")
        )
    bottom = 54.0 * len(rows) + 4
    x = _auroc_span([*singles, *(value for _, value, _, _ in rows)])
    plot = Plot(x=x, y=Span(low=0, high=1, start=bottom, stop=4))
    parts = [
        axes(
            plot,
            x_ticks=ticks(x.low, x.high),
            y_ticks=(),
            x_words=lambda v: f"{v:.2f}",
            y_words=str,
            x_title="AUROC (0.5 = coin toss, 1 = perfect)",
            y_title="",
        ),
        segment((x(federated.auroc), 4), (x(federated.auroc), bottom), "guide"),
    ]
    for index, (words, value, shape, kind) in enumerate(rows):
        y = 54.0 * index + 36
        if kind == "local":  # below the average, which would cover them
            parts.append(segment((x(min(singles)), y + 12), (x(max(singles)), y + 12), "line local solid"))
            parts += [marker("circle", x(single), y + 12, "mark local hollow", 3) for single in singles]
        beside, anchor = (x(value) - 12, "end") if x(value) > 70 else (x(value) + 12, "start")
        parts += [
            label(14, y - 16, words, "strong halo"),
            label(beside, y + 4, f"{value:.3f}", "halo", anchor=anchor),
            marker(shape, x(value), y, f"mark {kind}"),
        ]
    desc = "; ".join(f"{words}: AUROC {value:.3f}" for words, value, _, _ in rows)
    title = "AUROC alone, together and pooled"
    return svg("comparison", title=title, desc=desc, height=bottom + 40, parts=parts)


def _auroc_span(values: list[float]) -> Span:
    """Fit an axis that begins at a coin toss, or below it where a value is."""
    low = min(0.5, math.floor(min(values) * 20) / 20)
    high = min(1.0, max(0.6, math.ceil(max(values) * 20 + 0.2) / 20))
    return Span(low=low, high=high, start=14, stop=WIDTH - 14)


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
    for kind, words, probability in curves:
        false, true = roc_curve(report.y_true, probability)
        rows.append((f"line {kind}", f"{words} {auroc(report.y_true, probability):.3f}"))
        parts.append(line(_SQUARE, *_thinned(false, true), kind))
        if kind == "federated":
            gap, gap_words = _largest_gap(false, true)
            parts.append(gap)
    rows.append(("gap", gap_words))
    x, y = _SQUARE.at(0.34, 0.05)
    parts.append(legend(x, y - 17 * (len(rows) - 1), rows))
    desc = "ROC curves; AUROC: " + "; ".join(words for _, words in rows)
    return svg("roc", title="ROC curve", desc=desc, height=_SQUARE_HEIGHT, parts=parts)


def _thinned(
    false: NDArray[np.float64], true: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pick points of a curve at even steps along it."""
    keep = np.searchsorted(false + true, np.linspace(0, 2, _ROC_POINTS))
    keep = np.unique(np.minimum(keep, false.size - 1))
    return false[keep], true[keep]


def _largest_gap(false: NDArray[np.float64], true: NDArray[np.float64]) -> tuple[str, str]:
    """Draw the largest distance to the diagonal, which is the KS; return it with its words."""
    best = int(np.argmax(np.abs(true - false)))
    low, high = _SQUARE.at(false[best], false[best]), _SQUARE.at(false[best], true[best])
    drawn = segment(low, high, "gap")
    drawn += "".join(segment((x - 4, y), (x + 4, y), "gap") for x, y in (low, high))
    return drawn, f"Largest gap: KS {abs(true[best] - false[best]):.3f}"


def _shares(x_title: str, y_title: str, high: float = 1.0) -> str:
    """Draw square axes from 0 to ``high``, the same for both."""
    plot = _square(high)
    marks = ticks(0, high, 7)
    return axes(
        plot,
        x_ticks=marks,
        y_ticks=marks,
        x_words=lambda v: f"{100 * v:g} %",
        y_words=lambda v: f"{100 * v:g} %",
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
    rows_above = sum(row.observed > row.predicted for row in rows)
    corner = (0.34, 0.11) if 2 * rows_above >= len(rows) else (0.03, 0.97)  # away from the points
    named = [("guide", "As predicted"), ("line federated thin", "Observed, 95 % interval")]
    parts.append(legend(*_SQUARE.at(*corner), named))
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
    high = max(float(heights.max()) for heights in shares.values()) * 1.05
    plot = Plot(
        x=Span(low=scale.low, high=scale.high, start=54, stop=WIDTH - 20),
        y=Span(low=0, high=high, start=220, stop=26),
    )
    parts = [
        axes(
            plot,
            x_ticks=[scale.low + (scale.high - scale.low) * i / 6 for i in range(7)],
            y_ticks=ticks(0, high, 5),
            x_words=lambda v: f"{v:.0f}",
            y_words=lambda v: f"{100 * v:g} %",
            x_title="Score (higher is safer)",
            y_title="Share of each group",
        ),
        steps(plot, edges.tolist(), shares["good"].tolist(), "good"),
        steps(plot, edges.tolist(), shares["bad"].tolist(), "bad"),
        *_names(plot, edges, shares),
    ]
    desc = "Histograms of scores; " + "; ".join(
        f"{kind} outcomes: median {np.median(report.score[report.y_true == outcome]):.0f}"
        for kind, outcome in (("good", 0), ("bad", 1))
    )
    return svg("scores", title="Scores by outcome", desc=desc, height=260, parts=parts)


def _names(plot: Plot, edges: NDArray[np.float64], shares: dict[str, NDArray[np.float64]]) -> list[str]:
    """Name both histograms above the plot, each on the side of the other's peak where its own peak is."""
    good, bad = (plot.x(edges[np.argmax(shares[kind])]) for kind in ("good", "bad"))
    between = min(max((good + bad) / 2, 150.0), WIDTH - 130.0)
    left, right = ("good", "bad") if good < bad else ("bad", "good")
    return [
        label(between - 34, 14, f"{left} outcome", "strong", anchor="end"),
        segment((between - 30, 10), (between - 8, 10), f"line {left}"),
        segment((between + 8, 10), (between + 30, 10), f"line {right}"),
        label(between + 34, 14, f"{right} outcome", "strong"),
    ]


def privacy_chart(holders: tuple[HolderLine, ...]) -> str:
    """Draw for each holder what one person's privacy has cost, against the holder's own cap."""
    shown = holders[:SHOWN_HOLDERS]
    largest = max(max(h.epsilon_spent, h.epsilon_limit or 0.0) for h in shown)
    across = Span(low=0, high=largest, start=2, stop=WIDTH - 4)
    parts, words = [], []
    for index, holder in enumerate(shown):
        y = 42.0 * index + 14
        limit = ", no cap" if holder.epsilon_limit is None else f" of {short(holder.epsilon_limit)}"
        spent = f"ε {short(holder.epsilon_spent)}{limit}"
        words.append(f"{holder.name}: {spent}")
        parts += [label(2, y, clipped(holder.name, 28), "strong"), label(WIDTH - 3, y, spent, anchor="end")]
        if holder.epsilon_limit is not None:
            parts.append(bar(2, y + 7, across(holder.epsilon_limit) - 2, 12, "track"))
            parts.append(marker("tick", across(holder.epsilon_limit), y + 13, "line cap", 9))
        parts.append(bar(2, y + 7, across(holder.epsilon_spent) - 2, 12, "bar federated"))
    return svg(
        "privacy",
        title="Privacy budget spent at each holder",
        desc="; ".join(words),
        height=42.0 * len(shown) + 2,
        parts=parts,
    )
