"""What is known of a finished scorecard: ranking, calibration, bands, cut-offs, and how it treats groups.

Read off one noisy sum (:class:`assay.models.tally.AuditTally`), so all of it may be published. Intervals are
95 % and hold both the chance in who was sampled and the noise. The persons counted are those that the model
was trained on; with privacy it hardly knows the single ones, so that figures on others are close.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm

from assay.models.fairness import Gate, GroupColumn
from assay.models.scorecard import BANDS, Scorecard, band_cuts
from assay.models.tally import GROUP_CELLS, SCORE_BINS, AuditTally
from assay.privacy.errors import BadInput

__all__ = ["Rate", "audit_of", "near_means"]

Vector = NDArray[np.float64]
_Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution
_SIGNIFICANT = 3.0
# Ends of the scores are left out only where there are so many persons per standard deviation of the noise:
# with fewer, the ends that look empty hold enough of them to bias a rate by more than its interval.
_ENDS_ARE_EMPTY = 300.0
# What a limit is about: where a group holds nobody to take a rate of, nothing is known, which is not passed.
_NEEDED = (("max_tpr_gap", "TPR", "tpr"), ("max_fpr_gap", "FPR", "fpr"))
# Persons near the cut-off needed before their average is a baseline: below, it would be noise.
_FEWEST_NEAR = 10.0


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share, with its 95 % interval.

    Attributes:
        value: the share, 0..1; NaN where nobody is counted.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(
        cls, part: float, whole: float, *, cells: tuple[int, int], noise_std: float, nested: bool = True
    ) -> Rate:
        """Return ``part / whole`` of noisy counts.

        Args:
            part: noisy count of some.
            whole: noisy count of all.
            cells: how many cells were added up for each.
            noise_std: of one cell.
            nested: the cells of ``part`` are among those of ``whole``, so that both hold the same noise.

        The variance is that of a share of so many persons plus, to first order, that of the noise.
        """
        if not whole > 0:
            return cls(value=math.nan, low=0.0, high=1.0)
        value = min(max(part / whole, 0.0), 1.0)
        inside, everything = cells
        alone = 1 - 2 * value if nested else 1.0
        noise = noise_std**2 * (inside * alone + everything * value**2) / whole**2
        # Agresti & Coull 1998: four pseudo-observations keep the interval honest near 0 and 1.
        smoothed = (value * whole + 2) / (whole + 4)
        half = _Z95 * math.sqrt(smoothed * (1 - smoothed) / (whole + 4) + max(noise, 0.0))
        return cls(value=value, low=max(0.0, value - half), high=min(1.0, value + half))

    def to_json(self) -> dict[str, float | None]:
        """Return the three numbers; null where there is none."""
        known = not math.isnan(self.value)
        return {"value": self.value if known else None, "low": self.low, "high": self.high}


def near_means(tally: AuditTally, card: Scorecard, noisy: Vector, noise_std: float) -> Vector | None:
    """Return the mean points of those at or slightly above the cut-off, float64 [T].

    None where they are too few to tell their average from noise.
    """
    near = noisy[tally.near]
    if not near[-1] > max(_FEWEST_NEAR, 4 * noise_std):
        return None
    largest = tally.largest(card)
    return np.asarray(np.clip(near[:-1] / near[-1], -1, 1) * largest, dtype=np.float64)


def audit_of(tally: AuditTally, card: Scorecard, noisy: Vector, noise_std: float) -> dict[str, Any]:
    """Read an audit.

    Args:
        tally: the layout.
        card: the finished scorecard.
        noisy: float64 [tally.size].
        noise_std: standard deviation of the noise in one cell.

    Returns:
        A JSON object: ``persons``, ``bad_rate``, ``auroc``, ``ks``, ``gini``, ``calibration_error``,
        ``calibration`` (by score bin), ``bands``, ``cut_offs``, ``groups`` and ``fairness``.

    Raises:
        BadInput: ``noisy`` has another shape or a number that is not finite.
    """
    if noisy.shape != (tally.size,) or not np.isfinite(noisy).all() or not noise_std >= 0:
        raise BadInput("audit", allowed=f"{tally.size} finite numbers")
    good, bad = noisy[tally.scores][0::2], noisy[tally.scores][1::2]
    inner = _where_anybody_is(good, bad, noise_std)
    if sum(float(part.sum()) for part in inner) >= _ENDS_ARE_EMPTY * noise_std:
        good, bad = inner
    columns = [
        _column(column, noisy[tally.groups(index)], tally.study.fairness.smallest_group, noise_std)
        for index, column in enumerate(tally.columns)
    ]
    everybody = float(good.sum() + bad.sum())
    counted = _calibration(tally, good, bad, noise_std)
    auroc = _auroc(good, bad, noise_std, ties=_lower_of_two(tally))
    return {
        "persons": max(0.0, everybody),
        "noise_std": noise_std,
        "cut_off": tally.study.scale.threshold,
        "bad_rate": Rate.of(
            float(bad.sum()), everybody, cells=(SCORE_BINS, 2 * SCORE_BINS), noise_std=noise_std
        ).to_json(),
        "auroc": auroc.to_json(),
        "gini": {key: None if v is None else 2 * v - 1 for key, v in auroc.to_json().items()},
        "ks": _ks(good, bad, noise_std).to_json(),
        "calibration_error": _calibration_error(counted),
        "calibration": counted,
        "bands": _bands(tally, good, bad, noise_std),
        "cut_offs": _cut_offs(tally, good, bad, noise_std),
        "groups": columns,
        "fairness": judged(columns, tally.study.fairness.gate),
    }


def _where_anybody_is(good: Vector, bad: Vector, noise_std: float) -> tuple[Vector, Vector]:
    """Return good and bad by score bin, 0 below the first and above the last bin that holds more than noise.

    What lies there is noise for the most part, and would count in every rate.
    """
    good, bad = good.copy(), bad.copy()
    held = np.flatnonzero(good + bad > _SIGNIFICANT * math.sqrt(2) * noise_std)
    outside = np.ones(SCORE_BINS, dtype=np.bool_)
    if len(held):
        outside[held[0] : held[-1] + 1] = False
    good[outside], bad[outside] = 0.0, 0.0
    return good, bad


def _lower_of_two(tally: AuditTally) -> float:
    """Return the chance that of a good and a bad person in one score bin the bad one scores lower.

    Where scores are spread evenly in the bin and the odds grow as the scale says, by e^d over the bin, it is
    1 / (1 - e^-d) - 1 / d. One half, as for ties, would understate the area by a few thousandths.
    """
    edges = tally.edges()
    grown = float(edges[1] - edges[0]) / tally.study.scale.factor
    return 1 / -math.expm1(-grown) - 1 / grown


def _auroc(good: Vector, bad: Vector, noise_std: float, *, ties: float) -> Rate:
    """Area under the curve of the binned scores; delta method for the noise.

    Args:
        good: noisy persons by score bin.
        bad: likewise.
        noise_std: of one of them.
        ties: what a good and a bad person in one bin count, see :func:`_lower_of_two`.
    """
    goods, bads = float(good.sum()), float(bad.sum())
    if not goods > 0 or not bads > 0:
        return Rate(value=math.nan, low=0.0, high=1.0)
    above_good = goods - np.cumsum(good) + good * ties
    below_bad = np.cumsum(bad) - bad * (1 - ties)
    area = float(bad @ above_good) / (goods * bads)
    by_bad = (above_good / goods - area) / bads
    by_good = (below_bad / bads - area) / goods
    inside = (good != 0) | (bad != 0)
    noise = noise_std**2 * float((by_bad[inside] ** 2).sum() + (by_good[inside] ** 2).sum())
    # Hanley & McNeil 1982 for the sampling of persons.
    value = min(max(area, 0.0), 1.0)
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    sampled = (value * (1 - value) + (bads - 1) * (q1 - value**2) + (goods - 1) * (q2 - value**2)) / (
        goods * bads
    )
    half = _Z95 * math.sqrt(max(sampled, 0.0) + noise)
    return Rate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def _ks(good: Vector, bad: Vector, noise_std: float) -> Rate:
    """Largest distance between the shares of bad and of good persons at or below a score, with its interval.

    A maximum takes what noise adds and leaves what it takes away. So the lower end is the largest of the
    lower ends of all distances, which hold together (Slepian 1962: at least as often as if they were
    independent). The upper end is the largest of their upper ends, each by itself: one of them is that of
    the true maximum.

    Args:
        good: noisy persons by score bin, 0 where hardly anybody is.
        bad: likewise.
        noise_std: of one of them.
    """
    goods, bads = float(good.sum()), float(bad.sum())
    if not goods > 0 or not bads > 0:
        return Rate(value=math.nan, low=0.0, high=1.0)
    inside = np.cumsum((good != 0) | (bad != 0))
    below_bad, below_good = np.cumsum(bad) / bads, np.cumsum(good) / goods
    variance = np.zeros(SCORE_BINS)
    for below, persons in ((below_bad, bads), (below_good, goods)):
        # Of the persons sampled; and to first order of the noise in the bins up to here and beyond.
        share = np.clip(below, 0, 1)
        variance += share * (1 - share) / persons
        noise = inside * (1 - share) ** 2 + (inside[-1] - inside) * share**2
        variance += noise_std**2 * noise / persons**2
    apart, error = below_bad - below_good, np.sqrt(variance)
    edges = max(1, int(inside[-1]) - 1)
    together = float(norm.ppf(0.975 ** (1 / edges)))
    value = min(max(float(apart.max()), 0.0), 1.0)
    return Rate(
        value=value,
        low=min(max(float((apart - together * error).max()), 0.0), value),
        high=min(max(float((apart + _Z95 * error).max()), value) + _between(apart), 1.0),
    )


def _between(apart: Vector) -> float:
    """Return by how much the distance may rise between two borders of bins: a parabola's, through three."""
    top = int(apart.argmax())
    left, right = (float(apart[i]) if 0 <= i < SCORE_BINS else 0.0 for i in (top - 1, top + 1))
    bend = 2 * float(apart[top]) - left - right
    return (right - left) ** 2 / (8 * bend) if bend > 0 else 0.0


