"""What is counted once a model is fitted: outcomes by log-odds, and what an audit of the scorecard needs.

Two releases follow the gradients, each one sum over persons of a vector whose length is bounded by
construction and clipped all the same:

=============  ============================================================  ==================
calibration    log-odds bin x outcome: one cell of 80 counts 1               sensitivity 1
audit, A       score bin x outcome: one cell counts 1                        together
audit, B       per fairness column: group x approved x outcome counts 1,     sqrt(1 + 2 G + 5)
               and the group's sum of probabilities grows by at most 1       for G columns
audit, C       of those at or slightly above the cut-off: points of every
               term over its largest, clipped to length 2, and a 1
=============  ============================================================  ==================

Layouts follow from the study alone. The holder fills them, :mod:`assay.models.calibration` and
:mod:`assay.models.audit` read their noisy sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from assay.models.additive import MARGIN, checked_labels, grouped, person_norms
from assay.models.encoding import Encoded, Grid
from assay.models.fairness import GroupColumn
from assay.models.schema import Study
from assay.models.scorecard import Scorecard, Scores, score_edges
from assay.privacy.errors import BadInput

__all__ = [
    "SCORE_BINS",
    "AuditTally",
    "CalibrationTally",
    "ClippedTally",
    "Tally",
    "log_odds",
    "one_hot",
    "tally_of",
]

LOG_ODDS = (-6.0, 4.0)
LOG_ODDS_BINS = 40
SCORE_BINS = 20
# Within a group: not approved and good, not approved and bad, approved and good, approved and bad, sum of p.
GROUP_CELLS = 5
_NEAR_NORM = 2.0
_CHUNK = 1 << 16

Groups = Mapping[str, NDArray[np.int64]]


class Tally(Protocol):
    """One vector per row, whose sum over persons is released."""

    @property
    def size(self) -> int:
        """Length of the vector."""

    @property
    def sensitivity(self) -> float:
        """Largest Euclidean length of one row's vector."""

    def rows(
        self, theta: NDArray[np.float64], encoded: Encoded, labels: NDArray[np.float64], groups: Groups
    ) -> Any:
        """Return the rows' vectors, sparse float64 [N, size]."""


