"""What would change a score: the best single change, every value of a feature, a person's own question.

The effect of changed data is owed to the person (Court of Justice of the EU, C-203/22). Only features that
the study calls changeable are varied; nothing is stored, and nothing is promised: a later score is computed
from what is known then, by the model that is in use then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models.encoding import ABSENT, Encoded, FeatureGrid
from assay.models.featuregrid import readable
from assay.models.plausible import plausible_values
from assay.models.scorecard import Scorecard, Scores
from assay.privacy.errors import BadInput

__all__ = ["MISSING", "best_changes", "changed_values", "effects", "parse_asked", "value_words"]


MISSING = "missing"  # the value of a feature whose component is there without it


def value_words(feature: FeatureGrid, value: Any) -> str:
    """Say a value, and what it counts as where that is something else."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return MISSING
    if feature.feature.domain is None:
        cell = int(feature.encode(np.array([value], dtype=object))[0][0])
        label = feature.labels[cell - feature.offset]
        return str(value) if label != "other" else f"{value} (counted as other)"
    low, high = feature.feature.domain
    words = f"{float(value):,.10g}"
    if low <= value <= high:
        return words
    return f"{words} (counted as {readable(low if value < low else high)})"


def best_changes(
    scorecard: Scorecard, columns: Mapping[str, NDArray[Any]], encoded: Encoded, scores: Scores
) -> list[dict[str, Any]]:
    """For each changeable feature the plausible value that gains most points, the nearest of several.

    Plausible is what :mod:`assay.models.plausible` says. Points that a feature has together with another one
    count with its own.

    Args:
        scorecard: the card.
        columns: the record as columns of length 1.
        encoded: the same on the card's grid.
        scores: its scores.
    """
    before = int(scores.points[0].sum(dtype=np.int64))
    changes = []
    for j, feature in _changeable(scorecard, encoded.low[0]):
        values = plausible_values(feature, columns.get(feature.feature.column), _cuts(scorecard, j))
        if not len(values):
            continue
        rows, after = _with(scorecard, encoded, j, values)
        gains = after.points.sum(axis=1, dtype=np.int64) - before
        away = np.abs(rows.low[:, j] + rows.upper[:, j] - encoded.low[0, j] - encoded.upper[0, j])
        best = int(np.lexsort((away, -gains))[0])
        if gains[best] > 0:
            label, value = feature.label, value_words(feature, values[best])
            gain, score = int(gains[best]), int(after.score[best])
            changes.append(
                {
                    "feature": feature.name,
                    "value": value,
                    "points_gained": gain,
                    "score": score,
                    "words": f"{label} at {value}: {gain:+d} points, score {score}",
                }
            )
    return sorted(changes, key=lambda change: -int(change["points_gained"]))


def effects(scorecard: Scorecard, encoded: Encoded) -> list[dict[str, Any]]:
    """For each changeable feature that was scored: what each of its values would give, all else as it is.

    ``points`` are those of the feature alone; ``together`` those of the pairs it is one half of, None where
    there is no pair.
    """
    found = []
    for j, feature in _changeable(scorecard, encoded.low[0]):
        _, after = _with(scorecard, encoded, j, _all_values(feature))
        pairs = _pairs_of(scorecard, j)
        values = [
            {
                "value": feature.labels[cell],
                "points": int(after.points[cell, j]),
                "together": int(after.points[cell, pairs].sum()) if pairs else None,
                "score": int(after.score[cell]),
            }
            for cell in range(_known(feature))
        ]
        found.append({"feature": feature.name, "label": feature.label, "values": values})
    return found


def _with(scorecard: Scorecard, encoded: Encoded, j: int, values: NDArray[Any]) -> tuple[Encoded, Scores]:
    """Encode and score a record with each of N values of feature ``j`` in turn, all else as it is."""
    grid = scorecard.grid
    rows = encoded.rows(np.zeros(len(values), dtype=np.int64))
    rows.low[:, j], rows.upper[:, j] = grid.features[j].encode(values)
    grid.fill_pairs(rows.low, rows.upper)
    return rows, scorecard.score(rows)


