"""One record at a time, for a service that answers a request per person: plain Python on tables made once.

:meth:`Scorecard.score` is made for many rows and spends most of a single one on setting arrays up. A
:class:`RowScorer` gives the same numbers, bit for bit, in a small part of that time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from assay.models.encoding import STEPS, FeatureGrid, PairGrid
from assay.models.pairgrid import Groups
from assay.models.scorecard import BANDS, FINE, REASONS, Scorecard, band_cuts
from assay.privacy.errors import BadData, BadInput

__all__ = ["RowScorer", "ScoredRow"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredRow:
    """The result for one record of T terms; see :class:`~assay.models.scorecard.Scores`.

    Attributes:
        points: [T]; 0 where the term's component is absent.
        base: base points of the components that are there.
        score: clipped to the scale.
        capped: base + points + capped = score.
        probability: of bad, from the total before clipping.
        band: index into ``BANDS``.
        reasons: indices of terms, most points lost first; at most 4.
    """

    points: tuple[int, ...]
    base: int
    score: int
    capped: int
    probability: float
    band: int
    reasons: tuple[int, ...]

    @property
    def band_words(self) -> str:
        """The band in words."""
        return BANDS[self.band][0]


class RowScorer:
    """Scores single records with one card; made once, then used from any number of threads."""

    def __init__(self, card: Scorecard) -> None:
        grid, scale, points = card.grid, card.study.scale, card.points.tolist()
        self._features = [
            (
                feature.feature.column,
                1 << grid.components.index(feature.component),
                _points_of(feature, points),
                points[feature.missing],
            )
            for feature in grid.features
        ]
        self._pairs = [_pair_points(pair, points) for pair in grid.pairs]
        self._bases = card.bases.tolist()
        self._scale = (scale.low, scale.high, scale.offset, 2 * scale.factor)
        self._cuts = band_cuts(scale)[::-1]
        # As in Scorecard.score: the difference from the mean in the high bits, the term in the low ones.
        fine = np.floor(card.means * FINE + 0.5).astype(np.int64).tolist()
        self._keys = [(1 << int(m), j - fine[j] * FINE) for j, m in enumerate(grid.members)]

    def score(self, record: Mapping[str, object]) -> ScoredRow:
        """Score one record.

        Args:
            record: column -> value, as for :func:`assay.models.explain.explain`: a number, a string for a
                categorical feature, None for missing. A column that is absent is missing; a component
                without any column is absent and counts nothing.

        Raises:
            BadInput: the record has no column of the study.
            BadData: a value is no number or infinite, or a fraction where whole numbers are due.
        """
        pattern, points = 0, []
        for column, bit, points_of, missing in self._features:
            if column in record:
                pattern |= bit
                value = record[column]
                points.append(missing if value is None else points_of(value))
            else:
                points.append(missing)
        if not pattern:
            raise BadInput("columns", allowed="at least one that is a feature of the study")
        points += [points_of(record) for points_of in self._pairs]
        keys = []
        for j, (bit, mean) in enumerate(self._keys):
            if pattern & bit:
                keys.append(points[j] * (FINE * FINE) + mean)
            else:
                points[j] = 0
        keys.sort()
        return self._finished(points, self._bases[pattern - 1], tuple(key % FINE for key in keys[:REASONS]))

    def _finished(self, points: list[int], base: int, reasons: tuple[int, ...]) -> ScoredRow:
        low, high, offset, twice_factor = self._scale
        total = base + sum(points)
        score = min(max(total, low), high)
        return ScoredRow(
            points=tuple(points),
            base=base,
            score=score,
            capped=score - total,
            # numpy's tanh, here and in the transforms below its logarithm: the last bit of others differs.
            probability=0.5 * (1.0 + float(np.tanh((offset - total) / twice_factor))),
            band=len(self._cuts) - bisect_right(self._cuts, score),
            reasons=reasons,
        )


def _points_of(feature: FeatureGrid, points: list[int]) -> Callable[[object], int]:
    """Return the function from a value that is there to points; the same steps as ``FeatureGrid.encode``."""
    own = points[feature.offset : feature.offset + feature.cells]
    if feature.feature.kind == "categorical":
        table = {text: points[cell] for text, cell in feature.texts.items()}
        other = own[-2]
        return lambda value: table.get(str(value), other)
    if feature.feature.kind == "integer":
        return _bins(feature, own)
    return _hat(feature, own)


def _bins(feature: FeatureGrid, own: list[int]) -> Callable[[object], int]:
    low, high = feature.feature.domain or (0.0, 0.0)
    column = feature.feature.column

    def points_of(value: object) -> int:
        number = _number(value, column)
        if number != number:
            return own[-1]
        if number != math.floor(number):
            raise BadData(f"column {column!r}", allowed="whole numbers")
        return own[int(min(max(number, low), high) - low)]

    return points_of


def _hat(feature: FeatureGrid, own: list[int]) -> Callable[[object], int]:
    step_of, missing, last = _step_of(feature), own[-1], len(feature.knots) - 1
    lowest = [points * STEPS + STEPS // 2 for points in own[:-1]]
    steps = [after - before for before, after in pairwise(own[:-1])]

    def points_of(value: object) -> int:
        step = step_of(value)
        if step < 0:
            return missing
        cell = min(step // STEPS, last - 1)
        return (lowest[cell] + steps[cell] * (step - cell * STEPS)) // STEPS

    return points_of


def _step_of(feature: FeatureGrid) -> Callable[[object], int]:
    """Return the function from a value that is there to its steps from the first knot, -1 where it is NaN."""
    low, high = map(float, feature.feature.domain or (0.0, 0.0))
    first, last = float(feature.knots[0]), len(feature.knots) - 1
    slope = float(last / (feature.knots[-1] - feature.knots[0]))
    column, transform = feature.feature.column, feature.feature.transform
    log1p = np.log1p

    def step_of(value: object) -> int:
        number = _number(value, column)
        if number != number:
            return -1
        number = min(max(number, low), high)
        if transform == "log":
            number = float(log1p(number))
        elif transform == "signed_log":
            number = math.copysign(float(log1p(abs(number))), number)
        return int(min(max((number - first) * slope, 0.0), last) * STEPS + 0.5)

    return step_of


def _pair_points(pair: PairGrid, points: list[int]) -> Callable[[Mapping[str, object]], int]:
    """Return the function from a record to the points of a pair, those of "missing" where one is missing."""
    first, second, missing = _group_of(pair.first), _group_of(pair.second), points[pair.missing]
    one, other = pair.columns
    table = [
        [points[pair.cell(i, j)] for j in range(len(pair.second.labels))]
        for i in range(len(pair.first.labels))
    ]

    def points_of(record: Mapping[str, object]) -> int:
        a, b = record.get(one), record.get(other)
        if a is None or b is None:
            return missing
        i, j = first(a), second(b)
        return missing if i < 0 or j < 0 else table[i][j]

    return points_of


def _group_of(groups: Groups) -> Callable[[object], int]:
    """Return the function from a value that is there to its group, -1 where it is NaN."""
    feature = groups.feature
    if feature.feature.kind == "categorical":
        table = {text: groups.group(cell - feature.offset) for text, cell in feature.texts.items()}
        other = len(groups.labels) - 1
        return lambda value: table.get(str(value), other)
    if feature.feature.kind == "integer":
        values = [groups.group(place) for place in range(feature.ordered)]
        return _bins(feature, [*values, -1])
    step_of, group = _step_of(feature), groups.group

    def group_of(value: object) -> int:
        step = step_of(value)
        return -1 if step < 0 else group(step)

    return group_of


def _number(value: object, column: str) -> float:
    """Return ``value`` as float64.

    Raises:
        BadData: it is no number or infinite.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if number in (math.inf, -math.inf):
        raise BadData(f"column {column!r}", allowed="finite numbers")
    return number
