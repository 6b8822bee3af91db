"""Pairs of features that a study's author declares to matter together.

Which pairs these are is the author's knowledge of the subject, written into the public study before a record
is read. It costs no privacy, as a choice by the records would.

A pair is one more line of the scorecard. Each of its two features is cut into at most :data:`MAX_GROUPS`
coarse groups; every combination of groups has points, and one cell more stands for "one of the two is
missing". What cannot be kept is refused: a declared trend (the points of the pair could turn it round), and
features of two components (a holder with one of them could never fill the pair in).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from assay.models.feature import Feature, transformed
from assay.models.settings import is_int, is_number, words
from assay.privacy.errors import BadInput

__all__ = ["MAX_GROUPS", "MAX_INTERACTIONS", "Interaction", "check_interactions"]

MAX_INTERACTIONS = 10
MAX_GROUPS = 5
# Two cuts lie at least so much of the range apart, on the scale of the knots: they never meet in one step.
_APART = 1e-3
Cuts = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """Two features whose effect together is more than the sum of both.

    Attributes:
        features: names of two different features, one component, neither with a declared trend.
        cuts: feature -> where its groups begin, ascending, the first group left out; a feature without an
            entry is cut evenly. A value equal to a cut belongs to the group that begins there.
        description: a sentence for people: what it is and why it counts; None: the label says enough.
    """

    features: tuple[str, str]
    cuts: Cuts = field(default_factory=dict)
    description: str | None = None

    def __post_init__(self) -> None:
        names = self.features
        if not isinstance(names, tuple) or len(names) != 2 or not all(isinstance(n, str) for n in names):
            shown = list(names) if isinstance(names, tuple) else names
            raise BadInput("features", value=shown, allowed='two names, such as ["age", "income"]')
        if names[0] == names[1]:
            raise BadInput("features", value=list(names), allowed="two different features")
        if self.description is not None:
            words("description", self.description, longest=500)
        if not isinstance(self.cuts, Mapping):
            raise BadInput("cuts", value=self.cuts, allowed="a table such as { age = [30, 45] }")
        for name, cuts in self.cuts.items():
            self._check_cuts(name, cuts)

    def _check_cuts(self, name: str, cuts: tuple[float, ...]) -> None:
        if name not in self.features:
            raise BadInput("cuts", value=name, allowed=f"cuts of {' and '.join(self.features)} only")
        given = list(cuts) if isinstance(cuts, tuple) else cuts
        if not isinstance(cuts, tuple) or not 0 < len(cuts) < MAX_GROUPS or not all(map(is_number, cuts)):
            raise BadInput("cuts", value=given, allowed=f"1 to {MAX_GROUPS - 1} finite numbers per feature")
        if not all(a < b for a, b in itertools.pairwise(cuts)):
            raise BadInput("cuts", value=given, allowed="numbers that grow")

    @property
    def name(self) -> str:
        """What its points are called, e.g. ``age_x_income``."""
        return "_x_".join(self.features)


def check_interactions(
    interactions: Sequence[Interaction], features: Sequence[Feature], never: Sequence[str] = ()
) -> None:
    """Refuse pairs that a study with these features cannot have.

    Args:
        interactions: as declared.
        features: of the study.
        never: columns that are audited and no input of a model.

    Raises:
        BadInput: a pair is declared twice, or one of its features is unknown, has a trend, too many levels,
            cuts that its domain does not have, another component or another platform than the other one.
    """
    if len(interactions) > MAX_INTERACTIONS:
        raise BadInput(
            "interactions",
            value=len(interactions),
            allowed=f"at most {MAX_INTERACTIONS}",
            remedy="Each adds noise to all points: keep the pairs that are known to matter",
        )
    known = {feature.name: feature for feature in features}
    pairs: set[frozenset[str]] = set()
    names = set(known)
    for index, each in enumerate(interactions):
        setting = f"interactions[{index}].features"
        if frozenset(each.features) in pairs:
            raise BadInput(setting, value=list(each.features), allowed="each pair only once")
        pairs.add(frozenset(each.features))
        first, second = (_known(name, known, never, setting) for name in each.features)
        _check_pair(first, second, setting)
        for feature in (first, second):
            _check_groups(feature, each.cuts.get(feature.name), index)
        if each.name in names:
            raise BadInput(
                setting,
                value=list(each.features),
                allowed=f"features whose pair can be called {each.name!r}; that name is taken",
                remedy="Rename a feature",
            )
        names.add(each.name)


def _known(name: str, known: Mapping[str, Feature], never: Sequence[str], setting: str) -> Feature:
    if name in known:
        return known[name]
    why = "It is audited for fairness, and never an input" if name in never else ""
    raise BadInput(setting, value=name, allowed=f"features of the study: {', '.join(known)}", remedy=why)


def _check_pair(first: Feature, second: Feature, setting: str) -> None:
    """Refuse two features that cannot be one line of the scorecard."""
    names = [first.name, second.name]
    if first.component != second.component:
        raise BadInput(
            setting,
            value=names,
            allowed=f"features of one component; these are of {first.component} and {second.component}",
            remedy="Where holders have different components, nobody has both columns of a person",
        )
    if None not in (first.platform, second.platform) and first.platform != second.platform:
        raise BadInput(setting, value=names, allowed="features that count on the same platform")
    for feature in (first, second):
        if feature.risk_trend is not None:
            raise BadInput(
                setting,
                value=feature.name,
                allowed="features without risk_trend",
                remedy=f"The points of a pair could turn round the trend that {feature.name} declares:"
                " leave out risk_trend, or the pair",
            )


def _check_groups(feature: Feature, cuts: tuple[float, ...] | None, index: int) -> None:
    """Refuse levels that are too many, and cuts that do not cut the feature's domain."""
    if feature.domain is None:
        if cuts is not None:
            raise BadInput(
                f"interactions[{index}].cuts", value=feature.name, allowed="no cuts of a categorical feature"
            )
        if not len(feature.levels) < MAX_GROUPS:
            raise BadInput(
                f"interactions[{index}].features",
                value=feature.name,
                allowed=f"a categorical feature of at most {MAX_GROUPS - 1} levels; this one has"
                f" {len(feature.levels)}, and levels have no order to group them by",
            )
        return
    if cuts is None:
        return
    low, high = feature.domain
    setting, whole = f"interactions[{index}].cuts", feature.kind == "integer"
    if not low < cuts[0] or not (cuts[-1] <= high if whole else cuts[-1] < high):
        inside = f"numbers inside the domain of {feature.name}, {low:g} to {high:g}"
        raise BadInput(setting, value=list(cuts), allowed=f"{inside}, the lowest value left out")
    if whole:
        if not all(map(is_int, cuts)):
            raise BadInput(setting, value=list(cuts), allowed=f"whole numbers, as {feature.name} is integer")
        return
    places = transformed(np.array([low, *cuts, high], dtype=np.float64), feature.transform)
    if not (np.diff(places) >= _APART * (places[-1] - places[0])).all():
        raise BadInput(
            setting,
            value=list(cuts),
            allowed="cuts at least a thousandth of the transformed domain apart, and as far from its ends",
        )
