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

from assay.models.encoding import Encoded, Grid
from assay.models.schema import Scale, Study
from assay.privacy.errors import BadInput

__all__ = ["BANDS", "REASONS", "Scorecard", "Scores"]

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
_CHUNK = 1 << 14  # rows scored at a time: temporaries stay in the processor's cache
_FINE = 1024  # differences from the mean are compared in steps of 1/1024 point


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The result for N rows and F features.

    Attributes:
        points: int32 [N, F].
        score: int32 [N], clipped to the scale.
        capped: int32 [N]; base + points + capped = score.
        probability: float64 [N] of bad, from the total before clipping.
        band: int8 [N], index into :data:`BANDS`.
        reasons: int16 [N, min(4, F)], feature indices, most points lost first.
    """

    points: NDArray[np.int32]
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
        base_points: what everybody starts from.
        means: float64 [F], mean points of the population, from noisy counts: the baseline of the reasons.
    """

    study: Study
    grid: Grid
    points: NDArray[np.int64]
    base_points: int
    means: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.points.shape != (self.grid.size,) or not (np.abs(self.points) <= MAX_POINTS).all():
            raise BadInput("points", allowed=f"{self.grid.size} whole numbers within ±{MAX_POINTS}")
        if self.means.shape != (len(self.grid.features),) or not (np.abs(self.means) <= MAX_POINTS).all():
            raise BadInput("means", allowed=f"{len(self.grid.features)} numbers within ±{MAX_POINTS}")
        if not abs(self.base_points) <= 1000 * MAX_POINTS:
            raise BadInput("base points", value=self.base_points, allowed=f"within ±{1000 * MAX_POINTS}")

    @classmethod
    def of(
        cls, study: Study, grid: Grid, theta: NDArray[np.float64], counts: NDArray[np.float64]
    ) -> Scorecard:
        """Turn a model into points.

        Args:
            study: gives the scale.
            grid: the cells ``theta`` belongs to.
            theta: float64 [size + 1], log-odds of bad per cell, bias last.
            counts: float64 [size], noisy numbers of records per cell; negative ones count as 0.

        Raises:
            BadInput: a number is not finite, or the arrays do not fit the grid.
        """
        if theta.shape != (grid.size + 1,) or not np.isfinite(theta).all():
            raise BadInput("theta", allowed=f"{grid.size + 1} finite numbers")
        if counts.shape != (grid.size,) or not np.isfinite(counts).all():
            raise BadInput("counts", allowed=f"{grid.size} finite numbers")
        scale = study.scale
        raw = -scale.factor * theta[:-1]
        shift = _means(raw, counts, grid)
        exact = raw - np.repeat(shift, np.diff(grid.offsets))
        if not (np.abs(exact) < MAX_POINTS).all():
            raise BadInput("theta", allowed=f"log-odds worth less than {MAX_POINTS} points")
        points = np.floor(exact + 0.5)
        means = _means(points, counts, grid)
        # The base takes up what rounding the cells did to the population's mean score.
        base = scale.offset - scale.factor * theta[-1] + shift.sum() - means.sum()
        return cls(
            study=study,
            grid=grid,
            points=points.astype(np.int64),
            base_points=math.floor(base + 0.5),
            means=means,
        )

    def score(self, encoded: Encoded) -> Scores:
        """Score N rows; a row gets the same result alone as among a million.

        Raises:
            BadInput: the rows were not encoded on this card's grid.
        """
        rows, width = encoded.low.shape
        if width != len(self.grid.features):
            raise BadInput("encoded features", value=width, allowed=str(len(self.grid.features)))
        points = np.empty((rows, width), dtype=np.int32)
        reasons = np.empty((rows, min(REASONS, width)), dtype=np.int16)
        total = np.empty(rows, dtype=np.int64)
        values, steps = self._tables()
        for start in range(0, rows, _CHUNK):
            part = slice(start, start + _CHUNK)
            low = encoded.low[part]
            between = values.take(low) + encoded.upper[part] * steps.take(low)
            points[part] = np.floor(between + 0.5)
            total[part] = points[part].sum(axis=1, dtype=np.int64) + self.base_points
            reasons[part] = self._reasons(points[part])
        return self._finished(points, total, reasons)

    def probability_of(self, total: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the chance of bad at uncapped totals, float64, overflow-free."""
        scale = self.study.scale
        half = (scale.offset - total) / (2 * scale.factor)
        return np.asarray(0.5 * (1.0 + np.tanh(half)), dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return the points table as plain data for machines and people."""
        features = []
        for index, feature in enumerate(self.grid.features):
            own = self.points[feature.offset : feature.offset + feature.cells].tolist()
            cells = [{"value": w, "points": p} for w, p in zip(feature.labels, own, strict=True)]
            features.append(
                {
                    "name": feature.name,
                    "label": feature.feature.label,
                    "kind": feature.kind,
                    "mean_points": float(self.means[index]),
                    "cells": cells,
                }
            )
        bands = [{"band": BANDS[i][0], "from": cut} for i, cut in enumerate(band_cuts(self.study.scale))]
        return {
            "version": 1,
            "study": self.study.digest,
            "knots": self.grid.knots,
            "base_points": self.base_points,
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
            base = value["base_points"]
        except (KeyError, TypeError):
            raise BadInput("scorecard", allowed="the JSON that a scorecard writes") from None
        if names != [(feature.name, feature.cells) for feature in grid.features]:
            raise BadInput("scorecard", allowed="the features and cells of the study beside it")
        if not all(type(number) is int for number in (*points, base)):
            raise BadInput("points", allowed="whole numbers")
        if not all(type(number) is float for number in means):
            raise BadInput("means", allowed="numbers")
        return cls(
            study=study,
            grid=grid,
            points=np.array(points, dtype=np.int64),
            base_points=base,
            means=np.array(means, dtype=np.float64),
        )

    def _tables(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Points of each cell and the step to the next one; exact in float32 up to 2^24."""
        values = self.points.astype(np.float32)
        return values, np.diff(values, append=values[-1:])

    def _reasons(self, points: NDArray[np.int32]) -> NDArray[np.int16]:
        """Features furthest below the population's mean, ties in study order.

        Regulation B, official commentary to 12 CFR 1002.9(b)(2), 5: the method that compares with the
        average of all applicants.
        """
        width = points.shape[1]
        fine = np.floor(self.means * _FINE + 0.5).astype(np.int64)
        # The difference in the high bits and the feature in the low ones: one partial sort does both.
        keys = (points.astype(np.int64) * _FINE - fine) * _FINE + np.arange(width)
        count = min(REASONS, width)
        worst = np.sort(np.partition(keys, count - 1, axis=1)[:, :count], axis=1)
        return (worst % _FINE).astype(np.int16)

    def _finished(
        self, points: NDArray[np.int32], total: NDArray[np.int64], reasons: NDArray[np.int16]
    ) -> Scores:
        scale = self.study.scale
        score = np.clip(total, scale.low, scale.high)
        cuts = np.array(band_cuts(scale)[::-1])
        below = len(cuts) - np.searchsorted(cuts, score, side="right")
        return Scores(
            points=points,
            score=score.astype(np.int32),
            capped=(score - total).astype(np.int32),
            probability=self.probability_of(total),
            band=below.astype(np.int8),
            reasons=reasons,
        )


def band_cuts(scale: Scale) -> list[int]:
    """Return the lowest score of each band but the last, from the top."""
    return [math.ceil(scale.anchor_score + above * scale.pdo) for _, above in BANDS[:-1]]


def _means(values: NDArray[np.float64], counts: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Mean of ``values`` over the population, per feature; cells count alike where no count is positive."""
    weights = np.maximum(counts, 0.0)
    starts = grid.offsets[:-1]
    totals = np.add.reduceat(weights, starts)
    weights = np.where(np.repeat(totals > 0, np.diff(grid.offsets)), weights, 1.0)
    return np.add.reduceat(weights * values, starts) / np.add.reduceat(weights, starts)
