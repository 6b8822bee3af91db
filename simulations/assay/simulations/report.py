"""The report of a finished run: one HTML file that needs no network and no script.

It is written for the people who decide whether to take part: what was trained, with which privacy, how
good it is next to each holder alone and to pooling everything, and what single scores consist of.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from assay.models.digits import count, odds_factor, percent, short, tenths
from assay.models.metrics import expected_calibration_error, roc_curve
from assay.models.page import disclosure, items, paragraph, table
from assay.models.svg import safe
from assay.privacy.files import write_durably
from assay.simulations import figures
from assay.simulations.findings import Comparison, HolderLine, LocalSpread, Metrics, PersonLine, Report, Trust
from assay.simulations.groups import groups_section
from assay.simulations.page import figure, label_lines, page
from assay.simulations.people import people_section
from assay.simulations.tallies import BandRow, calibration_rows, score_rows
from assay.simulations.wording import GLOSSARY, SIMULATED, duration, moved, trusted

__all__ = [
    "Comparison",
    "HolderLine",
    "LocalSpread",
    "Metrics",
    "PersonLine",
    "Report",
    "Trust",
    "write_report",
]

_SMALL = 30  # records; a rate from fewer says little and is marked so
_LISTED_HOLDERS = 200


def write_report(path: Path, report: Report) -> None:
    """Write ``report`` as one HTML file that is whole or absent, even after a power cut.

    Raises:
        OSError: the file cannot be written; an older one is then unchanged.
    """
    write_durably(path, _html(report).encode("utf-8"))


def _html(report: Report) -> str:
    builders: tuple[tuple[str, str, Callable[[Report], str]], ...] = (
        ("value", "Alone, together, pooled", _comparison),
        ("ranking", "Ranking", _ranking),
        ("calibrated", "Are the probabilities right?", _calibration),
        ("distribution", "Scores by outcome", _scores),
        ("groups", "Groups", groups_section),
        ("budget", "Privacy", _privacy),
        ("persons", "A few records, explained", people_section),
        ("reading", "How to read this", _reading),
        ("file", "The model file", _file),
    )
    sections = [(key, heading, build(report)) for key, heading, build in builders]
    return page(
        title=report.title,
        header=_headline(report),
        sections=[row for row in sections if row[2]],
    )


def _headline(report: Report) -> str:
    rows = sum(holder.rows for holder in report.holders)
    auroc = report.comparison.federated.auroc
    together = " together" if len(report.holders) > 1 else ""
    lead = (
        f"{count(len(report.holders), 'holder')} with {count(rows, 'record')} trained one score{together}, "
        f"and no record left its holder. Shown one person with the outcome “{report.outcome_meaning}” and "
        f"one without, the score ranks the first as riskier {100 * auroc:.0f} times out of 100; a coin toss "
        "would 50 times."
    )
    privacy = (
        "Whatever somebody suspects about a person, the released training messages change the odds of it "
        f"by a factor of at most {odds_factor(report.epsilon)}, but for a chance of about 1 in "
        f"{1 / report.delta:,.0f} "
        f"(ε\u00a0=\u00a0{short(report.epsilon)}, δ\u00a0=\u00a0{short(report.delta)})."
    )
    tiles = (
        ("AUROC, held out", f"{auroc:.3f}"),
        ("Holders", f"{len(report.holders):,}"),
        ("Privacy, ε", short(report.epsilon)),
        ("Trust", report.trust.mode),
        ("Rounds", f"{report.rounds:,}"),
        ("Training time", duration(report.seconds)),
    )
    facts = "".join(f"<div><dt>{safe(name)}</dt><dd>{safe(value)}</dd></div>" for name, value in tiles)
    study = f"Study {report.study_name}, purpose {report.purpose}"
    return (
        f"{paragraph(study, 'study')}<h1>{safe(report.title)}</h1>{paragraph(lead, 'lead')}"
        f"{paragraph(privacy, 'lead')}{paragraph(trusted(report.trust), 'lead')}"
        f'<dl class="tiles">{facts}</dl>{paragraph(SIMULATED, "callout")}'
    )


def _comparison(report: Report) -> str:
    local, federated, pooled = report.comparison.local, report.comparison.federated, report.comparison.pooled
    heads = ("Model", "AUROC", "KS", "Gini", "Log loss", "Brier")
    rows = [("Federated", *_metrics(federated))]
    if pooled is not None:
        rows.append(("Pooled, same ε", *_metrics(pooled)))
    for words, metrics in (
        ("Neural network, same ε", report.comparison.neural),
        ("Pooled, no privacy", report.comparison.unprotected),
    ):
        if metrics is not None:
            rows.append((words, *_metrics(metrics)))
    if local is not None:
        spread = (("average", local.mean), ("weakest", local.low), ("best", local.high))
        rows += [(f"Alone, {name}", f"{value:.3f}", "–", "–", "–", "–") for name, value in spread]
    measured = table(f"On {len(report.y_true):,} held-out records", heads, rows)
    singles = [
        (holder.name, f"{holder.rows:,}", "–" if holder.local_auroc is None else f"{holder.local_auroc:.3f}")
        for holder in report.holders[:_LISTED_HOLDERS]
    ]
    each = table("Each holder's own model" + _left_out(report), ("Holder", "Records", "AUROC alone"), singles)
    return figure(
        figures.comparison_chart(report),
        _gain(report.comparison),
        disclosure("All metrics", measured, opened=True) + disclosure("Holder by holder", each),
    )


def _gain(comparison: Comparison) -> str:
    words = "Further right is better. "
    federated = comparison.federated.auroc
    if comparison.local is not None:
        words += (
            f"Training together {moved(federated - comparison.local.mean)} next to what a holder reaches "
            "alone on average (diamond; the small circles are single holders). "
        )
    if comparison.pooled is not None:
        gain = moved(federated - comparison.pooled.auroc)
        words += f"Next to pooling all records in one place at the same ε, it {gain}. "
    if comparison.unprotected is not None:
        gain = moved(federated - comparison.unprotected.auroc)
        words += f"Next to pooling them without any privacy, it {gain}. "
    if comparison.neural is not None:
        gain = moved(federated - comparison.neural.auroc)
        words += f"Next to a neural network, which could not explain its scores, it {gain}."
    return words.rstrip()


def _metrics(metrics: Metrics) -> tuple[str, ...]:
    values = (metrics.auroc, metrics.ks, metrics.gini, metrics.log_loss, metrics.brier)
    return tuple(f"{value:.3f}".replace("-", "−") for value in values)


def _ranking(report: Report) -> str:
    curves = {"Federated": report.probability}
    if report.pooled_probability is not None:
        curves["Pooled"] = report.pooled_probability
    if report.local_probability is not None:
        curves["Best alone"] = report.local_probability
    found = {name: roc_curve(report.y_true, probability) for name, probability in curves.items()}
    levels = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)
    rows = [
        (f"{100 * level:g}", *(tenths(float(np.interp(level, *curve))) for curve in found.values()))
        for level in levels
    ]
    tenth = percent(float(np.interp(0.1, *found["Federated"])))
    return figure(
        figures.roc_chart(report),
        "The further a curve bends to the upper left, the better the ranking; the dotted diagonal is "
        f"guessing. A cut-off that wrongly flags 10 % of the good finds {tenth} of the bad.",
        paragraph(
            "Every cut-off trades one mistake for the other. The table reads the curves: how many of the bad "
            "outcomes are found when a given share of the good ones is flagged by mistake."
        )
        + disclosure("Data table", table("Bad found, %", ("Good flagged, %", *found), rows), opened=True),
    )


def _calibration(report: Report) -> str:
    bins = calibration_rows(report)
    holding = sum(row.holds for row in bins)
    error = expected_calibration_error(report.y_true, report.probability)
    rows = [
        (
            tenths(row.predicted),
            tenths(row.observed),
            f"{tenths(row.low)}–{tenths(row.high)}",
            f"{row.rows:,}",
        )
        for row in bins
    ]
    heads = ("Predicted, %", "Observed, %", "95 % interval", "Records")
    return figure(
        figures.calibration_chart(bins),
        "Points on the diagonal mean that a stated chance is the chance that comes true. "
        f"Here the diagonal passes through {holding} of {count(len(bins), 'interval')}.",
        paragraph(
            f"Records are sorted by predicted probability and cut into {count(len(bins), 'bin')} of about "
            f"equal count. On average prediction and observation differ by {100 * error:.1f} percentage "
            "points."
        )
        + disclosure("Data table", table("Bad rate, predicted and observed", heads, rows), opened=True),
    )


def _scores(report: Report) -> str:
    rows = score_rows(report)
    lines = [
        (
            f"{row.low}–{row.high}",
            row.band,
            f"{row.rows:,}",
            tenths(row.rows / len(report.y_true)),
            _bad_rate(row),
        )
        for row in rows
    ]
    good, bad = (float(np.median(report.score[report.y_true == outcome])) for outcome in (0, 1))
    base = float(report.y_true.mean())
    return figure(
        figures.score_chart(report),
        f"The less the two outlines overlap, the better the score separates. Half of the good outcomes score "
        f"above {good:.0f}, half of the bad ones above {bad:.0f}.",
        paragraph(
            f"Of all held-out records, {percent(base)} have the outcome “{report.outcome_meaning}”. The rate "
            f"should fall as the score rises; a rate from fewer than {_SMALL} records is not shown."
        )
        + disclosure(
            "Data table",
            table("Bad rate by score", ("Score", "Band", "Records", "Share, %", "Bad rate, %"), lines),
            opened=True,
        ),
    )


def _bad_rate(row: BandRow) -> str:
    if row.rows == 0:
        return "–"
    return tenths(row.bad / row.rows) if row.rows >= _SMALL else "n too small"


def _privacy(report: Report) -> str:
    rows = [
        (
            holder.name,
            short(holder.epsilon_spent),
            "no cap" if holder.epsilon_limit is None else short(holder.epsilon_limit),
            "–" if holder.epsilon_limit is None else percent(holder.epsilon_spent / holder.epsilon_limit),
        )
        for holder in report.holders[:_LISTED_HOLDERS]
    ]
    heads = ("Holder", "ε spent", "Cap", "Used")
    hidden = len(report.holders) - figures.SHOWN_HOLDERS
    more = (
        f" The first {figures.SHOWN_HOLDERS} of {len(report.holders):,} holders are drawn."
        if hidden > 0
        else ""
    )
    return figure(
        figures.privacy_chart(report.holders),
        "Filled: what each holder's ledger says one person has spent. Upright mark: the holder's own cap, "
        f"beyond which it refuses to answer.{more}",
        label_lines(report.label_words)
        + paragraph(
            "Not covered either: the numbers on this page. They are computed from records without noise, "
            "which is possible only because the run is simulated."
        )
        + disclosure("Data table", table("Privacy by holder" + _left_out(report), heads, rows)),
    )


def _reading(report: Report) -> str:
    terms = "".join(f"<dt>{safe(term)}</dt><dd>{safe(words)}</dd>" for term, words in GLOSSARY)
    notes = items((*report.notes, SIMULATED))
    return (
        f'<div class="halves"><dl class="glossary">{terms}</dl>'
        f"<div><h3>Where the numbers come from and what they do not say</h3>{notes}</div></div>"
    )


def _file(report: Report) -> str:
    rows = (("File", report.bundle_name), ("Fingerprint", report.fingerprint))
    listed = "".join(f"<dt>{safe(name)}</dt><dd><code>{safe(value)}</code></dd>" for name, value in rows)
    check = paragraph(
        "Compare the fingerprint before using the file; “assay model verify” checks its signature."
    )
    return f'<dl class="glossary">{listed}</dl>{check}'


def _left_out(report: Report) -> str:
    total = len(report.holders)
    return f" (first {_LISTED_HOLDERS} of {total:,})" if total > _LISTED_HOLDERS else ""
