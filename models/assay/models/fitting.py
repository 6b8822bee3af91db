"""The coordinator's half of training: from noisy sums to a table of log-odds.

Everything here is post-processing of values that were released with their noise, so none of it costs
privacy and all of it may be published. The method is a preconditioned gradient descent on a *hybrid*
additive model: every ordered feature has a free value per cell plus one straight line over its cells.
Where the noise dominates, the ridge and first-difference penalties, which grow with the public noise
level, pull the free values to zero and a plain scorecard remains.

The line needs no release of its own: its gradient is a fixed linear map of the cells' gradient, so the
sensitivity of a round stays sqrt(features + 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from assay.models.encoding import FeatureGrid, Grid
from assay.models.schema import Study
from assay.privacy.errors import BadInput

__all__ = ["Fit", "default_rounds", "estimate_persons"]

Vector = NDArray[np.float64]

LEARNING_RATE = 0.4
LINE_STEP = 2.0  # curvature of a line over cells in [-1, 1] is about half that of the intercept
RIDGE = 1e-4
RIDGE_PER_NOISE = 0.3
SMOOTH_PER_NOISE = 0.3
PRECONDITIONER_FLOOR = 0.01
PRECONDITIONER_FLOOR_PER_NOISE = 3.0
STEP_DAMPING_PER_NOISE = 3.0
# No cell of a scorecard needs odds beyond e^10 : 1; the bound keeps hopelessly noisy runs finite.
LARGEST_LOG_ODDS = 10.0


def estimate_persons(grid: Grid, counts: Vector) -> float:
    """Estimate how many persons took part from the noisy cell counts: every feature counts each once.

    Args:
        grid: the public grid.
        counts: noisy counts, float64 of shape ``[grid.size]``.

    Returns:
        The mean of the features' totals, at least 1.
    """
    return max(1.0, float(counts.sum()) / len(grid.features))


def default_rounds(*, epsilon: float, persons: float, holders: int) -> int:
    """Choose the number of gradient rounds from public numbers only.

    More rounds converge further but share the budget: little signal (``epsilon * persons`` small, the
    noise of several holders counted against it) is best spent on few.

    Args:
        epsilon: the study's, for one person.
        persons: estimate over all holders, at least 1.
        holders: how many of them add a full noise; 1 where they share one.

    Returns:
        15, 30 or 60.
    """
    signal = epsilon * persons / math.sqrt(holders)
    if signal < 5_000:
        return 15
    return 60 if signal > 20_000 else 30


@dataclass(frozen=True, kw_only=True)
class _Lines:
    """The straight lines over ordered cells.

    Attributes:
        basis: ``[size, lines]``; column j runs from -1 to 1 over the ordered cells of one feature.
        left: index of the left cell of every pair of neighbouring ordered cells.
        degree: ``[size]``; how many such pairs a cell belongs to.
    """

    basis: Vector
    left: NDArray[np.int64]
    degree: Vector

    @classmethod
    def of(cls, grid: Grid) -> _Lines:
        ordered = [feature for feature in grid.features if feature.ordered >= 2]
        basis = np.zeros((grid.size, len(ordered)))
        for column, feature in enumerate(ordered):
            cells = slice(feature.offset, feature.offset + feature.ordered)
            basis[cells, column] = np.linspace(-1.0, 1.0, feature.ordered)
        left = [np.arange(f.offset, f.offset + f.ordered - 1) for f in ordered]
        pairs = np.concatenate(left) if left else np.zeros(0, dtype=np.int64)
        degree = np.bincount(np.concatenate([pairs, pairs + 1]), minlength=grid.size).astype(np.float64)
        return cls(basis=basis, left=pairs, degree=degree)


class Fit:
    """Gradient descent on released sums, checkpointed after every round.

    Attributes:
        rounds: number of gradient rounds.
        done: rounds taken so far.
    """

    def __init__(self, grid: Grid, *, counts: Vector, gradient_noise_std: float, rounds: int) -> None:
        """Start at zero.

        Args:
            grid: the public grid of the study.
            counts: noisy cell counts of round 0 summed over holders, float64 ``[grid.size]``.
            gradient_noise_std: standard deviation of the noise in one coordinate of the summed gradient.
            rounds: number of gradient rounds, at least 1.

        Raises:
            BadInput: a shape or a number is out of range.
        """
        if counts.shape != (grid.size,) or not np.isfinite(counts).all():
            raise BadInput("counts", allowed=f"{grid.size} finite numbers")
        if not gradient_noise_std >= 0 or not rounds >= 1:
            raise BadInput("gradient_noise_std, rounds", allowed="noise >= 0 and rounds >= 1")
        self.grid, self.rounds, self.done = grid, rounds, 0
        self.persons = estimate_persons(grid, counts)
        self._counts = np.clip(counts, 0.0, None)
        self._noise = gradient_noise_std / self.persons
        self._lines = _Lines.of(grid)
        smooth = SMOOTH_PER_NOISE * self._noise
        floor = max(PRECONDITIONER_FLOOR, PRECONDITIONER_FLOOR_PER_NOISE * self._noise)
        self._rate = LEARNING_RATE / (1.0 + STEP_DAMPING_PER_NOISE * self._noise)
        curvature = self._counts / self.persons + floor
        self._cell_step = self._rate / (curvature + 2.0 * smooth * self._lines.degree * self._rate)
        self._free = np.zeros(grid.size)
        self._slope = np.zeros(self._lines.basis.shape[1])
        self._bias = 0.0
        self._sum = np.zeros(grid.size + 1)

    @property
    def theta(self) -> Vector:
        """The current iterate, float64 ``[grid.size + 1]``: log-odds per cell, then the intercept."""
        cells = self._free + self._lines.basis @ self._slope
        theta: Vector = np.append(cells, self._bias)
        return theta.clip(-LARGEST_LOG_ODDS, LARGEST_LOG_ODDS)

    @property
    def averaged_rounds(self) -> int:
        """How many of the last iterates the result averages: the second half."""
        return self.rounds - self.rounds // 2

    def update(self, gradient_sum: Vector) -> None:
        """Take one step from the summed noisy gradient of all holders at :attr:`theta`.

        Args:
            gradient_sum: float64 ``[grid.size + 1]``.

        Raises:
            BadInput: wrong shape, a value that is not finite, or more rounds than announced.
        """
        if gradient_sum.shape != (self.grid.size + 1,) or not np.isfinite(gradient_sum).all():
            raise BadInput("gradient", allowed=f"{self.grid.size + 1} finite numbers")
        if self.done >= self.rounds:
            raise BadInput("round", value=self.done + 1, allowed=f"1..{self.rounds}")
        mean = gradient_sum / self.persons
        cells, line = mean[:-1], self._lines.basis.T @ mean[:-1]
        step = self._free * (RIDGE + RIDGE_PER_NOISE * self._noise) + cells
        bend = SMOOTH_PER_NOISE * self._noise * np.diff(self._free)[self._lines.left]
        np.add.at(step, self._lines.left + 1, bend)
        np.add.at(step, self._lines.left, -bend)
        self._free -= self._cell_step * step
        self._slope -= self._rate * LINE_STEP * (line + RIDGE * self._slope)
        self._bias -= self._rate * LINE_STEP * float(mean[-1])
        self.done += 1
        if self.done > self.rounds - self.averaged_rounds:
            self._sum += self.theta

    def result(self, study: Study) -> Vector:
        """Average the last half of the iterates and make the declared trends hold.

        Returns:
            float64 ``[grid.size + 1]``.

        Raises:
            BadInput: rounds are missing.
        """
        if self.done != self.rounds:
            raise BadInput("rounds done", value=self.done, allowed=str(self.rounds))
        theta = self._sum / self.averaged_rounds
        for feature, declared in zip(self.grid.features, study.features, strict=True):
            if declared.risk_trend is not None:
                self._make_monotone(theta, feature, increasing=declared.risk_trend == "rises")
        return theta

    def _make_monotone(self, theta: Vector, feature: FeatureGrid, *, increasing: bool) -> None:
        """Project the ordered cells on the declared trend (isotonic regression, weighted by counts)."""
        cells = slice(feature.offset, feature.offset + feature.ordered)
        weights = self._counts[cells] + self.persons * self._noise + 1.0
        theta[cells] = isotonic_regression(theta[cells], weights=weights, increasing=increasing).x

    def state(self) -> dict[str, Vector]:
        """Return everything that changes from round to round, for a checkpoint."""
        return {
            "done": np.array([float(self.done)]),
            "free": self._free.copy(),
            "slope": self._slope.copy(),
            "bias": np.array([self._bias]),
            "sum": self._sum.copy(),
        }

    def restore(self, state: dict[str, Vector]) -> None:
        """Go on from a checkpoint made by :meth:`state` of a fit with the same arguments."""
        self.done = int(state["done"][0])
        self._free, self._slope = state["free"].copy(), state["slope"].copy()
        self._bias, self._sum = float(state["bias"][0]), state["sum"].copy()
