"""Why a person got this score, in words: points per feature, reasons, and what would change it.

The logic and the effect of changed data are owed to the person (Court of Justice of the EU, C-203/22).
Nothing is stored. The points that are explained are the ones that :meth:`Scorecard.score` gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models.encoding import FeatureGrid, readable
from assay.models.scorecard import BANDS, Scorecard

__all__ = ["explain", "explanation_in_words", "reason_words"]


def reason_words(label: str, difference: int) -> str:
    """Say how a feature's points compare with the population's average, rounded to whole points."""
    if difference == 0:
        return f"{label}: as many points as average"
    points = "point" if abs(difference) == 1 else "points"
    return f"{label}: {abs(difference)} {points} {'more' if difference > 0 else 'fewer'} than average"


def explain(scorecard: Scorecard, record: Mapping[str, object]) -> dict[str, Any]:
    """Explain one score.

    Args:
        scorecard: the card.
        record: column -> value; a number, a string for a categorical feature, None for missing. A
            column that is absent is missing.

    Returns:
        A JSON object: ``features`` (name, label, value, points, average_points), ``base_points``,
        ``capped``, ``score``, ``probability``, ``band``, ``reasons`` (feature, words, points_lost) and
        ``what_if`` (per changeable feature the best single change within the public range).

    Raises:
        BadData: a value is infinite, or a fraction where whole numbers are due.
    """
    columns = {f.feature.column: _column(f, record.get(f.feature.column)) for f in scorecard.grid.features}
    encoded = scorecard.grid.encode(columns)
    result = scorecard.score(encoded)
    points = [int(p) for p in result.points[0]]
    features = [
        {
            "name": feature.name,
            "label": feature.feature.label,
            "value": _value_words(feature, columns[feature.feature.column][0]),
            "points": points[j],
            "average_points": round(float(scorecard.means[j]), 1),
        }
        for j, feature in enumerate(scorecard.grid.features)
    ]
    return {
        "score": int(result.score[0]),
        "probability": float(result.probability[0]),
        "band": BANDS[int(result.band[0])][0],
        "base_points": scorecard.base_points,
        "features": features,
        "capped": int(result.capped[0]),
        "reasons": [_reason(scorecard, int(j), points[int(j)]) for j in result.reasons[0]],
        "what_if": _what_if(scorecard, encoded.low[0], points),
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


def _rounded(value: float) -> int:
    return int(np.floor(value + 0.5))


def _what_if(scorecard: Scorecard, low: NDArray[np.int32], points: list[int]) -> list[dict[str, Any]]:
    """For each changeable feature the value that gains most points, the nearest one where several do.

    Between two knots points run straight, so that the best value is at a knot.
    """
    total = scorecard.base_points + sum(points)
    scale = scorecard.study.scale
    changes = []
    for j, feature in enumerate(scorecard.grid.features):
        # "other" and "missing" are no advice.
        known = feature.ordered or feature.cells - 2
        own = scorecard.points[feature.offset : feature.offset + known]
        best = np.flatnonzero(own == own.max())
        cell = int(best[np.argmin(np.abs(best + feature.offset - low[j]))])
        gain = int(own[cell]) - points[j]
        if feature.feature.changeable and gain > 0:
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
