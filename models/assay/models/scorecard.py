"""The scorecard: integer points per cell, a base, and a score that adds up exactly.

``score = offset + factor * ln(good:bad odds)`` with ``factor = pdo / ln 2`` (Siddiqi, *Credit Risk
Scorecards*, 2006, ch. 6). The points of a feature are counted from the population's average, which is
part of the base, so that they read "this many more or fewer than the average". All of it comes from
released numbers (the model and noisy counts) and is therefore free of privacy cost.

No torch here: scoring a person must not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models.encoding import ABSENT, STEPS, Encoded, Grid
from assay.models.schema import Scale, Study
from assay.privacy.errors import BadInput

__all__ = ["BANDS", "FINE", "REASONS", "Scorecard", "Scores", "score_edges"]

# From the top: words, and how many PDO above the anchor the band begins. With the default scale the cuts
# are 700, 650, 600 and 550: a chance of bad of 1.4, 3.2, 7.3 and 16 %.
BANDS: tuple[tuple[str, float], ...] = (
    ("very low risk", 1.25),
    ("low risk", 0.0),
    ("medium risk", -1.25),
    ("high risk", -2.5),
    ("very high risk", -math.inf),
)
REASONS = 4
MAX_POINTS = 1_000_000  # of one cell; anything larger is a broken model
_CHUNK = 1 << 12  # rows scored at a time: temporaries stay in the processor's cache
_MAX_LOG_ODDS = 1e9  # of a card that is not yet checked
FINE = 1024  # differences from the mean are compared in steps of 1/1024 point
_BEHIND = 4 * MAX_POINTS * FINE * FINE  # a multiple of FINE, beyond every difference


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The result for N rows and T terms: the features and, behind them, the pairs of the study.

    Attributes:
        points: int32 [N, T]; 0 where the term's component is absent.
        base: int32 [N], the base points of each row's pattern.
        score: int32 [N], clipped to the scale.
        capped: int32 [N]; base + points + capped = score.
        probability: float64 [N] of bad, from the total before clipping.
        band: int8 [N], index into :data:`BANDS`.
        reasons: int16 [N, min(4, T)], indices of terms, most points lost first; -1 where there are fewer.
    """

    points: NDArray[np.int32]
    base: NDArray[np.int32]
    score: NDArray[np.int32]
    capped: NDArray[np.int32]
    probability: NDArray[np.float64]
    band: NDArray[np.int8]
    reasons: NDArray[np.int16]


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """Points for every cell of a study.

    Attributes:
        study: what is scored.
        grid: its cells.
        points: int64 [grid.size].
        bases: int64 [grid.patterns], what everybody with pattern 1, 2, ... starts from.
        means: float64 [T], mean points of the population, from noisy counts: the baseline of the reasons.
        near: float64 [T], mean points of those whose score is at the cut-off or slightly above it, from a
            noisy sum; None where there is none. The baseline of the other kind of reasons.
    """

    study: Study
    grid: Grid
    points: NDArray[np.int64]
    bases: NDArray[np.int64]
    means: NDArray[np.float64]
    near: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.points.shape != (self.grid.size,) or not (np.abs(self.points) <= MAX_POINTS).all():
            raise BadInput("points", allowed=f"{self.grid.size} whole numbers within ±{MAX_POINTS}")
        for name, means in (("means", self.means), ("near", self.near)):
            if means is None:
                continue
            if means.shape != (len(self.grid.terms),) or not (np.abs(means) <= MAX_POINTS).all():
                raise BadInput(name, allowed=f"{len(self.grid.terms)} numbers within ±{MAX_POINTS}")
        if self.bases.shape != (self.grid.patterns,) or not (np.abs(self.bases) <= 1000 * MAX_POINTS).all():
            raise BadInput(
                "base points", allowed=f"{self.grid.patterns} whole numbers within ±{1000 * MAX_POINTS}"
            )

    @property
    def base_points(self) -> int:
        """What everybody starts from of whom all components are known."""
        return int(self.bases[-1])

    @classmethod
    def of(
        cls, study: Study, grid: Grid, theta: NDArray[np.float64], counts: NDArray[np.float64]
    ) -> Scorecard:
        """Turn a model into points.

        Args:
            study: gives the scale.
            grid: the cells ``theta`` belongs to.
            theta: float64 [width], log-odds of bad per cell, then the intercept of each pattern.
            counts: float64 [width], noisy numbers of persons per cell and per pattern; negative ones count
                as 0.

        Raises:
            BadInput: a number is not finite, or the arrays do not fit the grid.
        """
        for name, values in (("theta", theta), ("counts", counts)):
            if values.shape != (grid.width,) or not np.isfinite(values).all():
                raise BadInput(name, allowed=f"{grid.width} finite numbers")
        scale, counts = study.scale, counts[: grid.size]
        raw = -scale.factor * theta[: grid.size]
        shift = _means(raw, counts, grid)
        exact = raw - np.repeat(shift, np.diff(grid.offsets))
        if not (np.abs(exact) < MAX_POINTS).all():
            raise BadInput("theta", allowed=f"log-odds worth less than {MAX_POINTS} points")
        points = np.floor(exact + 0.5)
        means = _means(points, counts, grid)
        # The base takes up what rounding the cells did to the population's mean score.
        there = np.arange(1, grid.patterns + 1)[:, None] >> grid.members[None, :] & 1
        bases = scale.offset - scale.factor * theta[grid.size :] + there @ (shift - means)
        return cls(
            study=study,
            grid=grid,
            points=points.astype(np.int64),
            bases=np.floor(bases + 0.5).astype(np.int64),
            means=means,
        )

    @classmethod
    def from_theta(cls, study: Study, grid: Grid, theta: NDArray[np.float64]) -> Scorecard:
        """Return the card whose :attr:`theta` this is; its means are not known and 0.

        Raises:
            BadInput: a number is not finite or beyond every card, or the array does not fit the grid.
        """
        if theta.shape != (grid.width,) or not (np.abs(theta) <= _MAX_LOG_ODDS).all():
            raise BadInput("theta", allowed=f"{grid.width} finite log-odds")
        points = np.rint(-study.scale.factor * theta[: grid.size]).astype(np.int64)
        bases = np.rint(study.scale.offset - study.scale.factor * theta[grid.size :]).astype(np.int64)
        return cls(study=study, grid=grid, points=points, bases=bases, means=np.zeros(len(grid.terms)))

    @property
    def theta(self) -> NDArray[np.float64]:
        """The card as a model, float64 [width]: log-odds of bad per cell, then per pattern.

        What is left out is the rounding of points between two knots to whole ones.
        """
        scale = self.study.scale
        return np.concatenate([-self.points, scale.offset - self.bases]) / scale.factor

    def score(self, encoded: Encoded) -> Scores:
        """Score N rows; a row gets the same result alone as among a million.

        Raises:
            BadInput: the rows were not encoded on this card's grid.
        """
        rows, width = encoded.low.shape
        if width != len(self.grid.terms):
            raise BadInput("encoded terms", value=width, allowed=str(len(self.grid.terms)))
        points = np.empty((rows, width), dtype=np.int32)
        reasons = np.empty((rows, min(REASONS, width)), dtype=np.int16)
        total = np.empty(rows, dtype=np.int64)
        values, steps = self._tables()
        base = self.bases[encoded.pattern - 1]
        between = np.empty((min(rows, _CHUNK), width), dtype=np.int32)
        slope, keys = np.empty_like(between), np.empty_like(between, dtype=np.int64)
        for start in range(0, rows, _CHUNK):
            part = slice(start, start + _CHUNK)
            low, own = encoded.low[part], points[part]
            if len(low) < len(between):
                between, slope, keys = between[: len(low)], slope[: len(low)], keys[: len(low)]
            np.multiply(encoded.upper[part], np.float32(STEPS), out=between, casting="unsafe")
            between *= steps.take(low, mode="wrap", out=slope)
            between += values.take(low, mode="wrap", out=slope)
            np.floor_divide(between, STEPS, out=own)
            # Within MAX_POINTS and MAX_FEATURES the sum fits in 32 bits.
            np.add(np.einsum("ij->i", own), base[part], out=total[part])
            reasons[part] = self._reasons(own, low, keys)
        return self._finished(points, base, total, reasons)

    def add_up(self, points: NDArray[np.int32], pattern: NDArray[np.int32]) -> Scores:
        """Score N rows whose points are known already, such as those that several holders stated.

        Args:
            points: int32 [N, T], as :attr:`Scores.points`; not looked at where the component is absent.
            pattern: int32 [N], the components of each row, see :attr:`Encoded.pattern`.

        Raises:
            BadInput: the arrays do not fit this card.
        """
        rows, terms = len(pattern), len(self.grid.terms)
        known = ((pattern >= 1) & (pattern <= self.grid.patterns)).all()
        if points.shape != (rows, terms) or not known:
            raise BadInput("points", allowed=f"{terms} per row, and at least one component")
        there = (pattern[:, None] >> self.grid.members[None, :] & 1) == 1
        own = np.where(there, points, 0).astype(np.int32)
        base = self.bases[pattern - 1]
        low = np.where(there, 0, ABSENT).astype(np.int32)
        keys = np.empty_like(own, dtype=np.int64)
        return self._finished(
            own, base, own.sum(axis=1, dtype=np.int64) + base, self._reasons(own, low, keys)
        )

    def probability_of(self, total: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the chance of bad at uncapped totals, float64, overflow-free."""
        scale = self.study.scale
        half = (scale.offset - total) / (2 * scale.factor)
        return np.asarray(0.5 * (1.0 + np.tanh(half)), dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return the points table as plain data for machines and people; pairs are among the features."""
        features = []
        for index, term in enumerate(self.grid.terms):
            own = self.points[term.offset : term.offset + term.cells].tolist()
            cells = [{"value": w, "points": p} for w, p in zip(term.labels, own, strict=True)]
            features.append(
                {
                    "name": term.name,
                    "label": term.label,
                    "kind": term.kind,
                    "component": term.component,
                    "mean_points": float(self.means[index]),
                    "near_points": None if self.near is None else float(self.near[index]),
                    "cells": cells,
                }
            )
        bands = [{"band": BANDS[i][0], "from": cut} for i, cut in enumerate(band_cuts(self.study.scale))]
        return {
            "version": 1,
            "study": self.study.digest,
            "knots": self.grid.knots,
            "base_points": self.base_points,
            "bases": [
                {"components": list(self.grid.components_of(pattern)), "points": base}
                for pattern, base in enumerate(self.bases.tolist(), start=1)
            ],
            "features": features,
            "bands": [*bands, {"band": BANDS[-1][0], "from": self.study.scale.low}],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], study: Study) -> Scorecard:
        """Read what :meth:`to_json` returned.

        Raises:
            BadInput: it is not a scorecard of ``study``.
        """
        try:
            if value["version"] != 1 or value["study"] != study.digest or not 2 <= value["knots"] <= 1000:
                raise BadInput("scorecard", allowed="version 1, of the study beside it")
            grid = Grid.of(study, knots=int(value["knots"]))
            features = value["features"]
            names = [(feature["name"], len(feature["cells"])) for feature in features]
            points = [cell["points"] for feature in features for cell in feature["cells"]]
            means = [feature["mean_points"] for feature in features]
            near = [feature["near_points"] for feature in features]
            bases = [base["points"] for base in value["bases"]]
            everything = value["base_points"]
            patterns = [tuple(base["components"]) for base in value["bases"]]
        except (KeyError, TypeError):
            raise BadInput("scorecard", allowed="the JSON that a scorecard writes") from None
        if names != [(term.name, term.cells) for term in grid.terms]:
            raise BadInput("scorecard", allowed="the features and cells of the study beside it")
        if patterns != [grid.components_of(pattern) for pattern in range(1, grid.patterns + 1)]:
            raise BadInput("scorecard", allowed="a base for every choice of the study's components")
        if not all(type(number) is int for number in (*points, *bases)) or everything != bases[-1]:
            raise BadInput("points", allowed="whole numbers; base_points is the last of the bases")
        known = any(number is not None for number in near)
        if not all(type(number) is float for number in (*means, *(near if known else ()))):
            raise BadInput("means", allowed="numbers")
        return cls(
            study=study,
            grid=grid,
            points=np.array(points, dtype=np.int64),
            bases=np.array(bases, dtype=np.int64),
            means=np.array(means, dtype=np.float64),
            near=np.array(near, dtype=np.float64) if known else None,
        )

    def _tables(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return points of each cell in 1/STEPS, half a point added for rounding, and the step to the next.

        One more entry, at the end, is for what is absent. Within MAX_POINTS all sums fit in 32 bits.
        """
        values = np.append(self.points * STEPS + STEPS // 2, STEPS // 2)
        steps = np.append(np.diff(self.points, append=self.points[-1:]), 0)
        return values.astype(np.int32), steps.astype(np.int32)

    def _reasons(
        self, points: NDArray[np.int32], low: NDArray[np.int32], keys: NDArray[np.int64]
    ) -> NDArray[np.int16]:
        """Terms furthest below the population's mean, ties in study order; -1: none. ``keys`` is scratch.

        Regulation B, official commentary to 12 CFR 1002.9(b)(2), 5: the method that compares with the
        average of all applicants.
        """
        width = points.shape[1]
        fine = np.floor(self.means * FINE + 0.5).astype(np.int64)
        # The difference in the high bits and the term in the low ones: one partial sort does both.
        np.multiply(points, FINE * FINE, out=keys, dtype=np.int64)
        keys += np.arange(width) - fine * FINE
        absent = low < 0
        if absent.any():
            keys[absent] += _BEHIND
        count = min(REASONS, width)
        keys.partition(count - 1, axis=1)
        worst = np.sort(keys[:, :count], axis=1)
        return np.where(worst < _BEHIND // 2, worst & (FINE - 1), ABSENT).astype(np.int16)

    def _finished(
        self,
        points: NDArray[np.int32],
        base: NDArray[np.int64],
        total: NDArray[np.int64],
        reasons: NDArray[np.int16],
    ) -> Scores:
        scale = self.study.scale
        score = np.clip(total, scale.low, scale.high)
        cuts = np.array(band_cuts(scale)[::-1])
        below = len(cuts) - np.searchsorted(cuts, score, side="right")
        return Scores(
            points=points,
            base=base.astype(np.int32),
            score=score.astype(np.int32),
            capped=(score - total).astype(np.int32),
            probability=self.probability_of(total),
            band=below.astype(np.int8),
            reasons=reasons,
        )


def score_edges(scale: Scale, bins: int) -> NDArray[np.float64]:
    """Return the borders of equal score bins, float64 [bins + 1]; the last bin holds the highest score."""
    return np.linspace(scale.low, scale.high + 1, bins + 1)


def band_cuts(scale: Scale) -> list[int]:
    """Return the lowest score of each band but the last, from the top."""
    return [math.ceil(scale.anchor_score + above * scale.pdo) for _, above in BANDS[:-1]]


def _means(values: NDArray[np.float64], counts: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Mean of ``values`` over the population, per term; cells count alike where no count is positive."""
    weights = np.maximum(counts, 0.0)
    starts = grid.offsets[:-1]
    totals = np.add.reduceat(weights, starts)
    weights = np.where(np.repeat(totals > 0, np.diff(grid.offsets)), weights, 1.0)
    return np.add.reduceat(weights * values, starts) / np.add.reduceat(weights, starts)
