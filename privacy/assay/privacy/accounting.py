"""How much privacy a sequence of releases costs, and how much noise a target allows.

Everything full-batch is a Gaussian mechanism, so the account is one number: mu, the distance between
what is released with and without one person, in units of the noise. mu^2 adds over releases, runs and
studies; epsilon is read off the exact curve at the end, never added.

=====================  ==========================================================================
adjacency              the records of one person zeroed out; no exact number of people is used
one release            sensitivity C, noise of standard deviation z * C: mu = 1 / z
T releases             mu^2 = T / z^2 (Gaussian composition, Dong, Roth & Su 2019, corollary 3.3)
epsilon at delta       delta(eps) = Phi(mu/2 - eps/mu) - e^eps * Phi(-mu/2 - eps/mu)
                       (Balle & Wang 2018, theorem 8)
discrete noise         shares that are smooth enough are priced as a Gaussian: :func:`require_smooth`
Poisson-sampled steps  Opacus' PRV accountant (Gopi, Lee & Wutschitz 2021), an upper bound
=====================  ==========================================================================

Every function rounds toward more privacy: a delta or an epsilon is never below the exact value, a mu
never above it.

This module does not import torch or Opacus unless a sampled event is priced.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from assay.privacy.errors import BadInput

__all__ = [
    "COUNTS_SHARE",
    "TALLIES",
    "Event",
    "PrivacyTarget",
    "RunCost",
    "delta_of",
    "epsilon_of",
    "epsilon_of_mu",
    "mu2_of",
    "mu_of",
    "require_smooth",
]

COUNTS_SHARE = 0.05
"""Share of a run's mu^2 that pays for the noisy counts of round 0."""
CALIBRATION_SHARE = 0.03
"""Share that pays for the histogram of outcomes by predicted log-odds, after the gradients."""
AUDIT_SHARE = 0.07
"""Share of the last release, what is known of the finished scorecard; the gradients get the rest."""

TALLIES = 2
"""Rounds after the gradients: calibration and audit."""

MAX_EPSILON = 1000.0
# One person in a million is the customary ceiling; ten times that is the loosest that is computed with.
MAX_DELTA = 1e-5
MAX_ROUNDS = 1000
# Beyond this the promise is empty, and the PRV accountant's numerics are no longer sound.
MAX_SAMPLED_EPSILON = 50.0
# What adding up discrete shares may add to mu^2, and the least variance of their sum: see require_smooth.
MAX_DISCRETE_MU2 = 1e-30
MIN_DISCRETE_VARIANCE = 1 << 39
_PRV_ERROR = 0.01
_PRV_CELLS = 1 << 21
# Relative margin that absorbs the rounding of a handful of float64 operations.
_MARGIN = 1e-12
_ULPS = 16 * math.ulp(1.0)


def _require(ok: bool, setting: str, value: object, allowed: str, remedy: str = "") -> None:
    if not ok:
        raise BadInput(setting, value=value, allowed=allowed, remedy=remedy)


def _require_delta(delta: float) -> None:
    _require(0 < delta < 1, "delta", delta, "a number above 0 and below 1")


