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

from assay.models.encoding import ABSENT, FeatureGrid, readable
from assay.models.scorecard import Scorecard
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
    scorecard: Scorecard, low: NDArray[np.int32], points: Sequence[int], *, base: int
) -> list[dict[str, Any]]:
    """For each changeable feature the value that gains most points, the nearest one where several do.

    Between two knots points run straight, so that the best value is at a knot.
    """
    total = base + sum(points)
    changes = []
    for j, feature in _changeable(scorecard, low):
        known = _known(feature)
        own = scorecard.points[feature.offset : feature.offset + known]
        best = np.flatnonzero(own == own.max())
        cell = int(best[np.argmin(np.abs(best + feature.offset - low[j]))])
        gain = int(own[cell]) - points[j]
        if gain > 0:
            score = _within(scorecard, total + gain)
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


def effects(
    scorecard: Scorecard, low: NDArray[np.int32], points: Sequence[int], *, base: int
) -> list[dict[str, Any]]:
    """For each changeable feature that was scored: what each of its values would give, all else as it is."""
    total = base + sum(points)
    found = []
    for j, feature in _changeable(scorecard, low):
        values = []
        for cell in range(_known(feature)):
            own = int(scorecard.points[feature.offset + cell])
            score = _within(scorecard, total - points[j] + own)
            values.append({"value": feature.labels[cell], "points": own, "score": score})
        found.append({"feature": feature.name, "label": feature.feature.label, "values": values})
    return found


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
    values: dict[str, float | str] = {}
    for name, text in asked.items():
        if name not in open_to:
            why = "It is no feature of the study"
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


def _within(scorecard: Scorecard, total: int) -> int:
    scale = scorecard.study.scale
    return min(max(total, scale.low), scale.high)
