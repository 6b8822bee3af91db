"""The population stability index where one or both of the histograms hold noise.

``PSI = sum over cells (p - b) ln(p / b)``, b the share of a cell then and p now (Siddiqi, *Credit Risk
Scorecards*, 2006, ch. 9). By custom 0.10 is worth a look and at 0.25 the population has moved. Noise moves
shares too, so before they are compared:

==============  ==========================================================================================
cells           a cell that held less than four standard deviations of its noise then is no cell of its own:
                neighbours on an ordered scale are added up until together they hold more. What is left over,
                where hardly anybody was, and levels without an order go into one "rest". The noise of k cells
                is sqrt(k) times that of one; the chance in a small number now counts like noise
rest            that still is noise counts by as much as noise cannot explain: its share then is taken to be
                the one within four standard deviations that is nearest to the share now
index           what noise and chance add on average is taken off. Chance alone adds about
                ``(cells - 1) (1/n then + 1/n now)`` (Yurdakul and Naranjo 2020), noise likewise
judgement       where noise and chance alone reach 0.10 once in a thousand times, a small index says nothing:
                "too noisy to say", unless it is beyond a threshold however noise fell: the index is nearly a
                squared distance, so that its root moves by no more than the root of what noise alone reaches
==============  ==========================================================================================

In simulations of unchanged features, of many shapes, sizes and amounts of noise, fewer than 3 in 1,000 are
flagged. A share of 0 counts as 0.0001.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv

from assay.privacy.errors import BadInput

__all__ = ["LOOK", "MOVED", "Histogram", "Stability", "merged_cells", "stability"]

LOOK, MOVED = 0.10, 0.25
"""From here on somebody should look, and the population has moved."""
_SIGNIFICANT = 4.0
_RARE = 0.999  # noise and chance stay below the limit this often
_LOWEST_SHARE = 1e-4
_HIDDEN = 0.2  # a rest in which noise could hide more of all persons than this says nothing

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How many lie in each cell, with or without noise.

    Attributes:
        counts: float64 [cells]; with noise they may be negative.
        noise_std: standard deviation of the noise in one cell; 0: the numbers are exact.
    """

    counts: Vector = field(repr=False)
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        if self.counts.ndim != 1 or not self.counts.size or not np.isfinite(self.counts).all():
            raise BadInput("histogram", allowed="a list of finite numbers")
        if not 0 <= self.noise_std < math.inf:
            raise BadInput("noise_std", value=self.noise_std, allowed="a finite number of at least 0")

    @property
    def total(self) -> float:
        """How many there are, noise included."""
        return float(self.counts.sum())

    @property
    def known(self) -> bool:
        """Whether the total is more than noise."""
        return self.total > max(0.0, _SIGNIFICANT * self.noise_std * math.sqrt(len(self.counts)))


