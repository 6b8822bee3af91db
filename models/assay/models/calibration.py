"""Do stated probabilities come true? A Platt step from one noisy histogram, and only where it is needed.

The histogram is released once, with its noise; everything here is post-processing of it. A Platt step
(Platt 1999) replaces the log-odds z by ``intercept + slope * z``. It keeps an additive model additive, so
that points, explanations and exports need to know nothing about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from assay.models.encoding import Grid
from assay.models.tally import CalibrationTally
from assay.privacy.errors import BadInput

__all__ = ["Platt", "platt_step"]

Vector = NDArray[np.float64]

# Chance of a needless step where the model is right: chi-square with 2 degrees of freedom above this.
_CRITICAL = 9.21
NEEDLESS_STEPS = 0.01
_ITERATIONS = 50
# Bins are a quarter wide: a step below this is what they make of a model that is right.
_RESOLUTION = 0.01
# A bin counts where it holds more than noise: this many standard deviations of one cell.
_SIGNIFICANT = 3.0
# A step beyond these would say that the fit failed, and the histogram is more likely to be wrong.
_SLOPES = (0.2, 5.0)
_LARGEST_INTERCEPT = 5.0
_WORST_CONDITION = 1e12


@dataclass(frozen=True, kw_only=True)
class Platt:
    """What is done to the log-odds.

    Attributes:
        intercept: added.
        slope: multiplied by, before.
        applied: False where the histogram does not contradict the model; then 0 and 1.
    """

    intercept: float = 0.0
    slope: float = 1.0
    applied: bool = False

    def theta(self, theta: Vector, grid: Grid) -> Vector:
        """Return the corrected model, float64 [width]."""
        out = self.slope * theta
        out[grid.size :] += self.intercept
        return out

    def to_json(self) -> dict[str, Any]:
        """Return what a bundle says of it."""
        return {"applied": self.applied, "intercept": self.intercept, "slope": self.slope}


def platt_step(tally: CalibrationTally, noisy: Vector, noise_std: float) -> Platt:
    """Fit the step, and apply it if the noisy histogram says that the model is wrong.

    Args:
        tally: the layout of the histogram.
        noisy: float64 [tally.size], noisy persons by log-odds bin and outcome.
        noise_std: standard deviation of the noise in one cell.

    Returns:
        The step; none where the score statistic (Rao 1948) of intercept 0 and slope 1, its covariance holding
        the sampling of outcomes and the noise alike, stays below the 1 % point of its distribution. It is
        linear in the noise, so that the 1 % hold where noise is large, too.

    Raises:
        BadInput: the histogram has another shape or a number that is not finite.
    """
    if noisy.shape != (tally.size,) or not np.isfinite(noisy).all() or not noise_std >= 0:
        raise BadInput("histogram", allowed=f"{tally.size} finite numbers")
    good, bad = noisy[0::2], noisy[1::2]
    persons = good + bad
    held = np.flatnonzero(persons > _SIGNIFICANT * noise_std * np.sqrt(2) + 1)
    if len(held) < 2:
        return Platt()
    # All bins between: to take those that look full would favour noise that adds.
    used = slice(int(held[0]), int(held[-1]) + 1)
    design = np.stack([np.ones(used.stop - used.start), tally.middles()[used]], axis=1)
    if not _contradicted(design, persons[used], bad[used], noise_std):
        return Platt()
    fitted = _fit(design, persons[used], bad[used])
    if fitted is None:
        return Platt()
    return Platt(intercept=float(fitted[0]), slope=float(fitted[1]), applied=True)


def _fit(design: Vector, persons: Vector, bad: Vector) -> Vector | None:
    """Newton's method on the binned log-likelihood; None where it does not settle on something sensible."""
    found = np.array([0.0, 1.0])
    for _ in range(_ITERATIONS):
        chance = expit(design @ found)
        curvature = (design * (persons * chance * (1 - chance))[:, None]).T @ design
        if not np.linalg.cond(curvature) < _WORST_CONDITION:
            return None
        step = np.linalg.solve(curvature, design.T @ (bad - persons * chance))
        found = found + np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-10:
            break
    sensible = _SLOPES[0] <= found[1] <= _SLOPES[1] and abs(found[0]) <= _LARGEST_INTERCEPT
    return found if sensible and np.abs(step).max() < 1e-6 else None


def _contradicted(design: Vector, persons: Vector, bad: Vector, noise_std: float) -> bool:
    """Say whether outcomes differ from what the log-odds of the bins say by more than chance and noise.

    The score of a bin is ``bad * (1 - p) - good * p``; independent noise in both cells adds
    ``noise_std^2 ((1 - p)^2 + p^2)`` to its variance.
    """
    chance = expit(design[:, 1])
    score = design.T @ (bad - persons * chance)
    spread = np.maximum(persons, 0.0) * chance * (1 - chance)
    information = (design * spread[:, None]).T @ design
    noise = noise_std**2 * ((1 - chance) ** 2 + chance**2)
    covariance = (
        information + (design * noise[:, None]).T @ design + _RESOLUTION**2 * information @ information
    )
    if not np.linalg.cond(covariance) < _WORST_CONDITION:
        return False
    return float(score @ np.linalg.solve(covariance, score)) > _CRITICAL
