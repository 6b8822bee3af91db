"""Sections of a sweep's report that are about all settings: gain, AUROC, holders, run time, how to read it.

Each function returns None where there is nothing to show.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeVar

from assay.models.digits import count, short
from assay.models.page import disclosure, items, paragraph, table
from assay.models.svg import safe
from assay.simulations import sweep_words as words
from assay.simulations.sweep_cells import CURVES, Band, Results
from assay.simulations.sweep_charts import (
    Curve,
    Panel,
    Series,
    curves_charts,
    gains_chart,
    is_cut,
    seconds_chart,
)
from assay.simulations.sweep_page import LISTED, Picture, Section, drawn, span
from assay.simulations.wording import GLOSSARY, SIMULATED, duration

__all__ = ["by_epsilon", "by_holders", "gain", "reading", "sizes", "time"]

_Value = TypeVar("_Value")
_PANELS = 4  # of one picture; the table has more
_SERIES = (("federated", "circle"), ("local", "diamond"), ("open", "square"), ("pooled", "circle"))
_POINTS = 600  # of one series in a chart
_TREND = 6  # points of a trend, each the average of as many holders as the others
_NOT_HERE = ("Points",)  # of the glossary


def gain(sweep: Results) -> Section | None:
    """The gain in every setting, as a table: the answer in one place."""
    if all(sweep.gain(*setting) is None for setting in sweep.settings):
        return None
    rows = [
        (f"{holders:,}", *(words.gain_cell(sweep.gain(holders, epsilon)) for epsilon in sweep.epsilons))
        for holders in sweep.holders
    ]
    heads = ("Holders", *(words.eps(epsilon) for epsilon in sweep.epsilons))
    intro = paragraph(
        "AUROC of the joint model minus the average of the holders' own models at the same ε, and under it "
        "the 95 % interval over seeds: gain where all of it lies above zero, loss where below, else unclear."
    )
    return Section(
        key="gain", heading="The gain in every setting", inner=intro + table("Gain in AUROC", heads, rows)
    )


def by_epsilon(sweep: Results) -> Section | None:
    """AUROC of everything compared against epsilon, one chart for each number of holders."""
    panels = [
        Panel(heading=count(holders, "holder"), curves=_curves(sweep, holders=holders))
        for holders in _picked(sweep.holders)
    ]
    name, heading = "auroc-by-epsilon", "AUROC against privacy"
    x_title = "ε (smaller is more private)"
    charts = curves_charts(name, panels, title=heading, x_title=x_title, x_words=short)
    picture = Picture(
        name=name, heading=heading, charts=charts, caption=words.read_curves(sweep) + _bands(sweep, panels)
    )
    return drawn("epsilon", picture, _settings_table(sweep))


def by_holders(sweep: Results) -> Section | None:
    """AUROC of everything compared against the number of holders, one chart for each epsilon."""
    if len(sweep.holders) == 1:
        return None
    panels = [
        Panel(heading=words.eps(epsilon), curves=_curves(sweep, epsilon=epsilon))
        for epsilon in _picked(sweep.epsilons)
    ]
    name, heading = "auroc-by-holders", "AUROC against the number of holders"
    charts = curves_charts(name, panels, title=heading, x_title="Holders", x_words=lambda v: f"{v:,.0f}")
    picture = Picture(
        name=name, heading=heading, charts=charts, caption=words.read_holders(sweep) + _bands(sweep, panels)
    )
    beside = paragraph(
        "All sides share the same records: with more holders each has fewer. What the joint model loses with "
        "their number is what spreading costs; what a holder alone loses is what being small costs. "
        "The numbers are in the table of “AUROC against privacy”."
    )
    return drawn("holders", picture, beside)


def _curves(sweep: Results, *, holders: int | None = None, epsilon: float | None = None) -> tuple[Curve, ...]:
    """One curve per thing compared, along what is not fixed; those never measured are left out."""
    found = []
    for kind, (name, read) in CURVES.items():
        points = [
            (float(e if holders is not None else h), each)
            for h, e in sweep.settings
            if holders in (None, h) and epsilon in (None, e) and (each := sweep.over(h, e, read)) is not None
        ]
        if points:
            found.append(Curve(kind=kind, words=name, points=tuple(points)))
    return tuple(found)


def _bands(sweep: Results, panels: Sequence[Panel]) -> str:
    cut = " Where one is very wide it is cut off at the edge." if is_cut(panels) else ""
    return f" {words.seeds_note(sweep)}{cut}"


def _picked(values: list[_Value]) -> list[_Value]:
    """Pick as many as fit into a chart, first and last among them."""
    if len(values) <= _PANELS:
        return values
    return [values[round(i * (len(values) - 1) / (_PANELS - 1))] for i in range(_PANELS)]


def _settings_table(sweep: Results) -> str:
    heads = ("Holders, ε", *(name.capitalize() for name, _ in CURVES.values()), "Seeds")
    rows = [
        (
            f"{holders:,}, {short(epsilon)}",
            *(_banded(sweep.over(holders, epsilon, read)) for _, read in CURVES.values()),
            f"{len(sweep.at(holders, epsilon))}",
        )
        for holders, epsilon in sweep.settings[:LISTED]
    ]
    intro = paragraph(
        "Together: the joint model, private. Pooled: all records in one place, at the same ε. Alone: the "
        "average of the holders' own models, at the same ε. No privacy: pooled, without noise or clipping. "
        "True risk: ranking by the risk that the data were drawn with, where it is known. "
        "Levels move with the held-out records from seed to seed; gains, taken within a seed, much less."
    )
    return intro + disclosure(
        "Data table", table("AUROC, mean and 95 % interval over seeds", heads, rows), opened=True
    )


def _banded(each: Band | None) -> str | tuple[str, str]:
    if each is None:
        return "–"
    if each.low is None or each.high is None:
        return f"{each.mean:.4f}"
    return f"{each.mean:.4f}", f"{each.low:.3f}–{each.high:.3f}"


def sizes(sweep: Results) -> Section | None:
    """What single holders gain, at the epsilon that is shown in detail."""
    epsilon = sweep.shown[1]
    found = {
        holders: [
            (float(own["rows"]), cell["auroc"] - own["auroc"])
            for cell in sweep.at(holders, epsilon)
            for own in cell["local"]
            if own["auroc"] is not None and own["rows"] > 0
        ]
        for holders in sweep.holders
    }
    points = [point for each in found.values() for point in each]
    if not points:
        return None
    shown = _picked([holders for holders, each in found.items() if each])
    series = [
        Series(
            kind=kind,
            shape=shape,
            words=count(holders, "holder"),
            points=tuple(found[holders][:: 1 + len(found[holders]) // _POINTS]),
        )
        for (kind, shape), holders in zip(_SERIES, shown, strict=False)
    ]
    trend = _trend(points)
    name, heading = "gain-by-size", "What each holder gains, by its size"
    chart = gains_chart(series, trend, title=heading, x_title="Records of the holder")
    rows = [(f"{size:,.0f}", words.signed(gain)) for size, gain in trend]
    beside = paragraph(
        "One mark is one holder in one run: the joint model's AUROC minus that of the model it trained alone "
        "at the same ε, both on the same held-out records."
    )
    if rows:
        beside += disclosure("Data table", table("Average by size", ("Records", "Gain"), rows), opened=True)
    beside += paragraph("All holders are in holders.csv, beside this page.")
    caption = words.read_gains(points, epsilon)
    return drawn("sizes", Picture(name=name, heading=heading, charts=(chart,), caption=caption), beside)


def _trend(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average gains over holders of similar size; nothing where sizes are alike.

    Groups are about equally large; holders of one size are in one group.
    """
    ordered = sorted(points)
    groups = min(_TREND, len(ordered) // 5)
    if groups < 2 or ordered[-1][0] < 2 * ordered[0][0]:
        return []
    edges = sorted({ordered[round(i * len(ordered) / groups)][0] for i in range(1, groups)})
    parts: dict[int, list[tuple[float, float]]] = {}
    for size, gain in ordered:
        parts.setdefault(bisect_right(edges, size), []).append((size, gain))
    columns = [tuple(zip(*part, strict=True)) for part in parts.values()]
    means = [(sum(sizes) / len(sizes), sum(gains) / len(gains)) for sizes, gains in columns]
    return sorted(means)


def time(sweep: Results) -> Section | None:
    """Training time by number of holders, or by number of records where that is what differs."""
    by_rows = len(sweep.holders) == 1
    noun = "records" if by_rows else "holders"
    points = [(float(cell["rows" if by_rows else "holders"]), float(cell["seconds"])) for cell in sweep.cells]
    caption = words.read_seconds(points, noun)
    rows = [
        (
            f"{holders:,}, {short(epsilon)}",
            span(f"{cell['rows']:,}" for cell in sweep.at(holders, epsilon)),
            span(str(cell["rounds"]) for cell in sweep.at(holders, epsilon)),
            duration(seconds.mean),
        )
        for holders, epsilon in sweep.settings[:LISTED]
        if (seconds := sweep.over(holders, epsilon, lambda cell: cell["seconds"])) is not None
    ]
    beside = paragraph(
        "Wall time of one joint training on the machine that simulated, all holders in one process. A live "
        "run has every holder's machine, and waits for the slowest and the network."
    ) + disclosure(
        "Data table", table("Time by setting", ("Holders, ε", "Records", "Rounds", "Time"), rows), opened=True
    )
    if len({x for x, _ in points}) == 1:
        return Section(key="time", heading="Run time", inner=paragraph(caption) + beside)
    chart = seconds_chart(points, title="Run time", x_title=noun.capitalize())
    picture = Picture(name="run-time", heading="Run time", charts=(chart,), caption=caption)
    return drawn("time", picture, beside)


def reading(sweep: Results) -> Section | None:
    """Terms, where the numbers come from, and every run."""
    terms = "".join(
        f"<dt>{safe(term)}</dt><dd>{safe(said)}</dd>" for term, said in GLOSSARY if term not in _NOT_HERE
    )
    first = sweep.cells[0]
    settings = (
        f"Bad outcome: {first['outcome']}. Records are spread over the holders by: "
        f"{span(c['partition'] for c in sweep.cells)}. Trust: {span(c['trust'] for c in sweep.cells)}. "
        f"Engine: {span(c['engine'] for c in sweep.cells)}. δ {short(first['delta'])}."
    )
    listed = items((settings, *words.notes(sweep), SIMULATED))
    inner = (
        f'<div class="halves"><dl class="glossary">{terms}</dl>'
        f"<div><h3>Where the numbers come from and what they do not say</h3>{listed}</div></div>"
    )
    inner += _every_run(sweep) + _failed_runs(sweep)
    return Section(key="reading", heading="How to read this", inner=inner)


def _every_run(sweep: Results) -> str:
    heads = (
        "Holders, ε, seed",
        "AUROC",
        "Alone",
        "Pooled",
        "KS",
        "Gini",
        "Log loss",
        "Brier",
        "ECE",
        "ε spent",
    )
    rows = [
        (
            f"{cell['holders']:,}, {short(cell['epsilon'])}, {cell['seed']}",
            f"{cell['auroc']:.4f}",
            *(_number(cell["baselines"][key]) for key in ("local_only_auroc", "pooled_auroc")),
            *(f"{cell[key]:.4f}".replace("-", "−") for key in ("ks", "gini", "log_loss", "brier", "ece")),
            short(cell["spent_epsilon"]),
        )
        for cell in sweep.cells[:LISTED]
    ]
    more = (
        f" (first {LISTED} of {len(sweep.cells):,}; all are in results.csv)"
        if len(sweep.cells) > LISTED
        else ""
    )
    return disclosure(f"Every run{more}", table("Every run, exact numbers in results.csv", heads, rows))


def _failed_runs(sweep: Results) -> str:
    rows = [
        (f"{run['holders']:,}, {short(run['epsilon'])}, {run['seed']}", run["error"])
        for run in sweep.failed[:LISTED]
    ]
    heads = ("Holders, ε, seed", "Why")
    return disclosure("Runs without a result", table("Runs without a result", heads, rows)) if rows else ""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
