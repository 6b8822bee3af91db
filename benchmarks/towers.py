"""A population made for `models.py`, of another structure than Assay's own: three towers of eight features.

Five hidden factors, normal and correlated through shared loadings, move 24 features: amounts (lognormal),
counts, shares from 0 to 1 and grades (levels without an order). The log-odds of the outcome are a sum of one
monotone term per feature, saturating, hinged or a threshold, which is no spline and has jumps between knots,
and of two products of features from different towers, which no additive model has. The terms are functions
of the columns as they are written, so that the true risk could be reached; the seed changes people only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr, ndtri

__all__ = ["TOWERS", "draw_towers", "towers_study", "towers_trends"]

TOWERS = {"spending": "a", "payment_history": "b", "third_party": "c"}
"""Component -> first letter of its columns."""
_FACTORS, _STRUCTURE = 5, 11  # the second seeds what is the same in every draw
_KINDS = ("amount", "count", "share", "amount", "count", "share", "amount", "grade")
_GRADES = ("p", "q", "r", "s", "t")
_MOST = 12  # of a count
_MISSING = 0.05  # share of empty cells in the first share of each tower
_INTERCEPT, _STRENGTH, _PRODUCT = -2.3, 0.9, 0.25


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One feature: how it comes about and what it does.

    Attributes:
        name: its column.
        kind: ``"amount"``, ``"count"``, ``"share"`` or ``"grade"``.
        loadings: of the hidden factors, float64 [5], of norm below 1.
        shape: ``"saturating"``, ``"hinge"``, ``"threshold"`` or ``"line"``.
        weight: log-odds per unit of the shape; the sign is the direction.
        gaps: share of empty cells.
    """

    name: str
    component: str
    kind: str
    loadings: NDArray[np.float64]
    shape: str
    weight: float
    gaps: float


def _columns() -> list[_Column]:
    """Return the 24 features; the same in every call."""
    rng, columns = np.random.default_rng(_STRUCTURE), []
    for component, letter in TOWERS.items():
        for place, kind in enumerate(_KINDS):
            loadings = rng.normal(size=_FACTORS) * (rng.random(_FACTORS) < 0.5)
            loadings *= rng.uniform(0.4, 0.8) / max(float(np.linalg.norm(loadings)), 1e-9)
            shape = str(rng.choice(["saturating", "hinge", "threshold", "line"]))
            size = 0.0 if rng.random() < 0.25 else rng.lognormal(-0.3, 0.4)  # a quarter does nothing
            weight = _STRENGTH * float(size * rng.choice([-1, 1]))
            gaps = _MISSING if place == _KINDS.index("share") else 0.0
            columns.append(
                _Column(
                    name=f"{letter}{place + 1}",
                    component=component,
                    kind=kind,
                    loadings=loadings,
                    shape=shape,
                    weight=weight,
                    gaps=gaps,
                )
            )
    return columns


def draw_towers(
    people: int, seed: int
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64], NDArray[np.float64]]:
    """Draw people.

    Returns:
        Columns by name, [N]: float64 with NaN = missing, grades as object; labels 0 or 1, float64 [N]; and
        the true risk, float64 [N].
    """
    rng, values = np.random.default_rng(np.random.SeedSequence([seed, 7])), {}
    factors, terms, places = rng.normal(size=(people, _FACTORS)), np.zeros(people), {}
    for column in _columns():
        own = np.sqrt(1 - float(column.loadings @ column.loadings))
        hidden = factors @ column.loadings + own * rng.normal(size=people)
        seen, place = _written(column.kind, hidden)
        empty = rng.random(people) < column.gaps
        if column.gaps:
            seen, place = np.where(empty, np.nan, seen), np.where(empty, 0.0, place)
        terms += column.weight * _bent(column.shape, place)
        values[column.name], places[column.name] = seen, place
    terms += _PRODUCT * (places["a1"] * places["b3"] - places["b2"] * places["c3"])
    risk = expit(_INTERCEPT + terms)
    return values, (rng.random(people) < risk).astype(np.float64), risk


def _written(kind: str, hidden: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return what a file holds, and its place on a scale of about -2 to 2, which says no more than that."""
    if kind == "amount":
        amount = np.rint(np.exp(6.0 + 1.3 * hidden))
        return amount, np.clip((np.log(np.maximum(amount, 1.0)) - 6.0) / 1.3, -3.0, 3.0)
    if kind == "count":
        count = np.clip(np.floor(np.exp(0.8 + 0.8 * hidden)), 0, _MOST)
        return count, (np.log(count + 0.5) - 0.8) / 0.8
    if kind == "share":
        share = np.round(ndtr(hidden), 3)
        return share, ndtri(np.clip(share, 0.001, 0.999))
    grade = np.searchsorted([-1.0, -0.3, 0.4, 1.2], hidden)
    # The alphabet says nothing about the risk of a grade.
    effect = np.array([0.3, -1.2, 1.4, -0.3, 0.8])
    return np.array(_GRADES, dtype=object)[grade], effect[grade]


def _bent(shape: str, place: NDArray[np.float64]) -> NDArray[np.float64]:
    if shape == "saturating":
        return 1 - np.exp(-np.maximum(place + 1.0, 0.0))
    if shape == "hinge":
        return np.maximum(place - 0.3, 0.0)
    if shape == "threshold":
        return 1.3 * (place > 0.8)
    return 0.6 * place


def towers_study() -> str:
    """Return the study file; its ranges are what a code book would say, not what a draw holds."""
    kinds = {
        "amount": 'kind = "numeric"\ndomain = [0, 50_000]\ntransform = "log"',
        "count": f'kind = "integer"\ndomain = [0, {_MOST}]',
        "share": 'kind = "numeric"\ndomain = [0, 1]',
        "grade": f'kind = "categorical"\nlevels = {list(_GRADES)}'.replace("'", '"'),
    }
    features = "".join(
        f'[[features]]\nname = "{column.name}"\ncolumn = "{column.name}"\ncomponent = "{column.component}"\n'
        f'{kinds[column.kind]}\nlabel = "{column.kind.capitalize()} {column.name}"\n\n'
        for column in _columns()
    )
    return f"{_HEAD}{features}{_TAIL}"


def towers_trends() -> dict[str, str]:
    """Return the true trend of every ordered feature that does something, as a study would declare it."""
    return {
        column.name: "rises" if column.weight > 0 else "falls"
        for column in _columns()
        if column.weight and column.kind != "grade"
    }


_HEAD = """\
[study]
name = "towers"
purpose = "consumer_credit"
contexts = ["credit_card_application"]

[outcome]
column = "bad"
meaning = "missed a payment"

"""
_TAIL = """\
[training]
model = "additive"

[privacy]
epsilon = 1.0
delta = 1e-6
trust = "distributed"
tolerated = 1
holders_per_person = 1
"""
