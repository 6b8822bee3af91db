"""An attack on a simulated run: how much privacy is lost at least, found by somebody who tries.

Made-up persons ("canaries"), as unusual as a person can be, are put among a holder's records, each by a fair
coin. The attacker knows all records, all canaries and everything that the coordinator sees; only the coins
are hidden. How often it guesses them says how large the privacy loss is at least (:mod:`.leakage`).

====================  ================================================================================
a canary              an outcome that is unlikely in its random cells, so that its gradient is large. Where a
                      person may have several rows: good outcomes in some cells and bad ones in others,
                      often enough for the clip norm in every sum. At as many holders as the study says a
                      person may be
what is seen          all sums of the run (counts, gradients, calibration, audit) and the parameters of
                      every round; where the trust is local, each holder's own
what is guessed       those canaries that the best linear estimate of all coins is surest of
====================  ================================================================================

Nothing here is for live runs: made-up persons belong into a simulation only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from assay.client.records import Records
from assay.models.additive import MARGIN, design_of
from assay.models.encoding import Encoded, Grid
from assay.models.label import mechanism_of
from assay.models.schema import Study
from assay.models.study import parse_study
from assay.models.tally import tally_of
from assay.privacy.accounting import epsilon_of_mu, mu_of
from assay.privacy.errors import BadInput
from assay.server.sums import Question, Summed
from assay.simulations.crowd import CrowdTraining
from assay.simulations.engine import federate
from assay.simulations.leakage import Shown, fitted, mu_low

__all__ = ["audit_by_canaries"]

MIN_CANARIES, MAX_CANARIES = 16, 5000
MAX_RUNS = 1000
# Without a number given: so many that they hide each other little, see _fitting, and cost a few seconds.
_FEW, _MANY = 64, 1000
# Of the canaries, how many are guessed: fewer that are surer give higher bounds, up to a point. Measured for
# mu from .12 to 1.5 and 512 to 4096 persons, a tenth to three tenths are nearly the same.
_GUESSED = 0.2
_ENOUGH = 50_000  # records that say which cells are risky
# Rows of each outcome of a person with several: enough for the clip norm as long as residuals are above .19.
_REPEATS = 4

Vector = NDArray[np.float64]
Seen = list[tuple[Question, Summed]]


def audit_by_canaries(
    text: str,
    holders: Mapping[str, Records],
    *,
    canaries: int | None = None,
    runs: int = 1,
    confidence: float = 0.95,
    seed: int = 0,
    engine: str = "full",
) -> dict[str, Any]:
    """Simulate a run with canaries, attack it, and say what that shows of the privacy loss.

    A correct system passes: ``lower_bound`` is above ``claimed_epsilon`` with a probability of at most
    1 - ``confidence``. A bound above it says that the promise is broken, or that this was such a case. One
    below it proves nothing: another attacker may see more.

    Args:
        text: the study file.
        holders: each holder's records, by name; the canaries are added to copies.
        canaries: how many in a run, 16 to 5,000; about half of them are put in. None: 64 to 1000, more
            where epsilon is small or the study has many cells.
        runs: how many times it is done, 1 to 1000, each with other coins; the result is of all together.
        confidence: of the bound and of the interval, .5 or more, below 1.
        seed: of the coins and the canaries, at least 0; never of noise.
        engine: see :func:`assay.simulations.engine.federate`.

    Returns:
        A JSON object. ``claimed_epsilon``, ``claimed_mu``: what the study promises a person, ``delta``: at
        which delta. ``lower_bound``, ``lower_bound_mu``: what is lost at least, at ``confidence``,
        whatever the noise is. ``estimate``, ``estimate_low``, ``estimate_high``: epsilon if the noise is
        Gaussian, with an interval. ``canaries``, ``guessed``, ``right``: how many there were, of how many
        it was guessed whether they are in, how often rightly.

    Raises:
        BadInput: a number is out of range, or the study trains no scorecard.
    """
    study = parse_study(text)
    size = _fitting(study) if canaries is None else canaries
    _require(study, size, runs, confidence, seed)
    shown = []
    for run in range(runs):
        rng = np.random.default_rng([seed, run, 0xCA9A])
        shown.append(_attacked(text, study, holders, _Flock.of(study, holders, size, rng), rng, engine))
    sure = np.concatenate([each.guesses() for each in shown])
    inside = np.concatenate([each.inside for each in shown])
    guessed = np.argsort(-np.abs(sure), kind="stable")[: math.ceil(_GUESSED * len(sure))]
    right = int(((sure > 0) == inside)[guessed].sum())
    low = mu_low(persons=len(sure), guessed=len(guessed), right=right, confidence=confidence)
    estimate, delta = fitted(shown, confidence=confidence), study.privacy.delta
    return {
        "claimed_epsilon": study.privacy.epsilon,
        "claimed_mu": mu_of(study.privacy.epsilon, delta),
        "delta": delta,
        "lower_bound": epsilon_of_mu(low, delta),
        "lower_bound_mu": low,
        "estimate": epsilon_of_mu(estimate.mu, delta),
        "estimate_low": epsilon_of_mu(estimate.low, delta),
        "estimate_high": epsilon_of_mu(estimate.high, delta),
        "confidence": confidence,
        "canaries": len(sure),
        "guessed": len(guessed),
        "right": right,
    }


def _fitting(study: Study) -> int:
    """Return how many canaries a run takes without much hiding each other.

    They share the cells of the study: together they weigh m mu^2 on ``width`` of them, where a coin has
    weight 4.
    """
    room = 4 * Grid.of(study).width / mu_of(study.privacy.epsilon, study.privacy.delta) ** 2
    return int(min(max(_FEW, room), _MANY))


def _require(study: Study, canaries: int, runs: int, confidence: float, seed: int) -> None:
    if study.training.model != "additive":
        raise BadInput("training.model", value=study.training.model, allowed="additive for canaries")
    if not MIN_CANARIES <= canaries <= MAX_CANARIES:
        raise BadInput(
            "canaries",
            value=canaries,
            allowed=f"{MIN_CANARIES} to {MAX_CANARIES}",
            remedy="For more of them, take more runs",
        )
    if not 1 <= runs <= MAX_RUNS:
        raise BadInput("runs", value=runs, allowed=f"1 to {MAX_RUNS}")
    if not 0.5 <= confidence < 1:
        raise BadInput("confidence", value=confidence, allowed="0.5 or more, below 1")
    if not seed >= 0:
        raise BadInput("seed", value=seed, allowed="at least 0")


def _attacked(
    text: str,
    study: Study,
    holders: Mapping[str, Records],
    flock: _Flock,
    rng: np.random.Generator,
    engine: str,
) -> Shown:
    """Throw the coins, run the study and attack it."""
    inside = rng.random(flock.size) < 0.5
    seen: Seen = []
    federate(
        text,
        {name: flock.added(name, records, inside) for name, records in holders.items()},
        engine=engine,
        watch=lambda question, summed: seen.append((question, summed)),
    )
    scores, overlaps = _attack(study, holders, flock, seen)
    return Shown(scores=scores, overlaps=overlaps, inside=inside)


@dataclass(frozen=True, kw_only=True)
class _Flock:
    """All canaries and their rows.

    Attributes:
        study: what they are made for.
        columns: values of all rows by column, one canary's after another's.
        labels: float64 [rows].
        owner: int64 [rows], whose row it is.
        groups: group of each row by fairness column, int64 [rows].
        at: bool [holders, canaries], who would be where, holders sorted by name.
        names: of the holders, sorted.
        size: number of canaries.
    """

    study: Study
    columns: Mapping[str, NDArray[Any]]
    labels: Vector
    owner: NDArray[np.int64]
    groups: Mapping[str, NDArray[np.int64]]
    at: NDArray[np.bool_]
    names: Sequence[str]
    size: int

    @classmethod
    def of(cls, study: Study, holders: Mapping[str, Records], size: int, rng: np.random.Generator) -> _Flock:
        names = sorted(holders)
        several = study.person is not None
        rows = 2 * _REPEATS if several else 1
        labels = np.tile([0.0, 1.0], (size, 1)) if several else rng.integers(0, 2, (size, 1)).astype(float)
        place = (np.arange(size)[:, None] + np.arange(study.privacy.holders_per_person)) % len(names)
        at = np.zeros((len(names), size), dtype=np.bool_)
        at[place, np.arange(size)[:, None]] = True
        return cls(
            study=study,
            columns=_columns(study, holders, np.repeat(labels, rows // labels.shape[1], axis=1), rng),
            labels=np.repeat(labels, rows // labels.shape[1]),
            owner=np.repeat(np.arange(size), rows),
            groups={
                column.column: np.repeat(rng.integers(0, len(column.labels), size), rows)
                for column in study.fairness.audited
            },
            at=at,
            names=names,
            size=size,
        )

    def rows_at(self, name: str, who: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the rows at one holder of the canaries of ``who`` bool [canaries]."""
        return np.flatnonzero((self.at[self.names.index(name)] & who)[self.owner])

    def added(self, name: str, records: Records, inside: NDArray[np.bool_]) -> Records:
        """Return a holder's records with those canaries that belong there and are in."""
        rows = self.rows_at(name, inside)
        persons, patterns = records.persons, records.patterns
        if persons is not None:
            persons = np.concatenate([persons, records.persons_count + _codes(self.owner[rows])])
        if patterns is not None:
            whole = Grid.of(self.study).pattern_of(records.columns)
            patterns = np.concatenate([patterns, np.full(len(rows), whole, dtype=np.int32)])
        return replace(
            records,
            columns={
                column: np.concatenate([values, self.columns[column][rows].astype(values.dtype)])
                for column, values in records.columns.items()
            },
            labels=np.concatenate([records.labels, self.labels[rows]]),
            persons=persons,
            groups={
                column: np.concatenate([codes, self.groups[column][rows]])
                for column, codes in records.groups.items()
            },
            patterns=patterns,
        )


