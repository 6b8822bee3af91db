"""The coordinator's half of training: from noisy sums to a table of log-odds.

Everything here is post-processing of values that were released with their noise, so none of it costs
privacy and all of it may be published. The method is a preconditioned gradient descent with momentum on a
*hybrid* additive model: every ordered feature has a free value per cell plus one straight line over its
cells. Where the noise dominates, the ridge and first-difference penalties, which grow with the public noise
level, pull the free values to zero and a plain scorecard remains.

Every feature is centred at the population's mean, which the noisy counts tell. The intercept is then what is
left when nothing is known, a component that is absent counts as an average one, and the many features do not
all have the intercept's direction in common, which would slow every step down. A pattern of components that
holders have may deviate from the intercept; one that nobody has cannot, and keeps it.

Neither the line nor the centring needs a release of its own: they are fixed linear maps of the cells'
gradient, so the sensitivity of a round stays sqrt(features + 1).

A pair that the study declares is a feature here, one whose cells have no order.
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

__all__ = ["Fit", "default_rounds", "estimate_component_persons", "estimate_persons"]

Vector = NDArray[np.float64]

# Measured on the Taiwan records (split over 10 holders) and on made-up credit records with 8, 25 and 50
# features, at epsilon 0.5 to 4; one setting for all. Most are flat: a third of a penalty costs under .002
# AUROC, three times as much under .004. How far a run goes is a compromise: records of many features that
# differ want it longer, records of features that say nearly the same shorter, each by up to .003.
LEARNING_RATE = 0.5
LINE_STEP = 3.0  # curvature of a line over cells in [-1, 1] is a third of the intercept's, or less
INTERCEPT_STEP = 2.0
RIDGE = 1e-4
RIDGE_PER_NOISE = 0.2
SMOOTH_PER_NOISE = 0.3
DEVIATION_RIDGE_PER_NOISE = 3.0
PRECONDITIONER_FLOOR = 0.01
PRECONDITIONER_FLOOR_PER_NOISE = 6.0
# How far a run gets along a direction is bounded by the noise of all rounds together: what the records say
# little about is then not reached. Little noise allows momentum b, which multiplies the way by 1 / (1 - b);
# much noise shortens the steps. So the number of rounds hardly matters, as long as momentum dies out within.
STILLNESS_PER_NOISE = 9.0
ROUNDS_TO_REST = 6.0
# Share of the iterates that are averaged, with weights that grow from round to round: those that had not
# come near yet hardly count.
AVERAGED = 0.8
# Steps that overshoot turn the gradient round from one round to the next, by more than noise can.
OVERSHOT = 4.0
# No cell of a scorecard needs odds beyond e^10 : 1; the bound keeps hopelessly noisy runs finite.
LARGEST_LOG_ODDS = 10.0


def estimate_persons(grid: Grid, counts: Vector, patterns: tuple[int, ...]) -> float:
    """Estimate how many persons took part, from the noisy counts of round 0.

    Args:
        grid: the public grid.
        counts: noisy counts, float64 of shape ``[grid.width]``.
        patterns: the patterns that holders stated.

    Returns:
        The least-squares estimate from the patterns' and all features' totals, at least 1.

    Raises:
        BadInput: a shape or a pattern is out of range.
    """
    return max(1.0, float(_Consistent.of(grid, patterns).project(counts)[grid.size :].sum()))


def estimate_component_persons(grid: Grid, counts: Vector, patterns: tuple[int, ...]) -> Vector:
    """Estimate how many persons have each component, float64 ``[components]``, each at least 1.

    Arguments as for :func:`estimate_persons`.
    """
    by_pattern = _Consistent.of(grid, patterns).project(counts)[grid.size :]
    return np.maximum(1.0, _membership(grid).T @ by_pattern)


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


def _membership(grid: Grid) -> Vector:
    """Which pattern has which component: float64 ``[patterns, components]`` of 0 and 1."""
    masks = np.arange(1, grid.patterns + 1)
    return (masks[:, None] >> np.arange(len(grid.components)) & 1).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class _Consistent:
    """The vectors that exact sums can be.

    A person weighs 1 on the cells of each feature of its components and 1 on its pattern, and a clipped
    gradient scales all of them alike. In every exact sum the cells of a feature therefore add up to the
    patterns that have it. The nearest vector for which that holds is the least-squares estimate of the sum
    from one with equal noise everywhere, and what no holder has is known to be 0.

    Attributes:
        held: bool ``[width]``; cells and patterns that some holder has.
        ties: float64 ``[features, width]``; one row per tie, times a vector = 0.
        inverse: float64 ``[features, features]``; of ``ties @ ties.T`` where a holder has the feature.
    """

    held: NDArray[np.bool_]
    ties: Vector
    inverse: Vector

    @classmethod
    def of(cls, grid: Grid, patterns: tuple[int, ...]) -> _Consistent:
        """Work out the ties for the patterns that holders stated.

        Raises:
            BadInput: a pattern is none of the study's, or there is none.
        """
        if not patterns or not all(1 <= pattern <= grid.patterns for pattern in patterns):
            raise BadInput("patterns", allowed=f"at least one, each from 1 to {grid.patterns}")
        stated = np.isin(np.arange(1, grid.patterns + 1), patterns)
        has = _membership(grid)[:, grid.members]  # [patterns, features]
        there = has[stated].any(axis=0)
        cells = np.diff(grid.offsets)
        held = np.concatenate([np.repeat(there, cells), stated])
        ties = np.zeros((len(cells), grid.width))
        ties[np.repeat(np.arange(len(cells)), cells), np.arange(grid.size)] = 1.0
        ties[:, grid.size :] = -has.T
        ties *= held
        inverse: Vector = np.linalg.inv(ties @ ties.T + np.diag(1.0 - there)).astype(np.float64)
        return cls(held=held, ties=ties, inverse=inverse)

    def project(self, values: Vector) -> Vector:
        """Return the nearest consistent vector.

        Raises:
            BadInput: wrong shape, or a value that is not finite.
        """
        if values.shape != self.held.shape or not np.isfinite(values).all():
            raise BadInput("released sum", allowed=f"{len(self.held)} finite numbers")
        values = np.where(self.held, values, 0.0)
        return np.asarray(values - self.ties.T @ (self.inverse @ (self.ties @ values)), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Lengths and indices of everything that is fitted: free cells, lines, the intercept, deviations.

    Attributes:
        cells: int64 ``[features]``; how many each feature has.
        starts: int64 ``[features]``; where they begin.
        ramp: float64 ``[size]``; from -1 to 1 over the ordered cells of each feature, else 0.
        left: int64; the left cell of every pair of neighbouring ordered cells.
        degree: float64 ``[size]``; how many such pairs a cell belongs to.
    """

    cells: NDArray[np.int64]
    starts: NDArray[np.int64]
    ramp: Vector
    left: NDArray[np.int64]
    degree: Vector

    @classmethod
    def of(cls, grid: Grid) -> _Layout:
        ramp = np.zeros(grid.size)
        ordered = [term for term in grid.terms if term.ordered >= 2]
        for term in ordered:
            ramp[term.offset : term.offset + term.ordered] = np.linspace(-1.0, 1.0, term.ordered)
        left = [np.arange(term.offset, term.offset + term.ordered - 1) for term in ordered]
        pairs = np.concatenate(left) if left else np.zeros(0, dtype=np.int64)
        degree = np.bincount(np.concatenate([pairs, pairs + 1]), minlength=grid.size).astype(np.float64)
        starts = grid.offsets[:-1]
        return cls(cells=np.diff(grid.offsets), starts=starts, ramp=ramp, left=pairs, degree=degree)

    def per_feature(self, values: Vector) -> Vector:
        """Add up the cells of each feature."""
        return np.add.reduceat(values, self.starts)

    def spread(self, values: NDArray[np.generic]) -> Vector:
        """Give every cell its feature's value."""
        return np.repeat(np.asarray(values, dtype=np.float64), self.cells)