def _all_values(feature: FeatureGrid) -> NDArray[Any]:
    """Return a value in each known cell, at each knot."""
    if feature.feature.kind == "categorical":
        return np.array(feature.feature.levels, dtype=object)
    if feature.feature.kind == "numeric":
        return feature.knot_values
    return (feature.feature.domain or (0.0, 0.0))[0] + np.arange(feature.ordered, dtype=np.float64)


def _pairs_of(scorecard: Scorecard, j: int) -> list[int]:
    """Return the places of the pairs that feature ``j`` is one half of, among the terms."""
    pairs = enumerate(scorecard.grid.pairs, start=len(scorecard.grid.features))
    return [place for place, pair in pairs if j in (pair.first.index, pair.second.index)]


def _cuts(scorecard: Scorecard, j: int) -> list[float]:
    """Return the values of numeric feature ``j`` at which points of its pairs jump."""
    groups = (each for pair in scorecard.grid.pairs for each in (pair.first, pair.second))
    return [
        each.feature.value_at(border)
        for each in groups
        if each.index == j and each.feature.kind == "hat"
        for border in each.borders
    ]


def parse_asked(asked: Sequence[str]) -> dict[str, str]:
    """Read what a person asks for, such as ``["status_1=0", "paid_1=5000"]``: feature name -> value as text.

    Raises:
        BadInput: a part is not ``NAME=VALUE``, or a name comes twice.
    """
    found: dict[str, str] = {}
    for part in asked:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise BadInput("what-if", value=part, allowed="NAME=VALUE, such as status_1=0")
        if name in found:
            raise BadInput("what-if", value=part, allowed="each feature once")
        found[name] = value
    return found


def changed_values(
    scorecard: Scorecard, low: NDArray[np.int32], asked: Mapping[str, str]
) -> dict[str, float | str]:
    """Return what ``asked`` sets, each value read as its feature is. Numbers may lie outside the domain.

    Args:
        scorecard: the card.
        low: int32 [F], the person's cells: what belongs to an unknown component cannot be varied.
        asked: feature name -> value as text.

    Raises:
        BadInput: a feature is unknown, not changeable or not known of this person, or its value is none.
    """
    open_to = {feature.name: feature for _, feature in _changeable(scorecard, low)}
    known = {feature.name: feature for feature in scorecard.grid.features}
    pairs = {pair.name for pair in scorecard.grid.pairs}
    values: dict[str, float | str] = {}
    for name, text in asked.items():
        if name not in open_to:
            why = "It is no feature of the study"
            if name in pairs:
                why = "It is two features together: change one of them"
            if name in known:
                why = "It is not changeable"
                if known[name].feature.changeable:
                    why = "Nothing of its component is known here, so that no value of it was scored"
            allowed = ", ".join(open_to) or "nothing, no feature that was scored is changeable"
            raise BadInput("what-if", value=name, allowed=allowed, remedy=why)
        values[name] = _value(open_to[name], text)
    return values


def _value(feature: FeatureGrid, text: str) -> float | str:
    setting = f"what-if {feature.name}"
    if feature.feature.domain is None:
        if text not in feature.feature.levels:
            raise BadInput(setting, value=text, allowed=f"one of {', '.join(feature.feature.levels)}")
        return text
    whole = feature.feature.kind == "integer"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (whole and value != int(value)):
        raise BadInput(setting, value=text, allowed="a whole number" if whole else "a number such as 1500.5")
    return value


def _changeable(scorecard: Scorecard, low: NDArray[np.int32]) -> list[tuple[int, FeatureGrid]]:
    """Index and layout of the features that were scored and may be varied."""
    features = enumerate(scorecard.grid.features)
    return [(j, each) for j, each in features if each.feature.changeable and low[j] != ABSENT]


def _known(feature: FeatureGrid) -> int:
    """How many leading cells are values: "other" and "missing" are no advice."""
    return feature.ordered or feature.cells - 2