def _codes(owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the owners 0, 1, ... without gaps, in order of appearance (they ascend)."""
    return np.unique(owner, return_inverse=True)[1].astype(np.int64)


def _columns(
    study: Study, holders: Mapping[str, Records], labels: Vector, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Draw cells in which the outcome is unlikely: it is then far from what any good model says.

    Args:
        study: names the features.
        holders: their records say what is likely.
        labels: float64 [canaries, rows of each]; rows of one outcome of a canary are alike.
        rng: draws.

    Returns:
        Values of all rows by column, one canary's after another's.
    """
    grid, columns = Grid.of(study), {}
    rates = _bad_rates(grid, holders)
    for feature in grid.features:
        values = _cell_values(feature)
        cells = feature.offset + np.array([*range(len(values) - 1), feature.cells - 1])
        safe, risky = np.array_split(np.argsort(rates[cells], kind="stable"), 2)
        drawn = [rng.choice(those, len(labels))[:, None] for those in (risky, safe)]
        columns[feature.feature.column] = values[np.where(labels == 1, drawn[1], drawn[0]).ravel()]
    return columns


def _bad_rates(grid: Grid, holders: Mapping[str, Records]) -> Vector:
    """Return the share of bad persons in each cell, float64 [grid.width], of some thousands of records."""
    persons, bad = np.zeros(grid.width), np.zeros(grid.width)
    for records in holders.values():
        design = design_of(grid.encode(records.columns, records.patterns), grid.size, grid.patterns)
        persons += design.T @ np.ones(records.rows)
        bad += design.T @ records.labels
        if persons[grid.size :].sum() >= _ENOUGH:
            break
    everywhere = bad[grid.size :].sum() / persons[grid.size :].sum()
    return np.asarray((bad + everywhere) / (persons + 1), dtype=np.float64)


def _cell_values(grid: Any) -> NDArray[Any]:
    """Return values of a column that lie in one cell alone: knots, whole numbers or levels, and none."""
    feature = grid.feature
    if feature.kind == "categorical":
        return np.array([*feature.levels, None], dtype=object)
    if feature.kind == "numeric":
        return np.append(grid.knot_values, np.nan)
    low, high = feature.domain or (0.0, 0.0)
    return np.append(np.arange(low, high + 1), np.nan)


class _Part:
    """The canaries of one holder, those inside and those outside alike."""

    def __init__(self, flock: _Flock, grid: Grid, name: str, records: Records) -> None:
        rows = flock.rows_at(name, np.ones(flock.size, dtype=np.bool_))
        self._study, self._grid, self._labels = flock.study, grid, flock.labels[rows]
        self._groups = {column: flock.groups[column][rows] for column in records.groups}
        columns = {column: flock.columns[column][rows] for column in records.columns}
        self._encoded: Encoded = grid.encode(columns)
        self._design = design_of(self._encoded, grid.size, grid.patterns)
        # Row i adds up the rows of canary i.
        ones = (np.ones(len(rows)), (flock.owner[rows], np.arange(len(rows))))
        self._sum = sparse.csr_matrix(ones, shape=(flock.size, len(rows)))

    def vectors(self, question: Question, l2_clip_norm: float) -> Any:
        """Return what each canary adds to the holder's sum of a round, sparse float64 [canaries, size]."""
        after = question.round - question.rounds if question.round else 0
        if after > 0:
            tally = tally_of(self._study, self._grid, after)
            each = tally.rows(question.theta, self._encoded, self._labels, self._groups)
        elif question.round:
            residuals = expit(self._design @ question.theta) - self._labels
            each = sparse.diags_array(residuals) @ self._design
        else:
            each = self._design
        added = (self._sum @ each).tocsr()
        norms = np.sqrt(np.asarray(added.multiply(added).sum(axis=1)).ravel())
        limit = l2_clip_norm * (1 - MARGIN)
        return sparse.diags_array(limit / np.maximum(norms, limit)) @ added


def _attack(study: Study, holders: Mapping[str, Records], flock: _Flock, seen: Seen) -> tuple[Vector, Vector]:
    """Compare what was released with what the canaries would add.

    Returns:
        Scores float64 [canaries] and overlaps float64 [canaries, canaries], see
        :class:`assay.simulations.leakage.Shown`. Under Gaussian noise they hold all that is to be known of
        the coins, also where the parameters of later rounds depend on earlier sums: each round is compared
        at its own.
    """
    grid = Grid.of(study)
    honest = CrowdTraining(study, [holders[name] for name in flock.names])
    parts = {name: _Part(flock, grid, name, holders[name]) for name in flock.names}
    scores, overlaps = np.zeros(flock.size), np.zeros((flock.size, flock.size))
    for question, summed in seen:
        noise = mechanism_of(study, grid, number=question.round, rounds=question.rounds)
        theta = question.theta if question.round else np.zeros(grid.width)
        known = honest.summed(question.round, question.rounds)(theta)
        known_of = dict(zip(flock.names, known, strict=True))
        # What was seen one by one is compared one by one; otherwise there is the sum.
        for names in [[name] for name in summed.own] or [list(summed.holders)]:
            values = summed.own[names[0]] if summed.own else summed.total
            added = sum(parts[name].vectors(question, noise.l2_clip_norm) for name in names).toarray()
            left = values * noise.unit - sum(known_of[name] for name in names)
            # How many of them are in tells none from another, and where a bug lets all count more than they
            # should, it would drown what does: that direction is left out.
            together = added.sum(axis=0)
            direction = together / max(float(np.linalg.norm(together)), np.finfo(float).tiny)
            added -= np.outer(added @ direction, direction)
            scores += added @ left / noise.std**2
            overlaps += added @ added.T / noise.std**2
    return scores, overlaps