def delta_of(mu: float, epsilon: float) -> float:
    """Return the delta of a Gaussian mechanism at ``epsilon``, never below the exact value.

    Args:
        mu: at least 0 and finite; 0 is "nothing released".
        epsilon: at least 0 and finite.

    Raises:
        BadInput: an argument is negative, infinite or NaN.
    """
    _require(0 <= mu < math.inf, "mu", mu, "a finite number of at least 0")
    _require(0 <= epsilon < math.inf, "epsilon", epsilon, "a finite number of at least 0")
    if mu == 0:
        return 0.0
    # In logarithms: e^eps alone overflows above 709, and both terms underflow long before their ratio.
    with_person = float(log_ndtr(mu / 2 - epsilon / mu))
    without = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    # The two agree to many digits for small mu; the last term bounds what cancellation lost.
    lost = _ULPS * (1 + epsilon + abs(with_person) + abs(without - epsilon))
    return math.exp(with_person) * (-math.expm1(min(without - with_person, 0.0)) + lost)


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Return the smallest epsilon with ``delta_of(mu, epsilon) <= delta``, never below the exact value.

    Args:
        mu: at least 0 and finite; 0 costs 0.
        delta: above 0, below 1.

    Raises:
        BadInput: an argument is outside its range or NaN.
    """
    _require_delta(delta)
    if delta_of(mu, 0.0) <= delta:
        return 0.0
    # Phi(-x) <= exp(-x^2 / 2), so this epsilon is always enough; the margin covers delta_of's rounding.
    enough = (mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta) + 1)) * (1 + _MARGIN)
    return _bisect(lambda epsilon: delta_of(mu, epsilon) <= delta, no=0.0, yes=enough)


def mu_of(epsilon: float, delta: float) -> float:
    """Return the largest mu that spends at most ``epsilon`` at ``delta``, never above the exact value.

    The result is re-checked: ``epsilon_of_mu(mu_of(epsilon, delta), delta) <= epsilon``.

    Args:
        epsilon: above 0, at most 1000.
        delta: above 0, below 1.

    Raises:
        BadInput: an argument is outside its range or NaN.
    """
    _require(0 < epsilon <= MAX_EPSILON, "epsilon", epsilon, f"above 0, at most {MAX_EPSILON:g}")
    _require_delta(delta)
    too_much = 1.0
    while delta_of(too_much, epsilon) <= delta:
        too_much *= 2
    mu = _bisect(lambda mu: delta_of(mu, epsilon) <= delta, no=too_much, yes=0.0)
    while epsilon_of_mu(mu, delta) > epsilon:
        mu *= 1 - _MARGIN
    return mu


def require_smooth(*, size: int, contributors: int, share_variance: int) -> None:
    """Refuse integer noise that may not be priced as a Gaussian.

    With a sensitivity in grid units, four facts carry the Gaussian curve over to the sum of n shares of
    discrete Gaussian noise, each of variance v:

    1. The sum is a discrete Gaussian of variance V = n v, but for a relative error of each probability;
       over ``size`` values it adds at most 10 n size exp(-pi^2 v) to mu^2 (Kairouz, Liu & Steinke 2021,
       theorem 1, with k / (k + 1) >= 1/2).
    2. In Renyi divergence, a discrete Gaussian costs no more than a Gaussian of the same variance
       (Canonne, Kamath & Steinke 2020, theorem 4).
    3. So does its exact curve, nearly: each value is a Gaussian of variance V - 1/12 rounded to the nearest
       integer (rounding is post-processing, and commutes with a shift by an integer), but for a factor
       1 - H4(x / sqrt(V)) / (2880 V^2) + ... of its probability: cumulants agree below the fourth.
    4. More shares than n are added after the fact, and post-processing too.

    The first is refused where it exceeds 1e-30, V where it is below 2^39. What is left at that V: the
    variance V - 1/12 in place of V, less than 1e-13 of mu, inside the margin of every price here; and the
    factor of fact 3, which within 48 standard deviations is nearer to 1 than 2000 / V^2 < 1e-20 for each
    value (beyond them lies less than 1e-490 of probability, too little for any epsilon up to 1000). So a
    million values shift epsilon by less than 1e-13.

    Args:
        size: released values, at least 1.
        contributors: n, at least 1.
        share_variance: v, in grid units.

    Raises:
        BadInput: ``share_variance`` is too small.
    """
    added = math.log(10 * contributors * size) - math.pi**2 * share_variance
    _require(
        added <= math.log(MAX_DISCRETE_MU2) and contributors * share_variance >= MIN_DISCRETE_VARIANCE,
        "share_variance",
        share_variance,
        "a variance in grid units large enough for the Gaussian curve",
    )


def _bisect(holds: Callable[[float], bool], *, no: float, yes: float) -> float:
    """Return the end at which ``holds`` is true, once the two ends are neighbouring float64 numbers."""
    while True:
        middle = (no + yes) / 2
        if middle in (no, yes):
            return yes
        if holds(middle):
            yes = middle
        else:
            no = middle


@dataclass(frozen=True, kw_only=True)
class Event:
    """A Gaussian mechanism of sensitivity 1, run ``steps`` times. Immutable.

    Attributes:
        noise_multiplier: noise standard deviation / sensitivity; above 0, finite.
        sample_rate: probability with which each person takes part in a step (Poisson sampling), above 0,
            at most 1; 1 is a full-batch release.
        steps: how many times, at least 1.
    """

    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        _require(0 < self.noise_multiplier < math.inf, "noise_multiplier", self.noise_multiplier, "above 0")
        _require(0 < self.sample_rate <= 1, "sample_rate", self.sample_rate, "above 0, at most 1")
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
        _require(whole and self.steps >= 1, "steps", self.steps, "a whole number of at least 1")


def mu2_of(events: Sequence[Event]) -> float:
    """Return the mu^2 that the full-batch events spend together; sampled ones have no single mu.

    Raises:
        BadInput: an event is sampled.
    """
    for event in events:
        _require(event.sample_rate == 1, "sample_rate", event.sample_rate, "1 where mu^2 is asked for")
    return math.fsum(event.steps / event.noise_multiplier**2 for event in events)


def epsilon_of(events: Sequence[Event], delta: float) -> float:
    """Return the epsilon that ``events`` spend together on the same people at ``delta``.

    =========================  ================================================================
    no events                  0.0
    all full-batch             exact, rounded up
    any sampled                upper bound of the PRV accountant: 0.01 above the estimate, more for
                               very long histories (Opacus is imported then)
    sampled, far beyond use    refused where an RDP bound is above 50
    =========================  ================================================================

    Raises:
        BadInput: ``delta`` is outside its range, or the events spend more than can be priced.
    """
    _require_delta(delta)
    full = [event for event in events if event.sample_rate == 1]
    sampled = [event for event in events if event.sample_rate < 1]
    mu = math.sqrt(mu2_of(full)) * (1 + _MARGIN)
    if not sampled:
        return epsilon_of_mu(mu, delta)
    return _epsilon_of_sampled(mu, sampled, delta)


def _epsilon_of_sampled(mu: float, sampled: Sequence[Event], delta: float) -> float:
    """Compose full-batch releases of total ``mu`` with sampled ones: RDP to look, PRV to count."""
    # Opacus costs seconds to import, and daemons that never sample never pay for it. Its GDP accountant
    # under-reports (central limit theorem, not a bound) and is not used anywhere.
    from opacus.accountants import PRVAccountant

    steps = Counter[tuple[float, float]]()
    for event in sampled:
        steps[event.noise_multiplier, event.sample_rate] += event.steps
    history = [(noise, rate, count) for (noise, rate), count in steps.items()]
    if mu > 0:
        history.append((1 / mu, 1.0, 1))
    rough = _rdp_bound(history, delta)
    _require(
        rough <= MAX_SAMPLED_EPSILON,
        "privacy loss of the sampled steps",
        f"epsilon {rough:.3g}",
        f"at most {MAX_SAMPLED_EPSILON:g}",
        "Use more noise, fewer steps or a lower sample rate",
    )
    # The grid spans about +-epsilon in cells of error / sqrt(steps): a longer history gets wider cells
    # rather than gigabytes. The result is an upper bound at any width (Gopi et al. 2021, theorem 5.5).
    width = math.sqrt(sum(steps.values()) * math.log(12_000 / delta) / 2)
    error = max(_PRV_ERROR, 2 * rough * width / _PRV_CELLS)
    accountant = PRVAccountant()
    accountant.history = history
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        # log(1 - q) of the full-batch part is minus infinity, as it should be; and the RDP orders it sizes
        # its grid with are too few for tiny costs, which makes the grid wider than needed.
        warnings.simplefilter("ignore", UserWarning)
        return float(accountant.get_epsilon(delta, eps_error=error))


def _rdp_bound(history: Sequence[tuple[float, float, int]], delta: float) -> float:
    """Return a loose epsilon, cheap for any history (Mironov 2017, proposition 3)."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = np.asarray(RDPAccountant.DEFAULT_ALPHAS)
    total = np.zeros(len(orders))
    for noise_multiplier, rate, steps in history:
        total += compute_rdp(q=rate, noise_multiplier=noise_multiplier, steps=steps, orders=orders)
    return float(np.nanmin(total + math.log(1 / delta) / (orders - 1)))