def _calibration(tally: AuditTally, good: Vector, bad: Vector, noise_std: float) -> list[dict[str, Any]]:
    """Predicted and observed rates by score bin, where a bin holds more than noise."""
    scale, edges = tally.study.scale, tally.edges()
    rows = []
    for index in range(SCORE_BINS):
        persons = float(good[index] + bad[index])
        if not persons > max(4 * noise_std, 1.0):
            continue
        middle = (edges[index] + edges[index + 1] - 1) / 2
        observed = Rate.of(float(bad[index]), persons, cells=(1, 2), noise_std=noise_std)
        rows.append(
            {
                "from": math.ceil(edges[index]),
                "to": math.ceil(edges[index + 1]) - 1,
                "persons": persons,
                "predicted": float(expit((scale.offset - middle) / scale.factor)),
                "observed": observed.to_json(),
            }
        )
    return rows


def _calibration_error(rows: list[dict[str, Any]]) -> float | None:
    persons = sum(row["persons"] for row in rows)
    if not persons > 0:
        return None
    apart = sum(row["persons"] * abs(row["predicted"] - row["observed"]["value"]) for row in rows)
    return float(apart / persons)


def _above(tally: AuditTally, good: Vector, bad: Vector, score: float) -> tuple[float, float]:
    """Return how many are at ``score`` or above, and how many of them bad; bins are cut in proportion."""
    edges = tally.edges()
    part = np.clip((edges[1:] - score) / np.diff(edges), 0.0, 1.0)
    return float(part @ (good + bad)), float(part @ bad)


