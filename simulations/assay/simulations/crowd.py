"""Thousands of holders at once: the same integers as a live run's, added up without masks.

What differs from a live run is who carries the numbers, not the numbers. Records are encoded, clipped and
summed by the holders' own code (:mod:`assay.models.additive`, :mod:`assay.models.tally`), noise is drawn by
:class:`assay.privacy.mechanism.IntegerMechanism` through Opacus' step, every release is charged to a ledger
by :func:`assay.client.release.release`, and :class:`assay.server.rounds.Run` makes the model:

==========================  ==========================================================================
many holders at once        their rows stand in one design matrix in which every holder has cells of its
                            own, so that one product gives all their sums; each sum is rounded and gets
                            noise by itself
no masks, no signatures     masks cancel in the sum exactly (integers modulo 2^64), and nobody here could
                            forge a message. Keys, shares and openings are not simulated
one ledger                  all holders are charged for the same releases: one ledger stands for each
==========================  ==========================================================================

The model is the same, bit for bit, as by the full protocol with the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.client.books import Books
from assay.client.holder import decline_code
from assay.client.policy import Policy, admit, require_persons
from assay.client.records import Records
from assay.client.release import NoisySum, release
from assay.client.training import Training
from assay.models.additive import AdditiveClippedSum, ClippedCounts
from assay.models.encoding import Encoded, Grid
from assay.models.label import privacy_target
from assay.models.schema import Study
from assay.models.tally import ClippedTally, Groups, Tally, tally_of
from assay.privacy.accounting import TALLIES, RunCost
from assay.privacy.errors import AssayError, BadInput, Refused
from assay.privacy.messages import Accepted, Close, Closed, Declined, Message, Offer, Release
from assay.privacy.optimizer import ClippedSum
from assay.server.courier import NoAnswer
from assay.server.sums import Question, Summed

__all__ = ["Crowd", "CrowdTraining"]

# Rows encoded and multiplied at a time, as many as a holder's own code takes: its sums are then the same
# additions in the same order.
_ROWS = 8192

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Apart:
    """A tally of several holders in one vector: each holder's stands by itself, one after another."""

    tally: Tally
    grid: Grid
    holders: int

    @property
    def size(self) -> int:
        """See :class:`assay.models.tally.Tally`."""
        return self.holders * self.tally.size

    @property
    def sensitivity(self) -> float:
        """See :class:`assay.models.tally.Tally`: a person is at one holder."""
        return self.tally.sensitivity

    def rows(self, theta: Vector, encoded: Encoded, labels: Vector, groups: Groups) -> Any:
        """See :class:`assay.models.tally.Tally`."""
        holder = (encoded.pattern - 1) // self.grid.patterns
        own = Encoded(
            low=np.where(encoded.low < 0, encoded.low, encoded.low - holder[:, None] * self.grid.size),
            upper=encoded.upper,
            pattern=encoded.pattern - holder * self.grid.patterns,
        )
        found = self.tally.rows(theta, own, labels, groups)
        moved = np.repeat(holder.astype(np.int64) * self.tally.size, np.diff(found.indptr))
        return type(found)((found.data, found.indices + moved, found.indptr), shape=(len(labels), self.size))


