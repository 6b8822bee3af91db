"""One release of integers: its grid, its sensitivity and its noise, made in one place.

Guarantee: the integers of :meth:`IntegerMechanism.noisy`, summed over at least ``contributors`` holders
that add their noise, are a Gaussian mechanism of noise multiplier ``noise_multiplier`` for one person at
one holder. A holder's integers alone are one of ``noise_multiplier / sqrt(contributors)``.

==================  =============================================================================
grid                a power of two, so that dividing by it and multiplying back lose nothing
rounding            to the nearest, no randomness: two sums that differ by at most l2_clip_norm
                    differ by at most l2_clip_norm / unit + sqrt(size) after it, since no
                    coordinate moves by more than half a unit in either. The noise is sized for
                    that number, so rounding costs noise (under 0.2 %) and never privacy
noise               exact discrete Gaussian; its variance is a whole number, rounded up
discreteness        bounded where it is priced: :func:`assay.privacy.accounting.require_smooth`
==================  =============================================================================
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from assay.privacy.accounting import require_smooth
from assay.privacy.cohort import VALUE_BOUND
from assay.privacy.errors import AssayError, BadInput
from assay.privacy.noise import Entropy, discrete_gaussian

__all__ = ["MAX_CONTRIBUTORS", "IntegerMechanism"]

MAX_CONTRIBUTORS = 10_000
"""A share of the noise is then still ten thousand grid units wide."""

# Standard deviation of the whole noise in grid units, at least.
_NOISE_UNITS = float(1 << 20)
# Clip norm in grid units, at least, times the square root of the size: rounding is then under 0.1 % of it.
_CLIP_UNITS = float(1 << 10)
# Noise never reaches the value bound: sixteen standard deviations do not happen.
_MAX_STD_UNITS = VALUE_BOUND / 16


@dataclass(frozen=True, kw_only=True)
class IntegerMechanism:
    """How a clipped sum becomes integers that may leave.

    Attributes:
        l2_clip_norm: most that one person changes the sum by, in Euclidean norm; 1e-100 to 1e100.
        noise_multiplier: standard deviation of the whole noise / sensitivity, both in grid units; above 0.
        size: values of the sum, at least 1.
        contributors: holders whose noise shares add up to the whole noise, 1 to 10,000; 1: each adds it all.
    """

    l2_clip_norm: float
    noise_multiplier: float
    size: int
    contributors: int = 1

    def __post_init__(self) -> None:
        if not 1e-100 <= self.l2_clip_norm <= 1e100:
            raise BadInput("l2_clip_norm", value=self.l2_clip_norm, allowed="1e-100 to 1e100")
        if not 0 < self.noise_multiplier < math.inf:
            raise BadInput("noise_multiplier", value=self.noise_multiplier, allowed="a finite number above 0")
        for setting, value, high in (
            ("size", self.size, 1 << 40),
            ("contributors", self.contributors, MAX_CONTRIBUTORS),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
                raise BadInput(setting, value=value, allowed=f"a whole number, 1 to {high}")
        units = self.sensitivity_units
        if not units < VALUE_BOUND or not self.noise_multiplier * units <= _MAX_STD_UNITS:
            raise BadInput(
                "noise_multiplier",
                value=self.noise_multiplier,
                allowed="a number for which sensitivity and noise fit the grid",
                remedy="Choose an epsilon nearer to 1",
            )
        require_smooth(size=self.size, contributors=self.contributors, share_variance=self.share_variance)

    @property
    def unit(self) -> float:
        """Spacing of the grid in units of the sum: a power of two, whatever the number of contributors."""
        rounding = math.sqrt(self.size)
        wanted = max(_NOISE_UNITS / self.noise_multiplier, _CLIP_UNITS * rounding) - rounding
        return math.ldexp(1.0, math.frexp(self.l2_clip_norm / wanted)[1] - 1)

    @property
    def sensitivity_units(self) -> float:
        """Most that one person changes the rounded sum by, in Euclidean norm, in grid units; rounded up."""
        return math.nextafter(self.l2_clip_norm / self.unit + math.sqrt(self.size), math.inf)

    @property
    def share_variance(self) -> int:
        """Variance of the noise of one holder in grid units; ``contributors`` of them are never too few."""
        whole = (Fraction(self.noise_multiplier) * Fraction(self.sensitivity_units)) ** 2
        return math.ceil(whole / self.contributors)

    @property
    def std(self) -> float:
        """Standard deviation of the noise of ``contributors`` holders, in units of the sum."""
        return math.sqrt(self.contributors * self.share_variance) * self.unit

    def noisy(self, clipped_sum: NDArray[np.float64], entropy: Entropy = os.urandom) -> NDArray[np.int64]:
        """Return the sum in grid units plus one holder's noise; of several holders, each with its own.

        =====================  ====================================================================
        NaN or infinity        refused, nothing is returned
        another size           refused
        a sum that is too      cut at the bound before the noise is added: millions of persons at one
        large for the grid     holder under a large epsilon. To refuse it would say something about them
        nobody in the data     the noise alone
        =====================  ====================================================================

        Args:
            clipped_sum: float64 ``[size]``; one person changes it by at most ``l2_clip_norm``. In a
                simulation also ``[holders, size]``.
            entropy: of the noise; anything but the default is for tests.

        Returns:
            int64 of the same shape, absolute values below :data:`VALUE_BOUND`.

        Raises:
            BadInput: as in the table.
        """
        if clipped_sum.ndim not in (1, 2) or clipped_sum.shape[-1] != self.size:
            raise BadInput("clipped sum", value=clipped_sum.shape, allowed=f"{self.size} values, flat")
        if not bool(np.isfinite(clipped_sum).all()):
            raise BadInput("clipped sum", allowed="finite numbers", remedy="Run assay client check")
        # Cutting every coordinate at the same public bound brings no two sums further apart. Noise beyond
        # fifteen standard deviations, which would carry the result over VALUE_BOUND, does not happen.
        bound = float(VALUE_BOUND - 1 - math.ceil(15 * math.sqrt(self.share_variance)))
        units = np.clip(np.rint(clipped_sum / self.unit), -bound, bound)
        noise = discrete_gaussian(units.size, self.share_variance, entropy).reshape(units.shape)
        noisy = units.astype(np.int64) + noise
        if not bool((np.abs(noisy) < VALUE_BOUND).all()):
            raise AssayError("noise beyond fifteen standard deviations; nothing is released")
        return noisy
