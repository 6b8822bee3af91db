"""From guesses who was in the records to how much privacy is lost at least.

A guesser sees everything that a run releases and says of some of m persons, each of whom was put in by a
fair coin, whether they are in. The more often it is right, the larger the mu of the releases must be.

===============  ====================================================================================
:func:`mu_low`   a lower bound that holds whatever releases and guesser do: persons may hide each other,
                 and nothing is assumed about noise. It needs many persons and stays well below the truth
:func:`fitted`   an estimate with an interval, near the truth already for few persons. It takes for
                 granted that the noise is Gaussian and independent of the records
===============  ====================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.special import ndtr, ndtri
from scipy.stats import norm

from assay.privacy.errors import BadInput

__all__ = ["Estimate", "Shown", "fitted", "mu_low"]

_HIGHEST_MU = 40.0  # beyond it, one guess in 10^80 is wrong: no number of persons could tell
_STEPS = 40  # of the bisection; the last is below 1e-10

Vector = NDArray[np.float64]


def mu_low(*, persons: int, guessed: int, right: int, confidence: float) -> float:
    """Return the largest mu of which so many right guesses say that it is too small.

    Guarantee: if the releases are mu-GDP for every one of the persons (Dong, Roth & Su 2019), the result is
    above mu with a probability of at most 1 - ``confidence``. The coins are fair, independent of each other
    and of the noise; how many guesses are made does not depend on what was released.

    Args:
        persons: m, how many coins were thrown; at least 1.
        guessed: of how many the guesser says something, 1 to ``persons``.
        right: how many guesses are right, 0 to ``guessed``.
        confidence: above 0, below 1.

    Returns:
        At least 0, where the guesses say nothing; at most 40.

    Raises:
        BadInput: a number is outside its range.
    """
    if not 1 <= guessed <= persons or not 0 <= right <= guessed:
        raise BadInput("guesses", value=(persons, guessed, right), allowed="right <= guessed <= persons")
    if not 0 < confidence < 1:
        raise BadInput("confidence", value=confidence, allowed="above 0, below 1")

    def refuted(mu: float) -> bool:
        return _too_good(mu, persons=persons, guessed=guessed, right=right, chance=1 - confidence)

    low, high = 0.0, _HIGHEST_MU
    if not refuted(low):
        return 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _too_good(mu: float, *, persons: int, guessed: int, right: int, chance: float) -> bool:
    """Return whether mu-GDP makes ``right`` right guesses or more less likely than ``chance``.

    Mahloujifar, Melis & Chaudhuri, *Auditing f-differential privacy in one run* (ICML 2025), the recursion
    for an adversary that may abstain. With p_i the probability of exactly i right guesses, turning one
    person's coin round and adding up over all persons gives, for every i and G(x) = Phi(Phi^-1(x) - mu),

        H_(i-1) >= G(R_i),   R_i = sum_(j>=i) j p_j / m,   H_i = sum_(j>=i) (n - j) p_j / m,

    n of m being guessed. Suppose the tail from ``right`` on had probability ``chance``. Downwards from there,
    the smallest R and H that the inequality leaves are found; if they need more than all the probability
    there is, R_0 + H_0 > n / m, the assumption was wrong.
    """
    r, h = chance * right / persons, chance * (guessed - right) / persons
    for i in range(right - 1, -1, -1):
        lowest = max(h, float(ndtr(ndtri(min(r, 1.0)) - mu)))
        r, h = r + i / (guessed - i) * (lowest - h), lowest
    return r + h > guessed / persons


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What one run shows of the coins of m persons.

    Under Gaussian noise of the size that it should have, the scores are ``overlaps @ (inside - 1/2)`` plus
    noise of covariance ``overlaps``.

    Attributes:
        scores: float64 [m], product of each person's contribution with what was released beyond what was
            to be expected, over the variance that the noise should have.
        overlaps: float64 [m, m], products of the contributions, likewise; the root of the diagonal is mu.
        inside: bool [m], whose coin said so.
    """

    scores: Vector
    overlaps: Vector
    inside: NDArray[np.bool_]

    def guesses(self) -> Vector:
        """Return the best linear estimate of all coins less 1/2 together, float64 [m]; it knows no coin.

        Least squares with the coins' own variance of 1/4. Where a bug makes noise too small or contributions
        too large, persons are told apart better if one reckons with it, so their ratio is fitted first.
        """
        weights, directions = linalg.eigh(self.overlaps)
        seen = weights > weights[-1] * 1e-9
        weights, directions = weights[seen], directions[:, seen]
        along = directions.T @ self.scores
        ratio = _noise_to_size(weights, along)
        return np.asarray(directions @ (along / (weights + 4 * ratio)))


def _noise_to_size(weights: Vector, along: Vector) -> float:
    """Return by how much noise is larger than it should be, if contributions are what they should be.

    The likeliest one: independent values of variance proportional to ``ratio w + w^2 / 4``. Few and weak
    ones say little; then it is near 1.
    """
    best, likeliest = 1.0, -math.inf
    for ratio in np.geomspace(1e-3, 1e3, 61):
        shape = ratio * weights + weights**2 / 4
        scale = float(np.mean(along**2 / shape))
        likely = -0.5 * float(np.log(scale * shape).sum()) - 0.5 * (math.log(ratio) / math.log(4)) ** 2
        if likely > likeliest:
            best, likeliest = float(ratio), likely
    return best


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mu with a two-sided interval.

    Attributes:
        mu: of the person who shows most.
        low: lower end, at least 0.
        high: upper end.
    """

    mu: float
    low: float
    high: float


def fitted(runs: Sequence[Shown], *, confidence: float) -> Estimate:
    """Estimate mu, fitting the size of what leaves and that of the noise.

    So the result is what the releases show and not what is believed of them.

    Args:
        runs: at least one, all of the same releases, with noise of their own.
        confidence: of the interval, above 0, below 1.
    """
    coins = [run.inside - 0.5 for run in runs]
    expected = [run.overlaps @ own for run, own in zip(runs, coins, strict=True)]
    signal = math.fsum(float(a @ b) for a, b in zip(coins, expected, strict=True))
    size = math.fsum(float(own @ run.scores) for run, own in zip(runs, coins, strict=True)) / signal
    # Each score's noise has variance overlaps[i, i]; all together tell how large it is per unit of that.
    shown = math.fsum(float(np.trace(run.overlaps)) for run in runs)
    left = [run.scores - size * each for run, each in zip(runs, expected, strict=True)]
    noise = math.sqrt(math.fsum(float(each @ each) for each in left) / shown)
    most = math.sqrt(max(float(np.diag(run.overlaps).max()) for run in runs))
    mu = size / noise * most
    # Delta method: the error of the fitted size, and that of the noise, whose scores depend on each other.
    squares = math.fsum(float((run.overlaps**2).sum()) for run in runs)
    error = math.sqrt(most**2 / signal + mu**2 * squares / (2 * shown**2))
    half = float(norm.isf((1 - confidence) / 2)) * error
    return Estimate(mu=max(0.0, mu), low=max(0.0, mu - half), high=max(0.0, mu + half))
