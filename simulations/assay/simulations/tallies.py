"""Counts of held-out records: predicted against observed rates, and bad outcomes by score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from assay.models import metrics
from assay.models.scorecard import BANDS, band_cuts
from assay.simulations.findings import Report

__all__ = ["BandRow", "CalibrationRow", "calibration_rows", "score_rows", "wilson"]

_Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution
_SCORE_ROWS = 12  # rows of the table by score, 50 points each on the default scale


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """One bin of records with similar probabilities: mean predicted and observed rate, 95 % interval."""

    rows: int
    predicted: float
    observed: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        """Whether the predicted rate lies within the interval of the observed one."""
        return self.low <= self.predicted <= self.high


def calibration_rows(report: Report) -> list[CalibrationRow]:
    """Compare predicted with observed rates in up to 10 bins of equal count.

    The interval is Wilson's score interval (Wilson 1927; Brown, Cai, DasGupta 2001, sec. 3.1.1).
    """
    table = []
    for row in metrics.calibration(report.y_true, report.probability):
        low, high = wilson(row["observed"], row["rows"])
        table.append(CalibrationRow(low=low, high=high, **row))
    return table


def wilson(rate: float, rows: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate that was observed in so many records; see above."""
    spread = _Z95**2 / rows
    middle = (rate + spread / 2) / (1 + spread)
    half = _Z95 * math.sqrt(rate * (1 - rate) / rows + spread / (4 * rows)) / (1 + spread)
    # At 0 and at 1 an end is the rate itself; rounding must not put it beyond.
    return min(rate, max(0.0, middle - half)), max(rate, min(1.0, middle + half))


@dataclass(frozen=True, kw_only=True)
class BandRow:
    """Held-out records with scores from ``low`` to ``high``, both included."""

    low: int
    high: int
    band: str
    rows: int
    bad: int


def score_rows(report: Report) -> list[BandRow]:
    """Count records and bad outcomes by score, from the top; rows at both ends without records are left out.

    A row never spans two bands of the scale.
    """
    scale = report.scale
    cuts = band_cuts(scale)
    step = math.ceil((scale.high - scale.low) / _SCORE_ROWS)
    inside = {cut for cut in cuts if scale.low < cut <= scale.high}
    starts = sorted({*range(scale.low, scale.high, step), *inside})
    place = np.searchsorted(starts, report.score, side="right") - 1
    rows = np.bincount(place, minlength=len(starts))
    bad = np.bincount(place, weights=report.y_true, minlength=len(starts))
    ends = [start - 1 for start in starts[1:]] + [scale.high]
    used = np.flatnonzero(rows)
    return [
        BandRow(
            low=starts[i],
            high=ends[i],
            band=BANDS[sum(starts[i] < cut for cut in cuts)][0],
            rows=int(rows[i]),
            bad=round(bad[i]),
        )
        for i in range(used[-1], used[0] - 1, -1)
    ]
