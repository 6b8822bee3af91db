"""Sections of a sweep's report that look at one setting closely: groups, calibration, privacy.

Which setting is chosen, and why, says :attr:`assay.simulations.sweep_cells.Results.shown`. Each function
returns None where there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from assay.models.digits import count, odds_factor, percent, short, tenths
from assay.models.page import Cell as TableCell
from assay.models.page import disclosure, paragraph, table
from assay.models.svg import safe
from assay.simulations import sweep_words as words
from assay.simulations.figures import calibration_chart
from assay.simulations.page import label_lines
from assay.simulations.sweep_cells import Band, Cell, Results, band
from assay.simulations.sweep_marks import AuditRow, GroupRow, audit_chart, floored, groups_chart
from assay.simulations.sweep_page import LISTED, Picture, Section, drawn
from assay.simulations.tallies import CalibrationRow

__all__ = ["calibration", "groups", "privacy"]

_CANARIES = (
    "Canaries are made-up records, each put in by the toss of a coin. From what a run released, an attacker "
    "guesses which were in; many right guesses prove that ε is at least so much. That is evidence against a "
    "defect in the code, not for the claim: a weak attack proves little however much leaks. What bounds ε "
    "from above is the accountant's proof."
)


def groups(sweep: Results) -> Section | None:
    """How the groups of each fairness column fare, with and without privacy."""
    cells = sweep.at(*sweep.shown)
    columns = dict.fromkeys(group["column"] for cell in cells for group in cell["groups"])
    pictures, inner = [], _shown_words(sweep)
    for number, column in enumerate(columns, start=1):
        rows = _group_rows(cells, column)
        name, heading = f"groups-{number}", f"By {column}"
        charts = (groups_chart(name, rows, title=heading),)
        picture = Picture(name=name, heading=heading, charts=charts, caption=words.read_groups(rows))
        pictures.append(picture)
        inner += (
            f'<div class="part"><h3>{safe(heading)}</h3>{picture.figure(_group_table(column, rows))}</div>'
        )
    return (
        Section(key="groups", heading="Groups", inner=inner, pictures=tuple(pictures)) if pictures else None
    )


def _shown_words(sweep: Results) -> str:
    holders, epsilon = sweep.shown
    return paragraph(
        f"Shown for {count(holders, 'holder')} at {words.eps(epsilon)}, "
        f"{count(len(sweep.at(holders, epsilon)), 'seed')}; the other settings are in groups.csv. "
        "A group that is too small to judge has no marks."
    )


def _group_rows(cells: list[Cell], column: str) -> list[GroupRow]:
    mine = [group for cell in cells for group in cell["groups"] if group["column"] == column]
    rows = []
    for name in dict.fromkeys(group["group"] for group in mine):
        same = [group for group in mine if group["group"] == name]
        rates = {
            key: band(group[key] for group in same)
            for key in ("auroc", "approval_rate", "predicted", "observed")
        }
        free = [group["non_private"] or {} for group in same]
        rows.append(
            GroupRow(
                group=name,
                persons=sum(group["persons"] for group in same) / len(same),
                open_auroc=band(each.get("auroc") for each in free),
                open_approval_rate=band(each.get("approval_rate") for each in free),
                **rates,
            )
        )
    return rows


def _group_table(column: str, rows: list[GroupRow]) -> str:
    heads = ("Group", "Records", "AUROC", "Approved, %", "Predicted, %", "Observed, %")
    lines = [
        (
            row.group,
            f"{row.persons:,.0f}",
            _beside(row.auroc, row.open_auroc, "{:.3f}".format),
            _beside(row.approval_rate, row.open_approval_rate, tenths),
            _mean(row.predicted),
            _mean(row.observed),
        )
        for row in rows[:LISTED]
    ]
    caption = f"By {column}, means over seeds; small: the same model without privacy"
    return disclosure("Data table", table(caption, heads, lines), opened=True)


def _beside(private: Band | None, other: Band | None, words: Callable[[float], str]) -> TableCell:
    if private is None:
        return "–"
    return words(private.mean) if other is None else (words(private.mean), words(other.mean))


def _mean(each: Band | None) -> str:
    return "–" if each is None else tenths(each.mean)


def calibration(sweep: Results) -> Section | None:
    """Predicted against observed rates, of one seed: intervals over records do not average."""
    cells = [cell for cell in sweep.at(*sweep.shown) if cell["calibration"]]
    if not cells:
        return None
    rows = [
        CalibrationRow(**{key: row[key] for key in ("rows", "predicted", "observed", "low", "high")})
        for row in cells[0]["calibration"]
    ]
    lines = [
        (
            tenths(row.predicted),
            tenths(row.observed),
            f"{tenths(row.low)}–{tenths(row.high)}",
            f"{row.rows:,}",
        )
        for row in rows
    ]
    heads = ("Predicted, %", "Observed, %", "95 % interval", "Records")
    holders, epsilon = sweep.shown
    beside = paragraph(
        f"Shown for {count(holders, 'holder')} at {words.eps(epsilon)}. Records are sorted by predicted "
        "probability and cut into bins of about equal count."
    ) + disclosure("Data table", table("Bad rate, predicted and observed", heads, lines), opened=True)
    error = band(cell["ece"] for cell in cells)
    caption = words.read_calibration(rows, error, cells[0]["seed"])
    heading, charts = "Are the probabilities right?", (calibration_chart(rows),)
    picture = Picture(name="calibration", heading=heading, charts=charts, caption=caption)
    return drawn("calibrated", picture, beside)


def privacy(sweep: Results) -> Section | None:
    """The label in words, and what an attack proves beside what it claims."""
    holders, epsilon = sweep.shown
    cell = sweep.at(holders, epsilon)[0]
    lead = paragraph(
        "Whatever somebody suspects about a person, the released training messages change the odds of it by "
        f"a factor of at most {odds_factor(cell['epsilon'])}, but for a chance of about 1 in "
        f"{1 / cell['delta']:,.0f}. The label below is that of {count(holders, 'holder')} at "
        f"{words.eps(epsilon)}; every bundle carries its own."
    )
    said = disclosure("Privacy label", label_lines(cell["label"]), opened=True)
    audit = _audited(sweep)
    if not audit.rows:
        return Section(key="privacy", heading="Privacy", inner=lead + said)
    picture = Picture(
        name="canaries",
        heading="An attack beside the privacy claim",
        charts=(audit_chart(audit.rows),),
        caption=words.read_audit(audit.rows, runs=audit.runs, above=audit.above, confidence=audit.confidence),
    )
    beside = paragraph(_CANARIES) + disclosure("Data table", _audit_table(audit), opened=True)
    inner = lead + picture.figure(beside) + said
    return Section(key="privacy", heading="Privacy", inner=inner, pictures=(picture,))


def _audit_table(audit: _Audit) -> str:
    lines = [
        (
            row.words,
            short(row.claimed),
            floored(row.lower_bound),
            "–" if row.estimate is None else f"{row.estimate:.3f} ({_ends(row)})",
        )
        for row in audit.rows[:LISTED]
    ]
    heads = ("Setting", "Claimed ε", "Proved ε, at least", "Estimated ε if the noise is Gaussian")
    caption = f"The middle one of the seeds, at {percent(audit.confidence)} confidence or more"
    return table(caption, heads, lines)


def _ends(row: AuditRow) -> str:
    return "–".join("?" if end is None else f"{end:.3f}" for end in row.ends)


@dataclass(frozen=True, kw_only=True)
class _Audit:
    """All attacks of a sweep: a row for each setting, and how many runs prove more than was claimed."""

    rows: list[AuditRow]
    runs: int
    above: int
    confidence: float


def _audited(sweep: Results) -> _Audit:
    rows, runs, above, confidence = [], 0, 0, 1.0
    for holders, epsilon in sweep.settings:
        found = [cell["canaries"] for cell in sweep.at(holders, epsilon) if cell["canaries"] is not None]
        if not found:
            continue
        runs += len(found)
        above += sum(each["lower_bound"] > each["claimed_epsilon"] for each in found)
        confidence = min(confidence, *(each["confidence"] for each in found))
        found.sort(key=lambda each: each["lower_bound"] / each["claimed_epsilon"])
        middle = found[(len(found) - 1) // 2]
        rows.append(
            AuditRow(
                words=f"{count(holders, 'holder')}, {words.eps(epsilon)}",
                lower_bound=middle["lower_bound"],
                claimed=middle["claimed_epsilon"],
                estimate=middle.get("estimate"),
                ends=(middle.get("estimate_low"), middle.get("estimate_high")),
            )
        )
    return _Audit(rows=rows, runs=runs, above=above, confidence=confidence)
