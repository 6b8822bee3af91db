"""How good a score is, on labelled records.

Every function takes ``y`` (0 = good, 1 = bad) and ``p`` (larger = riskier), both [N], and refuses what
would give a number without meaning: NaN, lengths that differ, only one class. Ties are handled exactly.
A result computed here from records is not private; what leaves a holder goes through a release.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from assay.privacy.errors import BadInput

__all__ = [
    "auroc",
    "brier",
    "calibration",
    "expected_calibration_error",
    "gini",
    "ks",
    "log_loss",
    "psi",
    "roc_curve",
]


def _checked(
    y: ArrayLike, p: ArrayLike, *, probability: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    labels, scores = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape or labels.size == 0:
        raise BadInput("labels and scores", allowed="two lists of one length, at least one entry")
    if not np.isin(labels, (0.0, 1.0)).all():
        raise BadInput("labels", allowed="0 (good) or 1 (bad)")
    if np.isnan(scores).any():
        raise BadInput("scores", allowed="numbers, no NaN")
    if probability and not ((scores >= 0) & (scores <= 1)).all():
        raise BadInput("probabilities", allowed="numbers from 0 to 1")
    return labels, scores


def _both_classes(labels: NDArray[np.float64]) -> None:
    if labels.min() == labels.max():
        raise BadInput("labels", allowed="both 0 and 1 must occur", remedy="Use more records")


def roc_curve(y: ArrayLike, p: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return false and true positive rates, float64, from (0, 0) to (1, 1), one point per distinct score.

    Raises:
        BadInput: see the module.
    """
    labels, scores = _checked(y, p, probability=False)
    _both_classes(labels)
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    ends = np.r_[np.flatnonzero(np.diff(scores)), labels.size - 1]
    bad = np.r_[0.0, np.cumsum(labels)[ends]]
    good = np.r_[0.0, ends + 1.0] - bad
    return good / good[-1], bad / bad[-1]


def auroc(y: ArrayLike, p: ArrayLike) -> float:
    """Return the chance that a random bad outranks a random good, ties counting half; 0..1.

    Raises:
        BadInput: see the module.
    """
    false, true = roc_curve(y, p)
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1])) / 2)


def gini(y: ArrayLike, p: ArrayLike) -> float:
    """Return ``2 auroc - 1``, in -1..1."""
    return 2 * auroc(y, p) - 1


def ks(y: ArrayLike, p: ArrayLike) -> float:
    """Return the Kolmogorov-Smirnov distance between the scores of good and bad, 0..1."""
    false, true = roc_curve(y, p)
    return float(np.abs(true - false).max())


def brier(y: ArrayLike, p: ArrayLike) -> float:
    """Return the mean squared error of the probabilities, 0..1 (Brier 1950)."""
    labels, chances = _checked(y, p, probability=True)
    return float(np.mean((chances - labels) ** 2))


def log_loss(y: ArrayLike, p: ArrayLike) -> float:
    """Return the mean negative log-likelihood in nats; a probability of 0 or 1 counts as 1e-15 off."""
    labels, chances = _checked(y, p, probability=True)
    inside = np.clip(chances, 1e-15, 1 - 1e-15)
    return float(-np.mean(labels * np.log(inside) + (1 - labels) * np.log1p(-inside)))


def calibration(y: ArrayLike, p: ArrayLike, bins: int = 10) -> list[dict[str, Any]]:
    """Compare predicted with observed rates in bins of equal size.

    Returns:
        One row per bin that holds records: ``rows``, ``predicted`` (mean), ``observed`` (bad rate).
        Records with equal probability are never split over two bins.
    """
    labels, chances = _checked(y, p, probability=True)
    if bins < 1:
        raise BadInput("bins", value=bins, allowed="at least 1")
    edges = np.quantile(chances, np.linspace(0, 1, bins + 1)[1:-1])
    place = np.searchsorted(edges, chances, side="left")
    table = []
    for index in np.unique(place):
        inside = place == index
        table.append(
            {
                "rows": int(inside.sum()),
                "predicted": float(chances[inside].mean()),
                "observed": float(labels[inside].mean()),
            }
        )
    return table


def expected_calibration_error(y: ArrayLike, p: ArrayLike, bins: int = 10) -> float:
    """Return the mean distance between predicted and observed rates over :func:`calibration`, 0..1."""
    table = calibration(y, p, bins)
    total = sum(row["rows"] for row in table)
    return float(sum(row["rows"] * abs(row["predicted"] - row["observed"]) for row in table) / total)


def psi(expected: ArrayLike, actual: ArrayLike) -> float:
    """Return the population stability index of two lists of bin counts; above 0.25 the population moved.

    An empty bin counts as 0.0001 of all, the usual convention.

    Raises:
        BadInput: the lists differ in length, hold negative numbers, or one of them is all zero.
    """
    first, second = np.asarray(expected, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise BadInput("bin counts", allowed="two lists of one length")
    for counts in (first, second):
        if not (counts >= 0).all() or not counts.sum() > 0:
            raise BadInput("bin counts", allowed="numbers of at least 0, not all 0")
    a, b = (np.maximum(counts / counts.sum(), 1e-4) for counts in (first, second))
    return float(np.sum((b - a) * np.log(b / a)))