class _Block:
    """Some holders that have the same columns, with at most :data:`_ROWS` rows, or one holder of any size.

    Attributes:
        places: where these holders stand among all.
        patterns: of each, see ``Grid.pattern_of``.
    """

    def __init__(self, study: Study, grid: Grid, places: Sequence[int], holders: Sequence[Records]) -> None:
        self.places, self._grid, self._count = np.array(places), grid, len(holders)
        self.pattern = grid.pattern_of(holders[0].columns)
        labels = np.concatenate([each.labels for each in holders])
        persons, encoded = _persons(holders), self._encoded(holders)
        gradients = AdditiveClippedSum(
            encoded,
            labels,
            persons,
            size=self._count * grid.size,
            patterns=self._count * grid.patterns,
            l2_clip_norm=grid.gradient_clip_norm,
        )
        groups = {name: np.concatenate([each.groups[name] for each in holders]) for name in holders[0].groups}
        self._gradients, self._counts = gradients, ClippedCounts(gradients, l2_clip_norm=grid.sensitivity)
        self._tallies = [
            ClippedTally(
                _Apart(tally=tally_of(study, grid, number), grid=grid, holders=self._count),
                encoded,
                labels,
                persons,
                groups,
            )
            for number in range(1, TALLIES + 1)
        ]

    def _encoded(self, holders: Sequence[Records]) -> Encoded:
        """Encode all rows; each holder's cells and patterns follow those of the one before."""
        columns = {
            name: np.concatenate([each.columns[name] for each in holders]) for name in holders[0].columns
        }
        given = [each.patterns for each in holders]
        patterns = None if given[0] is None else np.concatenate([own for own in given if own is not None])
        found = self._grid.encode(columns, patterns)
        if len(holders) == 1:
            return found
        holder = np.repeat(np.arange(len(holders), dtype=np.int32), [each.rows for each in holders])
        return Encoded(
            low=np.where(found.low < 0, found.low, found.low + holder[:, None] * np.int32(self._grid.size)),
            upper=found.upper,
            pattern=found.pattern + holder * np.int32(self._grid.patterns),
        )

    def sums(self, number: int, rounds: int, theta: Vector) -> Vector:
        """Return every holder's clipped sum of a round, float64 ``[holders, size of the sum]``."""
        if number > rounds > 0:
            return self._tallies[number - rounds - 1](theta).reshape(self._count, -1)
        size, count = self._grid.size, self._count
        if number == 0:
            found = self._counts(theta)
        else:
            found = self._gradients(
                np.concatenate([np.tile(theta[:size], count), np.tile(theta[size:], count)])
            )
        table, patterns = np.split(found, [count * size])
        return np.concatenate([table.reshape(count, -1), patterns.reshape(count, -1)], axis=1)


def _persons(holders: Sequence[Records]) -> NDArray[np.int64] | None:
    """Number the persons of all holders, nobody at two of them; None: every row is a person."""
    own = [each.persons for each in holders if each.persons is not None]
    if not own:
        return None
    first = np.cumsum([0, *(each.persons_count for each in holders[:-1])])
    return np.concatenate([codes + start for codes, start in zip(own, first, strict=True)])


def _kind(records: Records) -> tuple[Any, ...]:
    """Say what holders must have in common to stand in one block."""
    several = records.persons is not None and records.persons_count < records.rows
    has_persons, has_patterns = records.persons is not None, records.patterns is not None
    return (tuple(records.columns), tuple(records.groups), has_persons, has_patterns, several)


def _blocks(holders: Sequence[Records]) -> Iterator[list[int]]:
    """Put holders together, each in one block, by their places."""
    waiting: dict[tuple[Any, ...], list[int]] = {}
    rows: dict[tuple[Any, ...], int] = {}
    for place, records in enumerate(holders):
        kind = _kind(records)
        if waiting.get(kind) and rows[kind] + records.rows > _ROWS:
            yield waiting.pop(kind)
        if kind not in waiting:
            waiting[kind], rows[kind] = [], 0
        waiting[kind].append(place)
        rows[kind] += records.rows
    yield from waiting.values()


@dataclass
class _Sum:
    """The sums of one round of all holders, as Opacus' step asks for them."""

    l2_clip_norm: float
    found: Callable[[Vector], Vector]

    def __call__(self, theta: Vector) -> Vector:
        return self.found(theta)


class CrowdTraining(Training):
    """The records of many holders; see :class:`assay.client.training.LocalTraining` for one.

    Attributes:
        holders: how many.
        patterns: the components that each has, in the order given.
    """

    def __init__(self, study: Study, holders: Sequence[Records]) -> None:
        """Encode all records; about 12 bytes per row and nonzero weight.

        Raises:
            BadInput: a holder's records do not fit the study.
        """
        super().__init__(study)
        self.holders = len(holders)
        self._blocks = [
            _Block(study, self._grid, places, [holders[place] for place in places])
            for places in _blocks(holders)
        ]
        self.patterns = np.empty(len(holders), dtype=np.int64)
        for block in self._blocks:
            self.patterns[block.places] = block.pattern

    @property
    def width(self) -> int:
        """See :class:`Training`."""
        return self._grid.width

    def summed(self, number: int, rounds: int) -> ClippedSum:
        """See :class:`Training`: the sum is float64 ``[holders, size]``."""
        grid = self._grid
        if number == 0:
            size, bound = grid.width, grid.sensitivity
        elif number <= rounds:
            size, bound = grid.width, grid.gradient_clip_norm
        else:
            tally = tally_of(self._study, grid, number - rounds)
            size, bound = tally.size, tally.sensitivity

        def found(theta: Vector) -> Vector:
            sums = np.empty((len(self.patterns), size))
            for block in self._blocks:
                sums[block.places] = block.sums(number, rounds, theta)
            return sums

        return _Sum(bound, found)


