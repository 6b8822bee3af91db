"""The parameters of a synthetic population: types that check themselves on construction.

:mod:`assay.simulations.population_read` reads them from a file. Everything in them is made up and public.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from assay.models.schema import COMPONENTS
from assay.privacy.errors import BadInput
from assay.simulations.population_checks import (
    check_choice,
    check_number,
    check_numbers,
    check_shares,
    check_texts,
    check_whole,
    inside,
)
from assay.simulations.population_trait import OUTCOMES, Trait

__all__ = ["FIXED", "MAX_MONTHS", "Group", "Interaction", "Outcome", "Parameters", "People", "Region"]

FIXED = ("person_id", "month", "region", "holders", "known_to")
"""Columns that are neither features, groups nor outcomes."""
MAX_MONTHS = 120


@dataclass(frozen=True, kw_only=True)
class People:
    """What holds for everybody.

    Attributes:
        months: 1..120; applications are spread over them evenly.
        correlation: of the hidden factors of two components, 0..0.95.
        holders: 1..16 institutions.
        known_to: relative shares of people known to 1, 2, ... holders.
    """

    months: int
    correlation: float
    holders: int
    known_to: tuple[float, ...]

    def __post_init__(self) -> None:
        check_whole("months", self.months, 1, MAX_MONTHS)
        check_number("correlation", self.correlation, 0, 0.95)
        check_whole("holders", self.holders, 1, 16)
        check_shares("known_to", self.known_to)
        if len(self.known_to) > self.holders:
            raise BadInput(
                "known_to", value=list(self.known_to), allowed=f"at most {self.holders} shares, as holders"
            )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is predicted.

    Attributes:
        intercept: log-odds of a person without any term.
        drift: log-odds added per 12 months.
        bad_as_good: share of the bad that are recorded as good, 0..0.5.
        good_as_bad: share of the good that are recorded as bad, 0..0.5.
    """

    intercept: float
    drift: float = 0.0
    bad_as_good: float = 0.0
    good_as_bad: float = 0.0

    def __post_init__(self) -> None:
        check_number("intercept", self.intercept, -20, 20)
        check_number("drift", self.drift, -5, 5)
        check_number("bad_as_good", self.bad_as_good, 0, 0.5)
        check_number("good_as_bad", self.good_as_bad, 0, 0.5)


@dataclass(frozen=True, kw_only=True)
class Region:
    """How one region differs.

    Attributes:
        share: relative number of people.
        credit: log-odds added to the risk of default.
        fraud: log-odds added to the risk of fraud.
        shift: component -> what its hidden factor is moved by, in standard deviations.
        moves: feature -> what its hidden value is moved by, in standard deviations.
        reversed: features whose terms count with the opposite sign.
    """

    share: float
    credit: float = 0.0
    fraud: float = 0.0
    shift: Mapping[str, float] = field(default_factory=dict)
    moves: Mapping[str, float] = field(default_factory=dict)
    reversed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_number("share", self.share, 0, 1e6)
        check_number("credit", self.credit, -10, 10)
        check_number("fraud", self.fraud, -10, 10)
        check_numbers("shift", self.shift, COMPONENTS, 5)
        check_texts("reversed", self.reversed)


@dataclass(frozen=True, kw_only=True)
class Group:
    """One protected attribute: audited, never an input.

    Attributes:
        levels: its values.
        shares: relative number of people of each.
        shift: component -> what its hidden factor is moved by, for each level.
    """

    levels: tuple[str, ...]
    shares: tuple[float, ...]
    shift: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_texts("levels", self.levels)
        check_shares("shares", self.shares, len(self.levels))
        if not isinstance(self.shift, Mapping):
            raise BadInput("shift", value=self.shift, allowed="a table such as { spending = [-0.1, 0.1] }")
        for component, moves in self.shift.items():
            check_choice("shift", component, COMPONENTS)
            if not isinstance(moves, tuple) or len(moves) != len(self.levels):
                raise BadInput(f"shift.{component}", value=moves, allowed=f"{len(self.levels)} numbers")
            for move in moves:
                check_number(f"shift.{component}", move, -5, 5)


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """Two features that matter together: ``weight`` times the product of their places, each 0 to 1.

    Attributes:
        outcome: ``"credit"`` or ``"fraud"``.
        first: an ordered feature with a term in that outcome.
        second: another one.
        weight: log-odds where both are at the top of their shapes.
    """

    outcome: str
    first: str
    second: str
    weight: float

    def __post_init__(self) -> None:
        check_choice("outcome", self.outcome, OUTCOMES)
        check_number("weight", self.weight, -20, 20)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """All of it, checked for what the parts cannot see of each other.

    Attributes:
        people: what holds for everybody.
        outcomes: ``"credit"`` and ``"fraud"``.
        regions: by name, in order.
        groups: protected attributes by column.
        features: by name, in the order of the columns.
        interactions: by name.
    """

    people: People
    outcomes: Mapping[str, Outcome]
    regions: Mapping[str, Region]
    groups: Mapping[str, Group]
    features: Mapping[str, Trait]
    interactions: Mapping[str, Interaction]

    def __post_init__(self) -> None:
        columns = [*FIXED, *OUTCOMES.values(), *self.groups, *self.features]
        for name in columns:
            if columns.count(name) > 1:
                raise BadInput("features", value=name, allowed="a name that no other column has")
        check_shares("share", tuple(region.share for region in self.regions.values()))
        for name, region in self.regions.items():
            with inside(f"regions.{name}"):
                check_numbers("moves", region.moves, self.features, 5)
                for feature in region.reversed:
                    check_choice("reversed", feature, self.features)
        before: list[str] = []
        for name, trait in self.features.items():
            if trait.needs is not None:
                with inside(f"features.{name}"):
                    check_choice("needs", trait.needs, before)
            before.append(name)
        for name, pair in self.interactions.items():
            with inside(f"interactions.{name}"):
                shaped = [
                    each
                    for each, trait in self.features.items()
                    if trait.feature.ordered and trait.term(pair.outcome) is not None
                ]
                check_choice("first", pair.first, shaped)
                check_choice("second", pair.second, [each for each in shaped if each != pair.first])

    def with_months(self, months: int) -> Parameters:
        """Return the same with applications spread over another number of months.

        Raises:
            BadInput: not 1..120.
        """
        return dataclasses.replace(self, people=dataclasses.replace(self.people, months=months))
