"""Why a person got this score, in words: points per feature, reasons, and what would change it.

The logic and the effect of changed data are owed to the person (Court of Justice of the EU, C-203/22).
Nothing is stored. The points that are explained are the ones that :meth:`Scorecard.score` gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models.encoding import ABSENT, FeatureGrid, readable
from assay.models.scorecard import BANDS, REASONS, Scorecard

__all__ = ["explain", "explanation_in_words", "reason_words"]


def reason_words(label: str, difference: int, than: str = "average") -> str:
    """Say how a feature's points compare with a baseline, by default the average, in whole points."""
    if difference == 0:
        return f"{label}: as many points as {than}"
    points = "point" if abs(difference) == 1 else "points"
    return f"{label}: {abs(difference)} {points} {'more' if difference > 0 else 'fewer'} than {than}"


def explain(scorecard: Scorecard, record: Mapping[str, object]) -> dict[str, Any]:
    """Explain one score.

    Args:
        scorecard: the card.
        record: column -> value; a number, a string for a categorical feature, None for missing. A
            column that is absent is missing; a component without any column is absent and counts nothing.

    Returns:
        A JSON object: ``features`` (name, label, description, component, value, points, average_points),
        ``base_points``, ``capped``, ``score``, ``probability``, ``band``, ``missing_components``,
        ``reasons`` against the average of all (feature, words, points_lost), ``reasons_near_cut_off``
        against those who just pass ``cut_off`` (None where that baseline is not in the card; both methods:
        official commentary to 12 CFR 1002.9(b)(2), 5) and ``what_if`` (per changeable feature the best
        single change within the public range).

    Raises:
        BadInput: the record has no column of the study.
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
    points, low = [int(p) for p in result.points[0]], encoded.low[0]
    features = [
        {
            "name": feature.name,
            "label": feature.feature.label,
            "description": feature.feature.description,
            "component": feature.feature.component,
            "value": _value_of(feature, columns, there=bool(low[j] != ABSENT)),
            "points": points[j],
            "average_points": round(float(scorecard.means[j]), 1),
        }
        for j, feature in enumerate(grid.features)
    ]
    there = grid.components_of(int(encoded.pattern[0]))
    return {
        "score": int(result.score[0]),
        "probability": float(result.probability[0]),
        "band": BANDS[int(result.band[0])][0],
        "base_points": int(result.base[0]),
        "features": features,
        "capped": int(result.capped[0]),
        "missing_components": [name for name in grid.components if name not in there],
        "reasons": [_reason(scorecard, int(j), points[j]) for j in result.reasons[0] if j != ABSENT],
        "cut_off": scorecard.study.scale.threshold,
        "reasons_near_cut_off": _near_reasons(scorecard, points, low),
        "what_if": _what_if(scorecard, low, points, base=int(result.base[0])),
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
    lines += [f"  {'score':{width}}  {explained['score']:6d}", "", "Main reasons:"]
    lines += [f"  {place}. {reason['words']}" for place, reason in enumerate(explained["reasons"], start=1)]
    if explained["missing_components"]:
        missing = ", ".join(name.replace("_", " ") for name in explained["missing_components"])
        lines += ["", f"Not known, and counted neither for nor against: {missing}"]
    if explained["what_if"]:
        lines += ["", "What one change would do, everything else being equal:"]
        lines += [f"  {change['words']}" for change in explained["what_if"]]
    return "\n".join(lines)


def _column(feature: FeatureGrid, value: object) -> NDArray[Any]:
    if feature.feature.kind == "categorical":
        out = np.empty(1, dtype=object)
        out[0] = None if value is None else str(value)
        return out
    return np.array([np.nan if value is None else value], dtype=np.float64)


def _value_of(feature: FeatureGrid, columns: Mapping[str, NDArray[Any]], *, there: bool) -> str:
    if not there:
        return "not known"
    values = columns.get(feature.feature.column)
    return "missing" if values is None else _value_words(feature, values[0])


def _value_words(feature: FeatureGrid, value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "missing"
    if feature.feature.domain is None:
        cell = int(feature.encode(np.array([value], dtype=object))[0][0])
        label = feature.labels[cell - feature.offset]
        return str(value) if label != "other" else f"{value} (counted as other)"
    low, high = feature.feature.domain
    words = f"{float(value):,.10g}"
    if low <= value <= high:
        return words
    return f"{words} (counted as {readable(low if value < low else high)})"


def _reason(scorecard: Scorecard, index: int, points: int) -> dict[str, Any]:
    feature = scorecard.grid.features[index]
    lost = float(scorecard.means[index]) - points
    return {
        "feature": feature.name,
        "words": reason_words(feature.feature.label, -_rounded(lost)),
        "points_lost": _rounded(lost),
    }


def _near_reasons(
    scorecard: Scorecard, points: list[int], low: NDArray[np.int32]
) -> list[dict[str, Any]] | None:
    """Features furthest below those who just pass the cut-off; None where the card has no such baseline."""
    if scorecard.near is None:
        return None
    lost = {j: float(scorecard.near[j]) - points[j] for j in np.flatnonzero(low != ABSENT).tolist()}
    worst = sorted(lost, key=lambda j: (-lost[j], j))[:REASONS]
    labels = [scorecard.grid.features[j].feature.label for j in worst]
    than = "those who just pass"
    return [
        {
            "feature": scorecard.grid.features[j].name,
            "words": reason_words(label, -_rounded(lost[j]), than),
            "points_lost": _rounded(lost[j]),
        }
        for j, label in zip(worst, labels, strict=True)
    ]


def _rounded(value: float) -> int:
    return int(np.floor(value + 0.5))


def _what_if(
    scorecard: Scorecard, low: NDArray[np.int32], points: list[int], *, base: int
) -> list[dict[str, Any]]:
    """For each changeable feature the value that gains most points, the nearest one where several do.

    Between two knots points run straight, so that the best value is at a knot.
    """
    total = base + sum(points)
    scale = scorecard.study.scale
    changes = []
    for j, feature in enumerate(scorecard.grid.features):
        # "other" and "missing" are no advice.
        known = feature.ordered or feature.cells - 2
        own = scorecard.points[feature.offset : feature.offset + known]
        best = np.flatnonzero(own == own.max())
        cell = int(best[np.argmin(np.abs(best + feature.offset - low[j]))])
        gain = int(own[cell]) - points[j]
        if feature.feature.changeable and gain > 0 and low[j] != ABSENT:
            score = min(max(total + gain, scale.low), scale.high)
            label = feature.feature.label
            changes.append(
                {
                    "feature": feature.name,
                    "value": feature.labels[cell],
                    "points_gained": gain,
                    "score": score,
                    "words": f"{label} at {feature.labels[cell]}: {gain:+d} points, score {score}",
                }
            )
    return sorted(changes, key=lambda change: -int(change["points_gained"]))