class Crowd:
    """Answers for all holders of a simulation, and adds up their releases.

    Stands where a live coordinator has its courier (offers and closes) and its sums
    (:class:`assay.server.sums.Sums`).

    Attributes:
        federation: of no meaning here.
        roster: the holders' names; nobody signs.
    """

    def __init__(self, study: Study, holders: Mapping[str, Records], *, books: Books, policy: Policy) -> None:
        """Keep the holders.

        Args:
            study: what is trained.
            holders: records by name.
            books: stand for every holder's own.
            policy: of all holders.
        """
        self.federation, self.roster = "", dict.fromkeys(sorted(holders), b"")
        self._study, self._holders, self._books, self._policy = study, holders, books, policy
        self._distributed = study.privacy.trust == "distributed"
        self._run = ""
        self._training: CrowdTraining | None = None

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | NoAnswer]:
        """Answer offers and closes, as :meth:`assay.server.courier.Courier.ask` returns them."""
        if not messages:
            return {}
        first = next(iter(messages.values()))
        if isinstance(first, Offer):
            return self._accept(first, sorted(messages))
        if isinstance(first, Close):
            self._books.ledger.close_run(run=first.run, outcome=first.outcome)
            return dict.fromkeys(messages, Closed(run=first.run, heads=self._books.heads()))
        raise AssayError("a crowd answers offers and closes; everything else is summed")

    def _accept(self, offer: Offer, names: Sequence[str]) -> dict[str, Message | NoAnswer]:
        """Do what every holder does with an offer, in the same order."""
        answers: dict[str, Message | NoAnswer] = {}
        for name in names:
            try:
                require_persons(self._holders[name], self._policy)
            except Refused as error:
                answers[name] = Declined(run=offer.run, code=decline_code(error))
        names = [name for name in names if name not in answers]
        try:
            admit(self._study, self._policy)
            training = CrowdTraining(self._study, [self._holders[name] for name in names])
            planned = RunCost.of(privacy_target(self._study)).total(rounds=1)
            self._books.ledger.reserve(
                study=self._study.name, run=offer.run, planned=planned, limits=self._policy.limits
            )
        except (BadInput, Refused) as error:
            return answers | dict.fromkeys(names, Declined(run=offer.run, code=decline_code(error)))
        self._run, self._training, heads = offer.run, training, self._books.heads()
        return answers | {
            name: Accepted(run=offer.run, pattern=int(pattern), heads=heads)
            for name, pattern in zip(names, training.patterns, strict=True)
        }

    def noises(self, holders: int) -> float:
        """See :class:`assay.server.sums.Sums`."""
        return holders / (holders - self._study.privacy.tolerated) if self._distributed else float(holders)

    def collect(self, question: Question, active: tuple[str, ...]) -> Summed:
        """See :class:`assay.server.sums.Sums`: charge once, compute every holder's integers, add them up."""
        training = self._training
        if training is None or training.holders != len(active):
            raise AssayError("all holders that accepted take part in every round")
        contributors = len(active) - self._study.privacy.tolerated if self._distributed else 1
        wanted = NoisySum.of(
            self._study, self._run, question.round, question.rounds, contributors=contributors
        )
        if question.round:
            training.require_model(question.theta, card=question.round == question.rounds + TALLIES)
        each: list[Integers] = []  # every holder's: seen by the coordinator where the trust is local

        def compute() -> Integers:
            charged = self._books.ledger.charged(self._run)
            each.append(
                training.noisy(
                    number=question.round,
                    rounds=question.rounds,
                    theta=question.theta,
                    mechanism=wanted.mechanism,
                    charged=charged,
                )
            )
            return np.asarray(each[0].sum(axis=0, dtype=np.int64))

        def build(total: Integers) -> Release:
            # Refuses a total beyond 2^53, up to which sums are exact.
            return Release(run=self._run, round=question.round, unit=wanted.mechanism.unit, values=total)

        total = release(self._books, wanted, compute=compute, build=build).values
        own = {} if self._distributed else dict(zip(active, each[0], strict=True))
        return Summed(total=total.astype(np.int64), shared=active, holders=active, active=active, own=own)