@dataclass(frozen=True, kw_only=True)
class PrivacyTarget:
    """What one person is promised over one whole run.

    Attributes:
        epsilon: above 0, at most 1000.
        delta: above 0, at most 1e-5.
        holders_per_person: how many holders may hold records of the same person; at least 1.
        trust: ``"local"``: every holder's own noise carries the promise; ``"distributed"``: the noise of
            the sum does.
    """

    epsilon: float
    delta: float
    holders_per_person: int = 1
    trust: str = "distributed"

    def __post_init__(self) -> None:
        _require(
            0 < self.epsilon <= MAX_EPSILON, "epsilon", self.epsilon, f"above 0, at most {MAX_EPSILON:g}"
        )
        _require(0 < self.delta <= MAX_DELTA, "delta", self.delta, f"above 0, at most {MAX_DELTA:g}")
        whole = isinstance(self.holders_per_person, int) and not isinstance(self.holders_per_person, bool)
        _require(
            whole and self.holders_per_person >= 1,
            "holders_per_person",
            self.holders_per_person,
            "a whole number of at least 1",
        )
        _require(self.trust in ("local", "distributed"), "trust", self.trust, '"local" or "distributed"')

    @property
    def mu(self) -> float:
        """The mu one holder may spend in the run, so that a person known to several keeps the promise.

        Separate noise at each of k holders: k releases compose, so each gets mu / sqrt(k). One noise for
        the sum of k holders: the person's k contributions add up before it, so each gets mu / k.
        """
        holders = self.holders_per_person
        shared = math.sqrt(holders) if self.trust == "local" else holders
        return mu_of(self.epsilon, self.delta) / shared


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """What one holder's releases in one run cost, whatever number of rounds is chosen later.

    Round 0 (noisy counts), round T+1 (calibration) and round T+2 (audit) take fixed shares of mu^2; rounds
    1..T share the rest equally. Because T only divides the rest, it may be chosen after round 0 without
    changing what was reserved.

    Attributes:
        target: the promise.
        mu2: the holder's mu^2 for the whole run.
    """

    target: PrivacyTarget
    mu2: float

    def __post_init__(self) -> None:
        _require(0 < self.mu2 < math.inf, "mu2", self.mu2, "a finite number above 0")

    @classmethod
    def of(cls, target: PrivacyTarget) -> RunCost:
        """Return the cost that uses up ``target`` and never more."""
        return cls(target=target, mu2=target.mu**2)

    @property
    def counts(self) -> Event:
        """The one release of round 0."""
        return Event(noise_multiplier=_noise_multiplier(self.mu2 * COUNTS_SHARE))

    @property
    def calibration(self) -> Event:
        """The one release of round T+1."""
        return Event(noise_multiplier=_noise_multiplier(self.mu2 * CALIBRATION_SHARE))

    @property
    def audit(self) -> Event:
        """The one release of round T+2."""
        return Event(noise_multiplier=_noise_multiplier(self.mu2 * AUDIT_SHARE))

    def event(self, number: int, rounds: int) -> Event:
        """Return the release of round ``number`` in a run of ``rounds`` gradient rounds.

        Raises:
            BadInput: ``number`` is not 0 to ``rounds`` + 2, or ``rounds`` is outside its range.
        """
        if number == 0:
            return self.counts
        gradient = self.gradient(rounds)
        _require(number <= rounds + TALLIES, "round", number, f"0 to {rounds + TALLIES}")
        if number <= rounds:
            return gradient
        return self.calibration if number == rounds + 1 else self.audit

    def gradient(self, rounds: int) -> Event:
        """Return the release of one gradient round out of ``rounds`` (1 to 1000).

        Raises:
            BadInput: ``rounds`` is outside its range.
        """
        whole = isinstance(rounds, int) and not isinstance(rounds, bool)
        _require(whole and 1 <= rounds <= MAX_ROUNDS, "rounds", rounds, f"a whole number, 1 to {MAX_ROUNDS}")
        rest = 1 - COUNTS_SHARE - CALIBRATION_SHARE - AUDIT_SHARE
        return Event(noise_multiplier=_noise_multiplier(self.mu2 * rest / rounds))

    def total(self, rounds: int) -> tuple[Event, ...]:
        """Return all releases of a run of ``rounds`` gradient rounds; together they cost at most mu2."""
        one = self.gradient(rounds)
        steps = Event(noise_multiplier=one.noise_multiplier, steps=rounds)
        return self.counts, steps, self.calibration, self.audit


def _noise_multiplier(mu2: float) -> float:
    """Return 1 / mu, rounded up so that neither squares nor sums of many spend more than was shared out."""
    return (1 + 2 * _MARGIN) / math.sqrt(mu2)
