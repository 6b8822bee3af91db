"""One feature of a synthetic population: what a study says of it, how it is drawn, what it does to risk."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from assay.models.schema import Feature
from assay.privacy.errors import BadInput
from assay.privacy.purpose import check_input
from assay.simulations.population_checks import (
    check_choice,
    check_number,
    check_numbers,
    check_shares,
    check_texts,
    check_whole,
    inside,
)

__all__ = ["OUTCOMES", "Term", "Trait"]

OUTCOMES = {"credit": "default", "fraud": "fraud"}
"""Outcome -> its column."""

_LAWS = {
    "numeric": ("lognormal", "normal", "share", "count"),
    "integer": ("count", "shares"),
    "categorical": ("shares",),
}
_SHAPES = ("line", "curve", "step", "valley")


@dataclass(frozen=True, kw_only=True)
class Term:
    """What one feature adds to the log-odds of one outcome.

    Attributes:
        shape: ``"line"``, ``"curve"``, ``"step"`` or ``"valley"``, see :func:`.population_risk.place`.
        low: value at which the shape begins; None for a categorical feature.
        high: value at which it ends.
        weight: log-odds at the top of the shape.
        levels: log-odds of each level of a categorical feature; 0 where not named.
        missing: log-odds of an empty cell.
        drift: relative change of the whole term per 12 months.
    """

    shape: str = "line"
    low: float | None = None
    high: float | None = None
    weight: float = 0.0
    levels: Mapping[str, float] = field(default_factory=dict)
    missing: float = 0.0
    drift: float = 0.0

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, _SHAPES)
        check_number("weight", self.weight, -20, 20)
        check_number("missing", self.missing, -20, 20)
        check_number("drift", self.drift, -5, 5)

    def check_for(self, feature: Feature) -> None:
        """Refuse what does not fit the feature.

        Raises:
            BadInput: ends of a shape for a categorical feature, levels for an ordered one, or no range.
        """
        if not feature.ordered:
            check_numbers("levels", self.levels, feature.levels, 20)
            if self.low is not None or self.high is not None or self.weight:
                raise BadInput("low, high, weight", allowed="nothing for kind categorical; give levels")
            return
        if self.levels:
            raise BadInput("levels", allowed="nothing unless kind is categorical; give low, high and weight")
        least = -1 + 1e-9 if feature.transform == "log" else -1e12
        for setting, value in (("low", self.low), ("high", self.high)):
            check_number(setting, value, least, 1e12)
        if not self.low < self.high:  # type: ignore[operator]
            raise BadInput("low", value=self.low, allowed=f"below high, {self.high}")


@dataclass(frozen=True, kw_only=True)
class Trait:
    """One feature: what a study says of it, how it is drawn, and what it does to each outcome.

    Attributes:
        name: its name and column.
        component, kind, label, domain, levels, transform, risk_trend, changeable: as in a study.
        law: how a hidden value becomes a value, see :func:`.population.generate`.
        shares: relative shares of the values of the domain or of the levels, for the law ``"shares"``.
        median: value in the middle (before region and groups), for the other laws.
        spread: on the scale of the law, above 0, at most 10 (``"normal"``: in units of the column).
        tail: how far the ends are bent outwards, 0..0.3.
        limits: what a record can hold at all; None: the domain.
        decimals: digits kept; -1: tens.
        loading: correlation of the hidden value with the component's factor.
        drift: standard deviations that the hidden value moves per 12 months.
        missing: share of empty cells of a person whose factor is 0; 0: none, of anybody.
        missing_slope: log-odds added to it per unit of the factor.
        needs: a feature listed before; where that one is 0, this one is.
        credit: its term in the risk of default, or None.
        fraud: its term in the risk of fraud, or None.
    """

    name: str
    component: str
    kind: str
    label: str
    law: str
    domain: tuple[float, float] | None = None
    levels: tuple[str, ...] = ()
    transform: str = "linear"
    risk_trend: str | None = None
    changeable: bool = False
    shares: tuple[float, ...] = ()
    median: float | None = None
    spread: float | None = None
    tail: float = 0.0
    limits: tuple[float, float] | None = None
    decimals: int = 0
    loading: float = 0.0
    drift: float = 0.0
    missing: float = 0.0
    missing_slope: float = 0.0
    needs: str | None = None
    credit: Term | None = None
    fraud: Term | None = None

    def __post_init__(self) -> None:
        check_texts("levels", self.levels)
        feature = self.feature
        check_input(self.name, self.label)
        check_choice("law", self.law, _LAWS[self.kind])
        self._check_law(feature)
        check_number("loading", self.loading, -0.99, 0.99)
        check_number("drift", self.drift, -5, 5)
        check_number("missing", self.missing, 0, 0.9)
        check_number("missing_slope", self.missing_slope, -5, 5)
        if self.needs is not None and not feature.ordered:
            raise BadInput("needs", value=self.needs, allowed="nothing for kind categorical")
        for outcome in OUTCOMES:
            term = self.term(outcome)
            if term is not None:
                with inside(outcome):
                    term.check_for(feature)

    def _check_law(self, feature: Feature) -> None:
        if self.law == "shares":
            low, high = feature.domain or (1, len(feature.levels))
            check_shares("shares", self.shares, int(high - low) + 1)
            return
        # A logarithm is taken of the median of all laws but the normal one.
        ends = {"share": (1e-6, 1 - 1e-6), "normal": (-1e9, 1e9)}.get(self.law, (1e-6, 1e9))
        check_number("median", self.median, *ends)
        check_number("spread", self.spread, 1e-6, 1e9 if self.law == "normal" else 10)
        check_number("tail", self.tail, 0, 0.3)
        check_whole("decimals", self.decimals, -6, 6)
        if self.kind == "integer" and self.decimals > 0:
            raise BadInput("decimals", value=self.decimals, allowed="0 or less for kind integer")
        if not isinstance(self.bounds, tuple) or len(self.bounds) != 2:
            raise BadInput("limits", value=self.limits, allowed="[low, high], low below high")
        low, high = self.bounds
        check_number("limits", low, -1e12 if feature.transform != "log" else -1 + 1e-9, 1e12)
        check_number("limits", high, -1e12, 1e12)
        if not low < high:
            raise BadInput("limits", value=[low, high], allowed="[low, high], low below high")

    @functools.cached_property
    def feature(self) -> Feature:
        """What a study says of it, checked as a study's own.

        Raises:
            BadInput: see :class:`assay.models.schema.Feature`.
        """
        return Feature(
            name=self.name,
            column=self.name,
            component=self.component,
            kind=self.kind,
            label=self.label,
            domain=self.domain,
            levels=self.levels,
            transform=self.transform,
            risk_trend=self.risk_trend,
            changeable=self.changeable,
        )

    @property
    def bounds(self) -> tuple[float, float]:
        """What a record can hold at all."""
        return self.limits or self.domain or (0.0, 0.0)

    def term(self, outcome: str) -> Term | None:
        """Return the term in the risk of ``"credit"`` or ``"fraud"``, if there is one."""
        return self.credit if outcome == "credit" else self.fraud