def _cut_offs(tally: AuditTally, good: Vector, bad: Vector, noise_std: float) -> list[dict[str, Any]]:
    """What approving from each score on would mean: approval rate, and bad rate among the approved."""
    everybody, rows = float((good + bad).sum()), []
    scores = sorted({*(math.ceil(edge) for edge in tally.edges()[:-1]), tally.study.scale.threshold})
    for score in scores:
        approved, lost = _above(tally, good, bad, score)
        bins = int((tally.edges()[1:] > score).sum())
        rate = Rate.of(approved, everybody, cells=(2 * bins, 2 * SCORE_BINS), noise_std=noise_std)
        rows.append(
            {
                "score": score,
                "approval_rate": rate.to_json(),
                "bad_rate": Rate.of(lost, approved, cells=(bins, 2 * bins), noise_std=noise_std).to_json(),
            }
        )
    return rows


def _bands(tally: AuditTally, good: Vector, bad: Vector, noise_std: float) -> list[dict[str, Any]]:
    everybody = float((good + bad).sum())
    rows: list[dict[str, Any]] = []
    upper = (0.0, 0.0)
    for (words, _), start in zip(BANDS, [*band_cuts(tally.study.scale), tally.study.scale.low], strict=True):
        reached = _above(tally, good, bad, start)
        persons, lost = reached[0] - upper[0], reached[1] - upper[1]
        upper = reached
        bins = SCORE_BINS // len(BANDS) + 1
        share = Rate.of(persons, everybody, cells=(2 * bins, 2 * SCORE_BINS), noise_std=noise_std)
        rate = Rate.of(lost, persons, cells=(bins, 2 * bins), noise_std=noise_std)
        rows.append({"band": words, "from": start, "share": share.to_json(), "bad_rate": rate.to_json()})
    return rows


