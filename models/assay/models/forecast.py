"""How much AUROC the noise will cost: foretold from public numbers, before anybody's records are touched.

Scores of good and bad persons are taken to be normal with one variance, so that AUROC is Phi(z) (the binormal
model: Green & Swets, *Signal Detection Theory and Psychophysics*, 1966, ch. 3). An error of the score that
has nothing to do with the outcome, of r times the score's variance, leaves Phi(z / sqrt(1 + r)). Two errors:

noise   The gradients of all rounds together are one gradient with noise tau, that of a mean gradient over
        sqrt(rounds): more rounds share the budget, and average again. A log-odds is a gradient divided by its
        curvature, p (1 - p) times a cell's share of persons, p the base rate. So the error of a score is in
        proportion to x = tau sqrt(cells) / (p (1 - p)), and its variance would be to x^2 if the fit did
        nothing about it. The fit shrinks what the noise hides, and r = noise * x is what is seen.
chance  A model without privacy follows chance where persons are few: r = chance * cells / (N p (1 - p)) for N
        persons. What protects a private fit from noise protects it from that as well, so that it may lose
        less than the noise costs, or nothing.

The expected loss is that of the noise; the likely range knows of chance as well. The constants are fitted to
losses measured on public and synthetic data, the width of the range to single runs on data of a family that
the others were not fitted to (benchmarks/planner.py). Nothing here is computed from records of a study.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtr, ndtri

from assay.privacy.errors import BadInput

__all__ = ["BASE_RATES", "CONSTANTS", "Constants", "Forecast"]

BASE_RATES = (0.05, 0.12, 0.5)
"""Shares of bad outcomes that are thought of where nobody says: fewest, likely, most."""
# AUROC without privacy: of models that are good at little, as usual, and good at much.
_AUROCS = (0.7, 0.8, 0.87)
_SMALLEST_RATE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What is fitted to measured losses, see the module.

    Attributes:
        noise, chance: of the two errors.
        width: factor by which the noise error of a single run may differ from the expected one, either way.
        margin: AUROC by which runs differ where noise hardly counts.
    """

    noise: float
    chance: float
    width: float
    margin: float


CONSTANTS = Constants(noise=0.34, chance=0.42, width=5.5, margin=0.004)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is known of a run beforehand, all of it public.

    Attributes:
        noise: standard deviation of the noise in one coordinate of a summed gradient, over the square root of
            the number of rounds; above 0. Over the number of persons it is tau.
        cells: cells of all features, see :attr:`assay.models.encoding.Grid.size`; at least 1.
        base_rate: share of bad outcomes, from public knowledge; None: any of :data:`BASE_RATES`.
        constants: what was fitted.

    Raises:
        BadInput: a number is out of range or NaN.
    """

    noise: float
    cells: int
    base_rate: float | None = None
    constants: Constants = CONSTANTS

    def __post_init__(self) -> None:
        if not 0 < self.noise < math.inf:
            raise BadInput("noise", value=self.noise, allowed="a finite number above 0")
        if not self.cells >= 1:
            raise BadInput("cells", value=self.cells, allowed="at least 1")
        if self.base_rate is not None and not _SMALLEST_RATE <= self.base_rate <= 1 - _SMALLEST_RATE:
            raise BadInput(
                "--base-rate",
                value=self.base_rate,
                allowed=f"{_SMALLEST_RATE:g} to {1 - _SMALLEST_RATE:g}",
                remedy="It is the share of persons with the bad outcome, such as 0.05",
            )

    def loss(self, persons: float) -> float:
        """Return the AUROC that a run is expected to lose against a model without privacy.

        Args:
            persons: over all holders, above 0.
        """
        return _fallen(self._noise_error(persons, self._curvatures[1]), _AUROCS[1])

    def loss_range(self, persons: float) -> tuple[float, float]:
        """Return the least and the most that a single run is likely to lose; :meth:`loss` lies between.

        Args:
            persons: over all holders, above 0.
        """
        constants, (rare, _, common) = self.constants, self._curvatures
        low = _fallen(self._noise_error(persons, common) / constants.width, _AUROCS[0])
        low -= _fallen(self._chance_error(persons, common), _AUROCS[0])
        high = _fallen(self._noise_error(persons, rare) * constants.width, _AUROCS[2])
        return max(0.0, low - constants.margin), high + constants.margin

    def lost_to_chance(self, persons: float) -> float:
        """Return the AUROC that a model without privacy is expected to lose for want of persons.

        Args:
            persons: over all holders, above 0.
        """
        return _fallen(self._chance_error(persons, self._curvatures[1]), _AUROCS[1])

    def noise_for(self, loss: float, persons: float) -> float:
        """Return the largest :attr:`noise` with which a run is expected to lose at most ``loss``.

        Args:
            loss: AUROC, above 0; any noise will do where it cannot be lost.
            persons: over all holders, above 0.
        """
        left = _AUROCS[1] - loss
        if left <= 0.5:
            return math.inf
        error = (ndtri(_AUROCS[1]) / ndtri(left)) ** 2 - 1
        return float(error / self._noise_error(persons, self._curvatures[1]) * self.noise)

    def persons_for(self, loss: float) -> float:
        """Return how many persons, over all holders, are expected to lose ``loss``; fewer lose more.

        Args:
            loss: AUROC, above 0.
        """
        return self.noise / self.noise_for(loss, 1.0)

    @property
    def _curvatures(self) -> tuple[float, float, float]:
        """Curvatures p (1 - p) for the fewest, the likely and the most bad outcomes that are thought of."""
        rates = BASE_RATES if self.base_rate is None else (self.base_rate,) * 3
        fewest, likely, most = (rate * (1 - rate) for rate in rates)
        return fewest, likely, most

    def _noise_error(self, persons: float, curvature: float) -> float:
        return self.constants.noise * self.noise / persons * math.sqrt(self.cells) / curvature

    def _chance_error(self, persons: float, curvature: float) -> float:
        return self.constants.chance * self.cells / (persons * curvature)


def _fallen(error: float, auroc: float) -> float:
    """Return what AUROC falls by where an error of ``error`` times the score's variance is added."""
    return float(auroc - ndtr(ndtri(auroc) / math.sqrt(1 + error)))