@dataclass(frozen=True, kw_only=True)
class CalibrationTally:
    """How many are good and bad at which predicted log-odds; cell ``2 * bin + outcome``.

    Attributes:
        grid: the cells of the model.
    """

    grid: Grid

    @property
    def size(self) -> int:
        """See :class:`Tally`."""
        return 2 * LOG_ODDS_BINS

    @property
    def sensitivity(self) -> float:
        """See :class:`Tally`: a row counts 1 in one cell."""
        return 1.0

    def rows(
        self, theta: NDArray[np.float64], encoded: Encoded, labels: NDArray[np.float64], groups: Groups
    ) -> Any:
        """See :class:`Tally`; ``theta`` float64 [width] is the fitted model."""
        low, high = LOG_ODDS
        place = (log_odds(theta, encoded, self.grid) - low) * (LOG_ODDS_BINS / (high - low))
        bins = np.clip(np.floor(place), 0, LOG_ODDS_BINS - 1).astype(np.int64)
        return one_hot(2 * bins + labels.astype(np.int64), self.size)

    def middles(self) -> NDArray[np.float64]:
        """Return the log-odds in the middle of each bin, float64 [40]."""
        low, high = LOG_ODDS
        width = (high - low) / LOG_ODDS_BINS
        return np.asarray(low + width * (np.arange(LOG_ODDS_BINS) + 0.5), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class AuditTally:
    """What is known of a finished scorecard.

    Attributes:
        study: gives scale, cut-off and fairness columns.
        grid: the cells of the model.
    """

    study: Study
    grid: Grid

    @property
    def columns(self) -> tuple[GroupColumn, ...]:
        """The fairness columns that have groups."""
        return self.study.fairness.audited

    @property
    def size(self) -> int:
        """See :class:`Tally`."""
        return int(self.near.stop)

    @property
    def sensitivity(self) -> float:
        """See :class:`Tally`."""
        return math.sqrt(1 + 2 * len(self.columns) + _NEAR_NORM**2 + 1)

    @property
    def scores(self) -> slice:
        """Where the score bins lie: cell ``2 * bin + outcome``."""
        return slice(0, 2 * SCORE_BINS)

    def groups(self, index: int) -> slice:
        """Where the groups of column ``index`` lie, GROUP_CELLS each."""
        before = sum(len(column.labels) for column in self.columns[:index])
        start = self.scores.stop + GROUP_CELLS * before
        return slice(start, start + GROUP_CELLS * len(self.columns[index].labels))

    @property
    def near(self) -> slice:
        """Where the points of those near the cut-off lie: one per term, then how many they are."""
        start = self.scores.stop + GROUP_CELLS * sum(len(column.labels) for column in self.columns)
        return slice(start, start + len(self.grid.terms) + 1)

    def edges(self) -> NDArray[np.float64]:
        """Return the borders of the score bins, float64 [21]."""
        return score_edges(self.study.scale, SCORE_BINS)

    def largest(self, card: Scorecard) -> NDArray[np.float64]:
        """Return the largest points of each term in absolute value, at least 1; float64 [T]."""
        return np.maximum(np.maximum.reduceat(np.abs(card.points), self.grid.offsets[:-1]), 1).astype(float)

    def rows(
        self, theta: NDArray[np.float64], encoded: Encoded, labels: NDArray[np.float64], groups: Groups
    ) -> Any:
        """See :class:`Tally`; ``theta`` is :attr:`Scorecard.theta` of the finished card."""
        card = Scorecard.from_theta(self.study, self.grid, theta)
        scores = card.score(encoded)
        bad = labels.astype(np.int64)
        bins = np.searchsorted(self.edges(), scores.score, side="right") - 1
        blocks = (
            one_hot(2 * bins + bad, self.scores.stop),
            *(self._group_rows(each, groups.get(each.column), scores, bad) for each in self.columns),
            self._near_rows(card, scores),
        )
        return sparse.hstack(blocks, format="csr")

    def _group_rows(
        self, column: GroupColumn, codes: NDArray[np.int64] | None, scores: Scores, bad: NDArray[np.int64]
    ) -> Any:
        size = GROUP_CELLS * len(column.labels)
        if codes is None:  # this holder does not have the column
            return sparse.csr_matrix((len(bad), size))
        approved = (scores.score >= self.study.scale.threshold).astype(np.int64)
        counted = GROUP_CELLS * codes + 2 * approved + bad
        cells = np.stack([counted, GROUP_CELLS * codes + 4], axis=1)
        weights = np.stack([np.ones(len(bad)), scores.probability], axis=1)
        return _sparse(cells, weights, size)

    def _near_rows(self, card: Scorecard, scores: Scores) -> Any:
        """Points of those from the cut-off to one PDO above it; the others' rows are empty."""
        threshold = self.study.scale.threshold
        inside = (scores.score >= threshold) & (scores.score < threshold + self.study.scale.pdo)
        values = scores.points / self.largest(card)
        norms = np.sqrt((values**2).sum(axis=1))
        values *= (_NEAR_NORM / np.maximum(norms, _NEAR_NORM))[:, None]
        values = np.concatenate([values, np.ones((len(values), 1))], axis=1) * inside[:, None]
        return sparse.csr_matrix(values)


def tally_of(study: Study, grid: Grid, number: int) -> Tally:
    """Return what is counted in round ``number`` after the gradients: 1 is calibration, 2 the audit.

    Raises:
        BadInput: it is neither.
    """
    if number not in (1, 2):
        raise BadInput("tally", value=number, allowed="1 or 2")
    return CalibrationTally(grid=grid) if number == 1 else AuditTally(study=study, grid=grid)


class ClippedTally:
    """The sum over persons of a tally's rows, each person's part clipped to ``l2_clip_norm``.

    Guarantee: as for :class:`assay.models.additive.AdditiveClippedSum`: leaving out one person changes the
    result by at most ``l2_clip_norm`` in Euclidean norm, whatever the model.

    Attributes:
        l2_clip_norm: the sensitivity; a person of one row is never scaled down.
        width: length of the result.
    """

    def __init__(
        self,
        tally: Tally,
        encoded: Encoded,
        labels: ArrayLike,
        persons: ArrayLike | None,
        groups: Groups,
    ) -> None:
        """Keep the records.

        Args:
            tally: what is counted.
            encoded: N rows.
            labels: [N] of 0 and 1.
            persons: integers [N], equal for rows of one person; None: every row is a person.
            groups: group of each row by fairness column, int64 [N]; columns that are not there are left out.

        Raises:
            BadInput: an argument is not as described.
        """
        self.l2_clip_norm, self.width = tally.sensitivity, tally.size
        self._tally, self._encoded, self._groups = tally, encoded, groups
        self._labels = checked_labels(labels, len(encoded))
        self._order, self._starts = grouped(persons, len(encoded))
        if any(len(codes) != len(encoded) for codes in groups.values()):
            raise BadInput("groups", allowed="one per row")

    def __call__(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum at ``theta``, float64 [width]; a few thousand persons at a time."""
        out, person = np.zeros(self.width), 0
        while person < len(self._starts) - 1:
            end = int(np.searchsorted(self._starts, self._starts[person] + _CHUNK, side="right")) - 1
            end = min(max(end, person + 1), len(self._starts) - 1)
            out += self._part(theta, person, end)
            person = end
        return out

    def _part(self, theta: NDArray[np.float64], first: int, last: int) -> NDArray[np.float64]:
        rows = self._order[self._starts[first] : self._starts[last]]
        groups = {name: codes[rows] for name, codes in self._groups.items()}
        vectors = self._tally.rows(theta, self._encoded.rows(rows), self._labels[rows], groups)
        own = self._starts[first : last + 1] - self._starts[first]
        norms = person_norms(vectors, own, np.ones(len(rows)))
        limit = self.l2_clip_norm * (1 - MARGIN)
        scales = np.repeat(limit / np.maximum(norms, limit), np.diff(own))
        return np.asarray(vectors.T @ scales, dtype=np.float64)


def log_odds(theta: NDArray[np.float64], encoded: Encoded, grid: Grid) -> NDArray[np.float64]:
    """Return the model's log-odds of bad, float64 [N].

    Args:
        theta: float64 [width].
        encoded: N rows.
        grid: the cells that ``theta`` belongs to.
    """
    cells = np.append(theta[: grid.size], 0.0)  # what is absent takes the last entry
    steps = np.diff(cells, append=0.0)
    between = cells[encoded.low] + encoded.upper * steps[encoded.low]
    return np.asarray(between.sum(axis=1) + theta[grid.size + encoded.pattern - 1], dtype=np.float64)


def one_hot(cells: NDArray[np.int64], size: int) -> Any:
    """Return rows with a 1 in one column each, sparse float64 [N, size]."""
    return _sparse(cells[:, None], np.ones((len(cells), 1)), size)


def _sparse(cells: NDArray[np.int64], weights: NDArray[np.float64], size: int) -> Any:
    rows, each = cells.shape
    starts = np.arange(rows + 1) * each
    return sparse.csr_matrix((weights.ravel(), cells.ravel(), starts), shape=(rows, size))
