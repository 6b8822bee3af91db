"""Fairness in a report: how groups fare under the private model, and under the same one without privacy."""

from __future__ import annotations

from typing import Any

from assay.models.digits import tenths
from assay.models.page import paragraph, table
from assay.simulations.findings import Report

__all__ = ["groups_section"]

_RATES = (
    ("Approved, %", "approval_rate"),
    ("Of the good, %", "tpr"),
    ("Of the bad, %", "fpr"),
    ("Predicted bad, %", "predicted"),
    ("Observed bad, %", "observed"),
)


def groups_section(report: Report) -> str:
    """Return the inner HTML of the section, empty where the study declares no groups."""
    if not report.groups:
        return ""
    intro = paragraph(
        f"Approved means a score of {report.cut_off} or more. Each cell says first what the private model "
        "does, with its 95 % interval, and then, after the stroke, what the same model without privacy does: "
        "noise often costs small groups most. The columns are counted on the held-out records and are no "
        "inputs of the model. A group that is too small to judge is named and counts as not passed wherever "
        "a study sets a gate."
    )
    columns = dict.fromkeys(line.column for line in report.groups)
    return intro + "".join(_column(report, column) for column in columns)


def _column(report: Report, column: str) -> str:
    heads = ("Group", "Records", *(words for words, _ in _RATES))
    rows = [
        (
            line.group,
            f"{line.persons:,}",
            *(_cell(line.private, line.unprotected, name) for _, name in _RATES),
        )
        for line in report.groups
        if line.column == column
    ]
    return table(f"By {column}", heads, rows)


def _cell(private: dict[str, Any], unprotected: dict[str, Any], name: str) -> str:
    if not private or not unprotected:
        return "n too small"
    rate, other = private[name], unprotected[name]
    if rate["value"] is None or other["value"] is None:
        return "–"
    between = f"({100 * rate['low']:.0f}–{100 * rate['high']:.0f})"
    return f"{tenths(rate['value'])} {between} / {tenths(other['value'])}"