class Fit:
    """Gradient descent on released sums, checkpointed after every round.

    Attributes:
        rounds: number of gradient rounds.
        done: rounds taken so far.
        persons: estimate of all that take part.
    """

    def __init__(
        self, grid: Grid, *, counts: Vector, gradient_noise_std: float, rounds: int, patterns: tuple[int, ...]
    ) -> None:
        """Start at zero.

        Args:
            grid: the public grid of the study.
            counts: noisy counts of round 0 summed over holders, float64 ``[grid.width]``.
            gradient_noise_std: standard deviation of the noise in one coordinate of the summed gradient.
            rounds: number of gradient rounds, at least 1.
            patterns: the patterns that holders stated.

        Raises:
            BadInput: a shape or a number is out of range.
        """
        if not 0 <= gradient_noise_std < math.inf or not rounds >= 1:
            raise BadInput("gradient_noise_std, rounds", allowed="finite noise >= 0 and rounds >= 1")
        self.grid, self.rounds, self.done = grid, rounds, 0
        self._layout, self._consistent = _Layout.of(grid), _Consistent.of(grid, patterns)
        self._stated = np.unique(np.array(patterns, dtype=np.int64)) - 1
        self._count_persons(self._consistent.project(counts))
        self._set_steps(gradient_noise_std)
        ends = np.cumsum([grid.size, len(grid.terms), 1])
        self._parts = tuple(ends.tolist())
        self._at = np.zeros(self._parts[-1] + len(self._stated))
        self._speed, self._last = np.zeros_like(self._at), np.zeros_like(self._at)
        self._rate, self._turned = LEARNING_RATE, False
        self._sum, self._averaged = np.zeros(grid.width), 0

    def _count_persons(self, counts: Vector) -> None:
        """Take from consistent counts the persons of each pattern and feature, and the cells' shares."""
        grid, layout = self.grid, self._layout
        self._of_pattern = np.maximum(1.0, counts[grid.size :][self._stated])
        self.persons = float(self._of_pattern.sum())
        # [patterns stated, features]: which pattern has which feature
        self._has = _membership(grid)[self._stated][:, grid.members]
        self._of_feature = np.maximum(1.0, self._has.T @ self._of_pattern)
        self._shares = np.zeros(grid.size)
        for start, cells, persons in zip(layout.starts, layout.cells, self._of_feature, strict=True):
            own = slice(start, start + cells)
            self._shares[own] = _simplex(counts[own] / persons)

    def _set_steps(self, noise_std: float) -> None:
        """Fix penalties, step lengths and momentum by the noise of a mean gradient, public for each part."""
        layout, noise = self._layout, noise_std / self._of_feature
        everywhere = np.array([noise_std / self.persons])
        own = noise_std / self._of_pattern
        cell_noise = layout.spread(noise)
        self._ridge = RIDGE + RIDGE_PER_NOISE * cell_noise
        self._smooth = SMOOTH_PER_NOISE * cell_noise
        self._deviation_ridge = DEVIATION_RIDGE_PER_NOISE * own
        floor = np.maximum(PRECONDITIONER_FLOOR, PRECONDITIONER_FLOOR_PER_NOISE * cell_noise)
        bending = 2.0 * self._smooth * layout.degree * LEARNING_RATE
        shared = np.concatenate([cell_noise, noise])
        stillness = STILLNESS_PER_NOISE * shared * math.sqrt(self.rounds)
        lines = np.full(len(noise), 1.0 / LINE_STEP)
        curvature = np.concatenate([self._shares + floor + bending, lines]) * np.maximum(1.0, stillness)
        deviating = (1.0 + self._deviation_ridge) / INTERCEPT_STEP
        self._steps = 1.0 / np.concatenate([curvature, [1.0 / INTERCEPT_STEP], deviating])
        overall = STILLNESS_PER_NOISE * math.sqrt(self.rounds) * np.repeat(everywhere, 1 + len(own))
        most = max(0.0, 1.0 - ROUNDS_TO_REST / self.rounds)
        self._momentum = np.clip(1.0 - np.concatenate([stillness, overall]), 0.0, most)
        lines_noise = noise * np.sqrt(layout.per_feature(layout.ramp**2))
        self._noise = np.concatenate([cell_noise, lines_noise, everywhere, own])

    @property
    def theta(self) -> Vector:
        """The current iterate, float64 ``[grid.width]``: centred log-odds per cell, then the intercepts."""
        free, slopes, intercept, deviations = np.split(self._at, self._parts)
        cells = free + self._layout.ramp * self._layout.spread(slopes)
        cells -= self._layout.spread(self._layout.per_feature(self._shares * cells))
        intercepts = np.full(self.grid.patterns, intercept[0])
        intercepts[self._stated] += deviations
        theta: Vector = np.concatenate([cells, intercepts])
        return theta.clip(-LARGEST_LOG_ODDS, LARGEST_LOG_ODDS)

    @property
    def averaged_rounds(self) -> int:
        """How many of the last iterates the result averages, if the steps were never halved."""
        return max(1, round(self.rounds * AVERAGED))

    def update(self, gradient_sum: Vector) -> None:
        """Take one step from the summed noisy gradient of all holders at :attr:`theta`.

        Args:
            gradient_sum: float64 ``[grid.width]``.

        Raises:
            BadInput: wrong shape, a value that is not finite, or more rounds than announced.
        """
        gradient = self._mean_gradient(self._consistent.project(gradient_sum))
        if self.done >= self.rounds:
            raise BadInput("round", value=self.done + 1, allowed=f"1..{self.rounds}")
        self._slow_down(gradient)
        self._speed = self._momentum * self._speed - self._rate * self._steps * (gradient + self._penalty())
        self._at = self._at + self._speed
        self.done += 1
        if self.done > self.rounds - self.averaged_rounds:
            self._averaged += 1
            self._sum += self._averaged * self.theta

    def _mean_gradient(self, total: Vector) -> Vector:
        """Return the mean gradient of what is fitted, each part per person that has it."""
        layout, patterns = self._layout, total[self.grid.size :][self._stated]
        of_feature = layout.spread(self._has.T @ patterns)
        cells = (total[: self.grid.size] - self._shares * of_feature) / layout.spread(self._of_feature)
        mean = patterns.sum() / self.persons
        return np.concatenate(
            [cells, layout.per_feature(layout.ramp * cells), [mean], patterns / self._of_pattern - mean]
        )

    def _penalty(self) -> Vector:
        """Return the gradient of the ridge and of the first-difference penalty."""
        free, slopes, _, deviations = np.split(self._at, self._parts)
        cells, left = self._ridge * free, self._layout.left
        bend = self._smooth[left] * np.diff(free)[left]
        np.add.at(cells, left + 1, bend)
        np.add.at(cells, left, -bend)
        return np.concatenate([cells, RIDGE * slopes, [0.0], self._deviation_ridge * deviations])

    def _slow_down(self, gradient: Vector) -> None:
        """Halve the steps when the gradient has turned round twice running, by more than its noise could.

        Features that say the same add up to a curvature that no single one of them shows. Momentum alone
        turns a gradient round as well, but not in every round.
        """
        inner = float(self._steps @ (gradient * self._last))
        variance = self._noise**2 * (self._noise**2 + gradient**2 + self._last**2)
        turned = inner < -OVERSHOT * math.sqrt(float(self._steps**2 @ variance))
        if turned and self._turned:
            self._rate /= 2.0
            self._speed = np.zeros_like(self._speed)
            self._sum, self._averaged = np.zeros_like(self._sum), 0  # what swung to and fro is no estimate
        self._last, self._turned = gradient, turned

    def result(self, study: Study) -> Vector:
        """Average the iterates with weights that grow from round to round, and make the declared trends hold.

        Returns:
            float64 ``[grid.width]``.

        Raises:
            BadInput: rounds are missing.
        """
        if self.done != self.rounds:
            raise BadInput("rounds done", value=self.done, allowed=str(self.rounds))
        theta = self._sum / (self._averaged * (self._averaged + 1) / 2)
        for feature, declared in zip(self.grid.features, study.features, strict=True):
            if declared.risk_trend is not None:
                self._make_monotone(theta, feature, increasing=declared.risk_trend == "rises")
        return theta

    def _make_monotone(self, theta: Vector, feature: FeatureGrid, *, increasing: bool) -> None:
        """Project the ordered cells on the declared trend (isotonic regression, weighted by shares)."""
        cells = slice(feature.offset, feature.offset + feature.ordered)
        weights = self._shares[cells] + self._noise[cells] + 1.0 / self.persons
        theta[cells] = isotonic_regression(theta[cells], weights=weights, increasing=increasing).x

    def state(self) -> dict[str, Vector]:
        """Return everything that changes from round to round, for a checkpoint."""
        return {
            "done": np.array([float(self.done)]),
            "averaged": np.array([float(self._averaged)]),
            "at": self._at.copy(),
            "speed": self._speed.copy(),
            "last": self._last.copy(),
            "rate": np.array([self._rate, float(self._turned)]),
            "sum": self._sum.copy(),
        }

    def restore(self, state: dict[str, Vector]) -> None:
        """Go on from a checkpoint made by :meth:`state` of a fit with the same arguments."""
        self.done, self._averaged = int(state["done"][0]), int(state["averaged"][0])
        self._rate, self._turned = float(state["rate"][0]), bool(state["rate"][1])
        self._at, self._speed = state["at"].copy(), state["speed"].copy()
        self._last, self._sum = state["last"].copy(), state["sum"].copy()


def _simplex(values: Vector) -> Vector:
    """Return the nearest vector of shares: none negative, adding up to 1.

    Duchi, Shalev-Shwartz, Singer & Chandra, *Efficient projections onto the l1-ball*, 2008, fig. 1.
    """
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1.0) / np.arange(1, len(values) + 1)
    shares: Vector = np.maximum(values - excess[falling > excess][-1], 0.0)
    return shares
