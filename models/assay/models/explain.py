"""Why a person got this score, in words: points per feature, reasons, and what would change it.

The logic and the effect of changed data are owed to the person (Court of Justice of the EU, C-203/22).
Nothing is stored. The points that are explained are the ones that :meth:`Scorecard.score` gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models.encoding import ABSENT, Encoded, FeatureGrid, Term
from assay.models.personal import NOT_KEPT, contact_lines
from assay.models.scorecard import BANDS, REASONS, Scorecard, Scores
from assay.models.whatif import MISSING, best_changes, changed_values, effects, value_words

__all__ = [
    "MISSING",
    "UNKNOWN",
    "explain",
    "explanation_in_words",
    "own_words",
    "reason_words",
    "reasons_lost",
]

NEAR = "those who just pass"
UNKNOWN = "not known"  # the value of a feature whose component is not there


def reason_words(label: str, difference: int, than: str = "average") -> str:
    """Say how a feature's points compare with a baseline, by default the average, in whole points."""
    if difference == 0:
        return f"{label}: as many points as {than}"
    points = "point" if abs(difference) == 1 else "points"
    return f"{label}: {abs(difference)} {points} {'more' if difference > 0 else 'fewer'} than {than}"


def reasons_lost(reasons: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the reasons that cost points; none where the person is at or above the baseline in all."""
    return [reason for reason in reasons if reason["points_lost"] > 0]


def own_words(value: str, description: str | None) -> str:
    """Say the person's own value, and what it means where the study says so."""
    return f"your data: {value}" + (f" ({description.rstrip('.')})" if description else "")


def explain(
    scorecard: Scorecard, record: Mapping[str, object], asked: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Explain one score.

    Args:
        scorecard: the card.
        record: column -> value; a number, a string for a categorical feature, None for missing. A
            column that is absent is missing; a component without any column is absent and counts nothing.
        asked: the person's own what-if, feature name -> value as text, all changed together.

    Returns:
        A JSON object: ``features`` and, behind them, pairs of features that have points together (name,
        label, description, component, pair: None or the names of both, value, points, average_points),
        ``base_points``, ``capped``, ``score``, ``probability``, ``band``, ``missing_components``,
        ``reasons`` against the average of all (feature, words, points_lost), ``reasons_near_cut_off``
        against those who just pass ``cut_off`` (None where that baseline is not in the card; both methods:
        official commentary to 12 CFR 1002.9(b)(2), 5), ``what_if`` (per changeable feature the best
        single change that is plausible), ``what_if_values`` (what each of its values would give),
        ``what_if_asked`` (None, or what the changes in ``asked`` would do) and ``contact`` (ask, contest).

    Raises:
        BadInput: the record has no column of the study, or ``asked`` names what may not be varied.
        BadData: a value is infinite, or a fraction where whole numbers are due.
    """
    grid = scorecard.grid
    columns = {
        f.feature.column: _column(f, record[f.feature.column])
        for f in grid.features
        if f.feature.column in record
    }
    encoded = grid.encode(columns)
    result = scorecard.score(encoded)
    points, low, base = [int(p) for p in result.points[0]], encoded.low[0], int(result.base[0])
    there = grid.components_of(int(encoded.pattern[0]))
    contact = scorecard.study.contact
    return {
        "score": int(result.score[0]),
        "probability": float(result.probability[0]),
        "band": BANDS[int(result.band[0])][0],
        "base_points": base,
        "features": _features(scorecard, columns, low, points),
        "capped": int(result.capped[0]),
        "missing_components": [name for name in grid.components if name not in there],
        "reasons": [_reason(scorecard, int(j), points[j]) for j in result.reasons[0] if j != ABSENT],
        "cut_off": scorecard.study.scale.threshold,
        "reasons_near_cut_off": _near_reasons(scorecard, points, low),
        "what_if": best_changes(scorecard, columns, encoded, result),
        "what_if_values": effects(scorecard, encoded),
        "what_if_asked": _asked(scorecard, columns, encoded, result, asked) if asked else None,
        "contact": {"ask": contact.ask, "contest": contact.contest},
    }


def explanation_in_words(explained: Mapping[str, Any]) -> str:
    """Lay :func:`explain`'s result out for a person; the points add up line by line."""
    width = max(len("adjusted to the range"), *(len(f["label"]) for f in explained["features"]))
    lines = [
        f"Score {explained['score']}, {explained['band']}"
        f" (chance of a bad outcome {100 * explained['probability']:.1f} %)",
        "",
        f"  {'starting points':{width}}  {explained['base_points']:+6d}",
    ]
    lines += [f"  {f['label']:{width}}  {f['points']:+6d}   {f['value']}" for f in explained["features"]]
    if explained["capped"]:
        lines.append(f"  {'adjusted to the range':{width}}  {explained['capped']:+6d}")
    lines += [f"  {'score':{width}}  {explained['score']:6d}"]
    lines += _reason_lines(explained)
    if explained["missing_components"]:
        missing = ", ".join(name.replace("_", " ") for name in explained["missing_components"])
        lines += ["", f"Not known, and counted neither for nor against: {missing}"]
    if explained["what_if"]:
        lines += ["", "What one change would do, everything else being equal:"]
        lines += [f"  {change['words']}" for change in explained["what_if"]]
    if explained["what_if_asked"]:
        lines += ["", "What you asked:", f"  {explained['what_if_asked']['words']}"]
    if explained["what_if"] or explained["what_if_asked"]:
        lines.append(f"  {NOT_KEPT}")
    contact = contact_lines(explained["contact"])
    lines += ["", *(f"{heading}: {words}" for heading, words in contact)]
    return "\n".join(lines)


def _reason_lines(explained: Mapping[str, Any]) -> list[str]:
    """Both kinds of reasons, each with the sentence that the study has about the feature."""
    described = {f["name"]: (f["value"], f["description"]) for f in explained["features"]}
    compared = [("the average of all", explained["reasons"])]
    if explained["reasons_near_cut_off"] is not None:
        compared.append(
            (f"{NEAR} (at {explained['cut_off']} or a little more)", explained["reasons_near_cut_off"])
        )
    lines = []
    for whom, reasons in compared:
        lines += ["", f"Main reasons, compared with {whom}:"]
        lost = reasons_lost(reasons)
        if not lost:
            lines.append("  None: nothing that was scored has fewer points than theirs.")
        for place, reason in enumerate(lost, start=1):
            value, about = described[reason["feature"]]
            lines += [f"  {place}. {reason['words']}", f"     {own_words(value, about)}"]
    return lines


def _features(
    scorecard: Scorecard, columns: Mapping[str, NDArray[Any]], low: NDArray[np.int32], points: list[int]
) -> list[dict[str, Any]]:
    return [
        {
            "name": term.name,
            "label": term.label,
            "description": term.description,
            "component": term.component,
            "pair": term.pair,
            "value": _value_of(term, columns, there=bool(low[j] != ABSENT)),
            "points": points[j],
            "average_points": round(float(scorecard.means[j]), 1),
        }
        for j, term in enumerate(scorecard.grid.terms)
    ]


def _asked(
    scorecard: Scorecard,
    columns: Mapping[str, NDArray[Any]],
    encoded: Encoded,
    before: Scores,
    asked: Mapping[str, str],
) -> dict[str, Any]:
    """Score the record with all the asked values at once and say what came of it."""
    values = changed_values(scorecard, encoded.low[0], asked)
    features = {feature.name: feature for feature in scorecard.grid.features}
    changed = {
        features[name].feature.column: _column(features[name], value) for name, value in values.items()
    }
    after = scorecard.score(scorecard.grid.encode({**columns, **changed}))
    gained = int(after.points[0].sum(dtype=np.int64) - before.points[0].sum(dtype=np.int64))
    changes = [
        {
            "feature": name,
            "label": features[name].feature.label,
            "from": _value_of(features[name], columns, there=True),
            "to": value_words(features[name], value),
        }
        for name, value in values.items()
    ]
    score, band = int(after.score[0]), BANDS[int(after.band[0])][0]
    told = ", ".join(f"{change['label']} at {change['to']}" for change in changes)
    return {
        "changes": changes,
        "points_gained": gained,
        "score": score,
        "probability": float(after.probability[0]),
        "band": band,
        "words": f"{told}: {gained:+d} points, score {score}, {band}",
    }


def _column(feature: FeatureGrid, value: object) -> NDArray[Any]:
    if feature.feature.kind == "categorical":
        out = np.empty(1, dtype=object)
        out[0] = None if value is None else str(value)
        return out
    return np.array([np.nan if value is None else value], dtype=np.float64)


def _value_of(term: Term, columns: Mapping[str, NDArray[Any]], *, there: bool) -> str:
    """Say the person's value; of a pair both values, or that it is missing because one of them is."""
    if not there:
        return UNKNOWN
    if not isinstance(term, FeatureGrid):
        both = [_value_of(each.feature, columns, there=True) for each in (term.first, term.second)]
        return MISSING if MISSING in both else " and ".join(both)
    values = columns.get(term.feature.column)
    return MISSING if values is None else value_words(term, values[0])


def _reason(scorecard: Scorecard, index: int, points: int) -> dict[str, Any]:
    term = scorecard.grid.terms[index]
    lost = float(scorecard.means[index]) - points
    return {
        "feature": term.name,
        "words": reason_words(term.label, -_rounded(lost)),
        "points_lost": _rounded(lost),
    }


def _near_reasons(
    scorecard: Scorecard, points: list[int], low: NDArray[np.int32]
) -> list[dict[str, Any]] | None:
    """Terms furthest below those who just pass the cut-off; None where the card has no such baseline."""
    if scorecard.near is None:
        return None
    lost = {j: float(scorecard.near[j]) - points[j] for j in np.flatnonzero(low != ABSENT).tolist()}
    worst = sorted(lost, key=lambda j: (-lost[j], j))[:REASONS]
    terms = scorecard.grid.terms
    return [
        {
            "feature": terms[j].name,
            "words": reason_words(terms[j].label, -_rounded(lost[j]), NEAR),
            "points_lost": _rounded(lost[j]),
        }
        for j in worst
    ]


def _rounded(value: float) -> int:
    return int(np.floor(value + 0.5))