@dataclass(frozen=True, kw_only=True)
class Stability:
    """What is known of one feature or of the score.

    Attributes:
        verdict: ``"stable"``, ``"look"``, ``"moved"`` or ``"too noisy to say"``.
        psi: the index of the merged cells; None where a histogram is noise altogether.
        corrected: the index less what noise and chance add on average, at least 0; likewise.
        std_error: of ``corrected``.
        noise_limit: what the index of an unchanged population stays below, 999 times in 1,000.
        cells: the merged cells, each the indices of those that were added up.
        then: float64, share of each merged cell then, as it was compared.
        now: the same now.
    """

    verdict: str
    psi: float | None
    corrected: float | None
    std_error: float | None
    noise_limit: float | None
    cells: tuple[tuple[int, ...], ...] = ()
    then: Vector = field(default_factory=lambda: np.empty(0), repr=False)
    now: Vector = field(default_factory=lambda: np.empty(0), repr=False)

    def to_json(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Return plain data; ``labels`` name the cells before they were merged."""
        shares = zip(self.cells, self.then.tolist(), self.now.tolist(), strict=True)
        return {
            "verdict": self.verdict,
            "psi": self.psi,
            "psi_corrected": self.corrected,
            "std_error": self.std_error,
            "noise_limit": self.noise_limit,
            "cells": [
                {"cells": [labels[cell] for cell in cells], "then": then, "now": now}
                for cells, then, now in shares
            ],
        }


NOTHING = Stability(verdict="too noisy to say", psi=None, corrected=None, std_error=None, noise_limit=None)


def stability(then: Histogram, now: Histogram, *, ordered: int) -> Stability:
    """Compare two histograms over the same cells.

    ====================================  ==========================================================
    one of them is noise altogether       ``"too noisy to say"``, no index
    all cells merged into one             the same: there is nothing left to compare
    everybody in one cell then and now    index 0, as long as noise leaves it apart from the rest
    a cell that was empty and is not now  counts in full beyond what noise explains
    nothing but zeros, negative totals    as noise
    ====================================  ==========================================================

    Args:
        then: at training.
        now: at present.
        ordered: how many leading cells have an order that means something.

    Raises:
        BadInput: the histograms differ in length.
    """
    if then.counts.shape != now.counts.shape:
        raise BadInput("histograms", allowed="two of one length")
    if not then.known or not now.known:
        return NOTHING
    # The noise of both together, in persons of then; and how many of them one person of now stands for.
    noise = math.hypot(then.noise_std, now.noise_std * then.total / now.total)
    cells, sure = merged_cells(then.counts, noise, ordered, each=then.total / now.total)
    if len(cells) < 2 or not any(sure):
        return NOTHING
    one, other = _Shares.of(then, cells), _Shares.of(now, cells)
    firm, inside = np.array(sure), np.clip(one.share, 0.0, 1.0)
    chance = inside * (1 - inside) * (1 / then.total + 1 / now.total)
    unmoved = one.noise_variance + other.noise_variance + chance
    # What is left over may be noise: its share then is the one that noise allows and that moved least.
    reach = _SIGNIFICANT * np.sqrt(unmoved)
    b = np.where(firm, one.share, np.clip(other.share, one.share - reach, one.share + reach))
    found = _judged(cells, one.at(b), other.at(other.share), unmoved, firm)
    if found.verdict == "stable" and (reach[~firm] > _HIDDEN).any():
        return replace(found, verdict="too noisy to say")
    return found


def merged_cells(
    counts: Vector, noise_std: float, ordered: int, *, each: float = 0.0
) -> tuple[tuple[tuple[int, ...], ...], tuple[bool, ...]]:
    """Add cells up until each holds more than noise.

    Args:
        counts: float64 [cells].
        noise_std: of one cell.
        ordered: how many leading cells have an order.
        each: variance that chance adds per person counted.

    Returns:
        The merged cells, ordered ones first, and whether each of them holds more than noise; only the last
        one, the rest of the cells without an order, may not.
    """

    def surely(cells: tuple[int, ...]) -> bool:
        held = float(counts[list(cells)].sum())
        return held > 0 and held > _SIGNIFICANT * math.sqrt(len(cells) * noise_std**2 + each * held)

    groups: list[tuple[int, ...]] = []
    gathered: tuple[int, ...] = ()
    rest: list[int] = []
    for cell in range(ordered):
        if surely((cell,)):  # what was gathered below it is where hardly anybody was
            rest += gathered
            gathered = ()
        gathered = (*gathered, cell)
        if surely(gathered):
            groups.append(gathered)
            gathered = ()
    rest += gathered
    for cell in range(ordered, len(counts)):
        if surely((cell,)):
            groups.append((cell,))
        else:
            rest.append(cell)
    sure = [True] * len(groups)
    if rest:
        groups.append(tuple(rest))
        sure.append(surely(tuple(rest)))
    return tuple(groups), tuple(sure)


@dataclass(frozen=True, kw_only=True)
class _Shares:
    """The merged cells of one histogram.

    Attributes:
        share: float64 [cells], share of each.
        sizes: float64 [cells], how many cells each was merged from.
        noise: standard deviation of the noise in one cell, over the total.
        total: how many there are.
    """

    share: Vector
    sizes: Vector
    noise: float
    total: float

    @classmethod
    def of(cls, histogram: Histogram, cells: tuple[tuple[int, ...], ...]) -> _Shares:
        total = histogram.total
        return cls(
            share=np.array([histogram.counts[list(each)].sum() for each in cells]) / total,
            sizes=np.array([len(each) for each in cells], dtype=np.float64),
            noise=histogram.noise_std / total,
            total=total,
        )

    def at(self, share: Vector) -> _Shares:
        """Return the same with other shares, none of them below the lowest that counts."""
        return replace(self, share=np.maximum(share, _LOWEST_SHARE))

    @property
    def noise_variance(self) -> Vector:
        """Variance that noise gives each share, to first order: part and whole hold the same noise."""
        spread = self.sizes * (1 - 2 * self.share) + self.sizes.sum() * self.share**2
        return np.asarray(np.maximum(spread, 0.0) * self.noise**2, dtype=np.float64)

    def variance_of(self, slopes: Vector) -> float:
        """Return the variance of ``slopes @ share``: noise, and the chance in who is counted."""
        middle = float(slopes @ self.share)
        noise = self.noise**2 * float(self.sizes @ (slopes - middle) ** 2)
        return noise + max(0.0, float(slopes**2 @ self.share) - middle**2) / self.total

    @property
    def errors(self) -> Vector:
        """Standard error of each share."""
        chance = np.clip(self.share * (1 - self.share), 0.0, 1.0) / self.total
        return np.asarray(np.sqrt(self.noise_variance + chance), dtype=np.float64)


def _judged(
    cells: tuple[tuple[int, ...], ...], then: _Shares, now: _Shares, unmoved: Vector, firm: NDArray[np.bool_]
) -> Stability:
    """Return the index with what is known of its error.

    Args:
        cells: the merged cells.
        then: shares above 0.
        now: shares above 0.
        unmoved: variance of the difference of each share, where nothing moved.
        firm: which cells count as they are.
    """
    b, p = then.share, now.share
    ratio = np.log(p / b)
    psi = float(np.sum((p - b) * ratio))
    # In a population that has not moved the index is a sum of squares over b, of these means.
    null = np.where(firm, unmoved / b, 0.0)
    mean, half_variance = float(null.sum()), float((null**2).sum())
    # To first order. The logarithm has no slope at 0: a share below its own error counts as that.
    of_now = np.where(firm, ratio + 1 - b / np.maximum(p, now.errors), 0.0)
    of_then = np.where(firm, 1 - p / b - ratio, 0.0)
    error = math.sqrt(now.variance_of(of_now) + then.variance_of(of_then) + 2 * half_variance)
    limit = 0.0
    if mean > 0:  # Satterthwaite 1946: a chi-square of the same mean and variance
        scale, freedom = half_variance / mean, mean**2 / half_variance
        limit = scale * 2 * float(gammaincinv(freedom / 2, _RARE))
    corrected = max(0.0, psi - mean)
    return Stability(
        verdict=_verdict(psi, corrected, limit),
        psi=psi,
        corrected=corrected,
        std_error=error,
        noise_limit=limit,
        cells=cells,
        then=b,
        now=p,
    )


def _verdict(psi: float, corrected: float, limit: float) -> str:
    surely = max(0.0, math.sqrt(psi) - math.sqrt(limit)) ** 2
    # Where noise alone reaches the first threshold, only what is beyond doubt counts.
    index = surely if limit >= LOOK else corrected
    if index >= MOVED:
        return "moved"
    if index >= LOOK:
        return "look"
    return "too noisy to say" if limit >= LOOK else "stable"