def _column(column: GroupColumn, noisy: Vector, smallest: int, noise_std: float) -> dict[str, Any]:
    cells = noisy.reshape(len(column.labels), GROUP_CELLS)
    rows = [
        _group(label, index < column.judged, cells[index], smallest, noise_std)
        for index, label in enumerate(column.labels)
    ]
    return {"column": column.column, "groups": rows}


def _group(label: str, declared: bool, cells: Vector, smallest: int, noise_std: float) -> dict[str, Any]:
    """Return what is known of one group, or that it is too small to know anything."""
    refused_good, refused_bad, approved_good, approved_bad, chances = (float(cell) for cell in cells)
    persons = refused_good + refused_bad + approved_good + approved_bad
    found: dict[str, Any] = {"group": label, "declared": declared, "persons": max(0.0, persons)}
    # Four cells make up the number: too small unless it is surely large enough.
    if not persons - _Z95 * 2 * noise_std >= smallest:
        return {**found, "too_small": True}
    approved, lost = approved_good + approved_bad, refused_bad + approved_bad
    rates = {
        "approval_rate": Rate.of(approved, persons, cells=(2, 4), noise_std=noise_std),
        "tpr": Rate.of(approved_good, persons - lost, cells=(1, 2), noise_std=noise_std),
        "fpr": Rate.of(approved_bad, lost, cells=(1, 2), noise_std=noise_std),
        "predicted": Rate.of(chances, persons, cells=(1, 4), noise_std=noise_std, nested=False),
        "observed": Rate.of(lost, persons, cells=(2, 4), noise_std=noise_std),
    }
    return {**found, "too_small": False, **{name: rate.to_json() for name, rate in rates.items()}}


def judged(columns: list[dict[str, Any]], gate: Gate) -> dict[str, Any]:
    """Hold the groups against the gate.

    Args:
        columns: as :func:`audit_of` gives them.
        gate: the limits.

    Returns:
        ``passed`` (null without a gate), ``failures`` and ``too_small``: sentences. A declared group that is
        too small counts as not passed: what nobody can know is not fair.
    """
    small = [
        f"{column['column']} {group['group']}: n too small"
        for column in columns
        for group in column["groups"]
        if group["declared"] and group["too_small"]
    ]
    failures = [words for column in columns for words in _failures(column, gate.limits)]
    passed = None if not gate.limits else not small and not failures
    return {"passed": passed, "failures": failures, "too_small": small}


def _failures(column: dict[str, Any], limits: dict[str, float]) -> list[str]:
    groups = [group for group in column["groups"] if group["declared"] and not group["too_small"]]
    if not groups:
        return []

    def rates(name: str) -> dict[str, float]:
        found = {group["group"]: group[name]["value"] for group in groups}
        return {name: value for name, value in found.items() if value is not None}

    words = [
        f"{column['column']} {group['group']}: {words} is not known: n too small"
        for limit, words, name in _NEEDED
        for group in groups
        if limit in limits and group[name]["value"] is None
    ]
    approval = rates("approval_rate")
    if "min_approval_ratio" in limits and approval:
        ratio = min(approval.values()) / max(max(approval.values()), 1e-9)
        if not ratio >= limits["min_approval_ratio"]:
            lowest = min(approval, key=lambda group: approval[group])
            words.append(
                f"{column['column']} {lowest}: approval rate is {ratio:.2f} of the highest group's;"
                f" allowed: at least {limits['min_approval_ratio']:g}"
            )
    for limit, name in (("max_tpr_gap", "tpr"), ("max_fpr_gap", "fpr")):
        found = rates(name)
        if limit in limits and found:
            gap = max(found.values()) - min(found.values())
            if not gap <= limits[limit]:
                words.append(
                    f"{column['column']}: {name.upper()} differs by {gap:.3f} between groups;"
                    f" allowed: at most {limits[limit]:g}"
                )
    if "max_calibration_gap" in limits:
        observed = rates("observed")
        for group, predicted in rates("predicted").items():
            gap = abs(predicted - observed.get(group, math.nan))
            if not gap <= limits["max_calibration_gap"]:
                words.append(
                    f"{column['column']} {group}: predicted and observed bad rates differ by {gap:.3f};"
                    f" allowed: at most {limits['max_calibration_gap']:g}"
                )
    return words
