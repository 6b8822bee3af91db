"""Values that a person could come to have: what a what-if proposes.

The best value of a public range is often one that nobody gets to: an income of a million instead of 1,200.
So a proposal stays near the person's own value and is said in round numbers:

===========  ===========================================================================================
categorical  any level
integer      at most ten values away, or a seventh of the domain where that is more
numeric      at most a seventh of the domain away on the scale of its knots, which is what lies between two
             of them, or a hundredth of the domain as it is where that is more; at least a thousandth of it,
             because less is no change; in two significant digits of the change
missing      as if the person were in the middle of the domain
===========  ===========================================================================================

All of it lies in the public domain and follows from the study and the person's own value alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models.feature import transformed
from assay.models.featuregrid import FeatureGrid

__all__ = ["plausible_values"]

_SHARE = 1 / 7  # of the domain: the distance of neighbouring knots
_VALUES = 10
_MOST, _LEAST = 0.01, 0.001  # of the domain as it is
_DIGITS = 2
_FINEST = 290  # digits, behind the point or before it, that float64 has room for


def plausible_values(
    feature: FeatureGrid, own: NDArray[Any] | None, cuts: Sequence[float] = ()
) -> NDArray[Any]:
    """Return values to try, the person's own left out where it is known.

    Between two knots points run straight, and at the cuts of pairs they jump: the most points are at one of
    these or at the end of what is plausible, or as near to it as round numbers come.

    Args:
        feature: its layout.
        own: the person's value, [1], as ``FeatureGrid.encode`` takes it; None: missing.
        cuts: values at which points of pairs jump.

    Returns:
        [N], float64 or for a categorical feature texts; may be empty.
    """
    value = None if own is None else own[0]
    if feature.feature.domain is None:
        return np.array([level for level in feature.feature.levels if level != value], dtype=object)
    low, high = map(float, feature.feature.domain)
    width = min(high - low, sys.float_info.max)
    known = value is not None and not math.isnan(value)
    at = float(np.clip(own[0], low, high)) if own is not None and known else _middle(feature)
    if feature.feature.kind == "integer":
        start = math.floor(at)
        reach = max(_VALUES, math.floor(width * _SHARE))
        whole = np.arange(max(low, start - reach), min(high, start + reach) + 1)
        return whole[whole != start] if known else whole
    least = _LEAST * width
    found = [each for place in _places(feature, at, cuts) for each in _rounded(place, at, least)]
    inside = sorted({min(max(each, low), high) for each in found})
    return np.array([each for each in inside if not known or abs(each - at) >= least], dtype=np.float64)


def _middle(feature: FeatureGrid) -> float:
    if feature.feature.kind == "integer":
        return sum(feature.feature.domain or (0.0, 0.0)) / 2
    return feature.value_between((feature.knots[0] + feature.knots[-1]) / 2)


def _places(feature: FeatureGrid, start: float, cuts: Sequence[float]) -> list[float]:
    """Return the ends of what is plausible, and the knots and cuts between them."""
    low, high = map(float, feature.feature.domain or (0.0, 0.0))
    at = float(transformed(np.array([start]), feature.feature.transform)[0])
    reach = float(feature.knots[-1] - feature.knots[0]) * _SHARE
    lowest = feature.value_between(max(at - reach, float(feature.knots[0])))
    highest = feature.value_between(min(at + reach, float(feature.knots[-1])))
    lowest = max(low, min(lowest, start - _MOST * (high - low)))
    highest = min(high, max(highest, start + _MOST * (high - low)))
    inner = [float(each) for each in (*feature.knot_values, *cuts) if lowest < each < highest]
    return [lowest, highest, *inner]


def _rounded(value: float, start: float, least: float) -> tuple[float, float]:
    """Return the round numbers on both sides of ``value``, by two digits of its distance from ``start``."""
    digits = _DIGITS - 1 - math.floor(math.log10(max(abs(value - start), least)))
    if abs(digits) > _FINEST:
        return value, value
    unit = 10.0**digits
    return round(math.floor(value * unit) / unit, digits), round(math.ceil(value * unit) / unit, digits)
