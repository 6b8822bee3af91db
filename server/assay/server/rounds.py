"""One training run, from the offer to the fitted scorecard; it can be stopped anywhere and goes on.

Released integers are added up as integers, so the order of the holders' answers does not matter, and a run
that is resumed from its checkpoint ends in the same model as one that was never interrupted. How a sum
comes about, in the clear or under masks, is the study's trust: see :mod:`assay.server.sums`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from assay.models.audit import audit_of, near_means
from assay.models.calibration import Platt, platt_step
from assay.models.encoding import Grid
from assay.models.fitting import Fit, default_rounds, estimate_persons
from assay.models.label import mechanism_of, privacy_target
from assay.models.scorecard import Scorecard
from assay.models.study import parse_study
from assay.models.tally import AuditTally, CalibrationTally
from assay.privacy.accounting import TALLIES, RunCost, epsilon_of
from assay.privacy.cohort import MAX_HOLDERS
from assay.privacy.errors import AssayError, Refused
from assay.privacy.mechanism import IntegerMechanism
from assay.privacy.messages import Accepted, Close, Message, Offer
from assay.server.aggregation import SecureSums
from assay.server.checkpoint import RunState
from assay.server.courier import NoAnswer
from assay.server.sessions import Sessions
from assay.server.sums import Aborted, Answers, Panel, PlainSums, Question, Summed, Sums, TooFewHolders, why

if TYPE_CHECKING:
    from assay.models.neural import NeuralFit

__all__ = ["Aborted", "Asks", "Interrupted", "Progress", "Run", "Store", "TooFewHolders", "Trained"]

# The bundle is out by then; nobody waits long for a holder that has gone.
CLOSE_S = 10.0
# Noise is longer than ten times its expected length less often than anybody could wait for.
NOISE_LENGTHS = 10.0

Vector = NDArray[np.float64]
Descent = TypeVar("Descent", "Fit", "NeuralFit")


class Interrupted(AssayError):
    """The coordinator is stopping; the run goes on from its checkpoint after the next start."""


class Asks(Protocol):
    """What a run needs of the world: questions to holders by name, and their answers."""

    @property
    def federation(self) -> str:
        """Identifier of the federation, 64 hexadecimal digits."""

    @property
    def roster(self) -> Mapping[str, bytes]:
        """Ed25519 key (32 bytes) of every admitted holder by name."""

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> Answers:
        """Ask each named holder; see :class:`assay.server.courier.Courier`."""


class Store(Sessions, Protocol):
    """What a run keeps over a crash of the coordinator; every write is durable when it returns."""

    def save(self, number: int, state: bytes) -> None:
        """Keep the checkpoint of a round; the same number again replaces it."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of a run, for logs and progress displays; everything in it is public.

    Attributes:
        kind: ``"offer"``, ``"counts"``, ``"round"``, ``"calibration"``, ``"audit"``, ``"dropped"``,
            ``"ledger"`` (a holder's ledger or audit log is an older copy or a clone) or ``"resumed"``.
        round: 0 for offer and counts, then 1..rounds, then two more.
        rounds: gradient rounds of the run, 0 while not known.
        holders: names of the holders that take part, or that it is about.
        epsilon: spent so far, for one person.
        detail: words for the operator.
    """

    kind: str
    round: int
    rounds: int
    holders: tuple[str, ...]
    epsilon: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a finished run gives.

    Attributes:
        theta: float64 ``[width]``, fitted log-odds and intercepts, calibrated.
        counts: float64 ``[width]``, summed noisy counts.
        card: the scorecard, with the baselines of both kinds of reasons.
        platt: the calibration step.
        audit: what is known of the card, see :func:`assay.models.audit.audit_of`.
        baseline: noisy counts by cell and pattern and by score bin, and the noise in them.
        patterns: which components each holder has, by name.
        rounds: gradient rounds taken.
        holders: names of the holders whose values are in the last sum.
        most_asked: most holders that were asked in one round, where each one's share of noise is smallest.
    """

    theta: Vector
    counts: Vector
    card: Scorecard
    platt: Platt
    audit: Mapping[str, Any]
    baseline: Mapping[str, Any]
    patterns: Mapping[str, int]
    rounds: int
    holders: tuple[str, ...]
    most_asked: int


class Run:
    """Trains one study with the holders that accept it.

    Args:
        run: identifier, 32 hexadecimal digits.
        study_text: text of the study file.
        courier: asks the holders.
        minimum_holders: fewer than this many answers end the run.
        timeout_s: seconds to wait for a holder's answer, also while it restarts.
        store: keeps what the run goes on from.
        report: called with each :class:`Progress`.
        stopping: asked before each exchange; true ends the run with :class:`Interrupted`.
        sums: how sums are collected, made from the holders of the run; None: as the study's trust says.
        most_holders: that can be added up where the trust is distributed.
    """

    def __init__(
        self,
        *,
        run: str,
        study_text: str,
        courier: Asks,
        minimum_holders: int,
        timeout_s: float,
        store: Store,
        report: Callable[[Progress], None],
        stopping: Callable[[], bool] = lambda: False,
        sums: Callable[[Panel], Sums] | None = None,
        most_holders: int = MAX_HOLDERS,
    ) -> None:
        self.run, self.study = run, parse_study(study_text)
        self._text, self._courier = study_text, courier
        self._minimum, self._timeout = minimum_holders, timeout_s
        self._store, self._report, self._stopping = store, report, stopping
        self._grid = Grid.of(self.study)
        self._cost = RunCost.of(privacy_target(self.study))
        self._distributed = self.study.privacy.trust == "distributed"
        self._most_holders = most_holders
        panel = Panel(run=self.run, ask=self._ask, drop=self._drop)
        self._sums = sums(panel) if sums else self._make_sums(panel)
        self._state = RunState()

    def _make_sums(self, panel: Panel) -> Sums:
        if not self._distributed:
            return PlainSums(panel, minimum=self._minimum)
        return SecureSums(
            panel,
            self._store,
            study=self.study,
            federation=self._courier.federation,
            roster=self._courier.roster,
            minimum=self._minimum,
        )

    def train(self, holders: list[str], checkpoint: bytes | None = None) -> Trained:
        """Run to the end.

        Args:
            holders: names of the holders to offer the study to; ignored when resuming.
            checkpoint: the last bytes given to the store, to go on from there.

        Raises:
            Refused: too few holders accept, or the study is no scorecard's; nothing was spent.
            Aborted: too few holders still answer, or their answers give no sum; all are told that the run
                is over.
            Interrupted: the coordinator is stopping.
        """
        self.study.require_trainable()
        try:
            if checkpoint is None:
                self._offer(holders)
            else:
                self._state = RunState.unpack(checkpoint)
                self._tell("resumed", max(0, self._state.next_round - 1), tuple(self._state.active))
            if not self._state.rounds:
                self._count()
            fit = self._descend(self._new_fit())
            theta, platt = self._calibrate(fit)
            card, audit = self._audit(theta, fit.rounds)
        except (Refused, Aborted):
            # Anything else, a full disk for instance, leaves the run to be taken up again.
            self.close("aborted")
            raise
        return Trained(
            theta=theta,
            counts=self._state.counts,
            card=card,
            platt=platt,
            audit=audit,
            baseline=self._baseline(),
            patterns=dict(self._state.patterns),
            rounds=fit.rounds,
            holders=tuple(self._state.holders),
            most_asked=self._state.most_asked,
        )

    def challenge(self, holders: list[str]) -> Vector:
        """Train the network of a neural study, in a simulation; return its parameters.

        Raises:
            Refused: too few holders accept; nothing was spent.
            Aborted: too few holders still answer, or their answers give no sum.
        """
        from assay.models.neural import NeuralFit, NeuralLayout  # late: a coordinator needs no torch

        self._offer(holders)
        self._count()
        persons, layout = sum(self._state.persons.values()), NeuralLayout(grid=self._grid)
        fit = NeuralFit(self.study, layout, persons=persons, rounds=self._state.rounds)
        self._state.fit = fit.state()
        return self._descend(fit).result(self.study)

    def close(self, outcome: str) -> None:
        """Tell every holder that accepted that the run is over, also those dropped on the way.

        One that does not answer keeps its reservation until the next offer, which ends abandoned runs.
        """
        message = Close(run=self.run, outcome=outcome)
        messages = dict.fromkeys(self._state.accepted, message)
        answers = self._courier.ask(messages, timeout=min(self._timeout, CLOSE_S))
        last = self._state.rounds + TALLIES  # after it there is no next round
        self._tell_of_ledgers(min(self._state.next_round, last), answers)

    def _ask(self, number: int, messages: Mapping[str, Message]) -> Answers:
        if self._stopping():
            raise Interrupted("the coordinator is stopping; the run goes on after the next start")
        answers = self._courier.ask(messages, timeout=self._timeout)
        if self._stopping() and any(isinstance(answer, NoAnswer) for answer in answers.values()):
            raise Interrupted("the coordinator is stopping; the run goes on after the next start")
        self._tell_of_ledgers(number, answers)
        return answers

    def _offer(self, names: list[str]) -> None:
        answers = self._ask(0, dict.fromkeys(names, Offer(run=self.run, study=self._text)))
        accepted = sorted(name for name, answer in answers.items() if isinstance(answer, Accepted))
        self._state.accepted = self._state.active = accepted
        self._state.patterns = {n: a.pattern for n, a in answers.items() if isinstance(a, Accepted)}
        refused = sorted(set(answers).difference(accepted))
        refusals = [f"{name}: {why(answers[name])}" for name in refused]
        self._tell("offer", 0, tuple(accepted), detail="; ".join(refusals))
        detail = f" ({'; '.join(refusals)})" if refusals else ""
        if len(accepted) < self._minimum:
            raise Refused(
                f"{len(accepted)} holder(s) accept the study; allowed: at least {self._minimum}{detail}."
                " Start more holders, or change the study or their policies",
                code="holders",
            )
        try:
            self.study.require_holders(len(accepted), most=self._most_holders)
        except Refused as error:
            raise Refused(f"{error}{detail}", code=error.code) from None
        for name, pattern in self._state.patterns.items():
            if not pattern <= self._grid.patterns:
                raise Refused(f"{name} states components that the study does not have", code="holders")
        self._checkpoint(0)

    def _count(self) -> None:
        """Round 0: how many persons are in which cell, and from that the number of rounds."""
        state, noise = self._state, self._mechanism(0)
        summed = self._collect(
            Question(round=0, rounds=0, theta=np.zeros(1), size=noise.size, unit=noise.unit)
        )
        state.counts = summed.total.astype(np.float64) * noise.unit
        state.persons = self._persons(summed, noise.unit)
        holders = len(state.persons)
        state.rounds = self.study.training.rounds or default_rounds(
            epsilon=self.study.privacy.epsilon,
            persons=sum(state.persons.values()),
            holders=1 if self._distributed else holders,
        )
        if self.study.training.model == "additive":
            state.fit = self._new_fit().state()
        self._checkpoint(0)
        self._tell("counts", 0, summed.holders)

    def _persons(self, summed: Summed, unit: float) -> dict[str, float]:
        """Estimate each holder's persons; where only their sum is known, all are taken to have as many."""
        if summed.own:
            own = {name: values.astype(np.float64) * unit for name, values in summed.own.items()}
            patterns = self._state.patterns
            return {n: estimate_persons(self._grid, counts, (patterns[n],)) for n, counts in own.items()}
        persons = estimate_persons(self._grid, self._state.counts, self._patterns)
        return dict.fromkeys(summed.holders, persons / len(summed.holders))

    @property
    def _patterns(self) -> tuple[int, ...]:
        """The patterns of the holders that were counted, each once; before that, of all that accepted."""
        names = self._state.persons or self._state.patterns
        return tuple(sorted({self._state.patterns[name] for name in names}))

    def _mechanism(self, number: int) -> IntegerMechanism:
        return mechanism_of(self.study, self._grid, number=number, rounds=self._state.rounds)

    def _noise_std(self, number: int) -> float:
        """Return the standard deviation of the noise in one value of a round's sum."""
        return self._mechanism(number).std * math.sqrt(self._sums.noises(len(self._state.persons)))

    def _new_fit(self) -> Fit:
        return Fit(
            self._grid,
            counts=self._state.counts,
            gradient_noise_std=self._noise_std(1),
            rounds=self._state.rounds,
            patterns=self._patterns,
        )

    def _descend(self, fit: Descent) -> Descent:
        """Rounds 1..: one step of the fit for each sum of gradients."""
        state = self._state
        fit.restore(state.fit)
        while fit.done < fit.rounds:
            number = fit.done + 1
            fit.update(self._summed(number, fit.theta))
            state.fit = fit.state()
            self._checkpoint(number)
            self._tell("round", number, tuple(state.holders))
        return fit

    def _summed(self, number: int, theta: Vector) -> Vector:
        """Collect the sum of one round after the counts, float64; it stands for all holders that counted."""
        noise, persons = self._mechanism(number), self._state.persons
        question = Question(
            round=number,
            rounds=self._state.rounds,
            theta=theta,
            size=noise.size,
            unit=noise.unit,
            largest=self._largest(noise),
        )
        summed = self._collect(question)
        # A holder that is gone takes its (publicly estimated) persons out of the sum; the rest stands for
        # all, so that a step keeps its size.
        answered = sum(persons[name] for name in summed.holders)
        return np.asarray(summed.total.astype(np.float64) * noise.unit * (sum(persons.values()) / answered))

    def _calibrate(self, fit: Fit) -> tuple[Vector, Platt]:
        """Round T+1: outcomes by predicted log-odds, and a Platt step where they contradict the model."""
        state, theta, number = self._state, fit.result(self.study), fit.rounds + 1
        if not state.tallies:
            state.tallies = [self._summed(number, theta)]
            self._checkpoint(number)
            self._tell("calibration", number, tuple(state.holders))
        tally = CalibrationTally(grid=self._grid)
        platt = platt_step(tally, state.tallies[0], self._noise_std(number))
        return platt.theta(theta, self._grid), platt

    def _audit(self, theta: Vector, rounds: int) -> tuple[Scorecard, Mapping[str, Any]]:
        """Round T+2: what is known of the finished card, and what those near the cut-off score."""
        state, number = self._state, rounds + 2
        card = Scorecard.of(self.study, self._grid, theta, state.counts)
        if len(state.tallies) < 2:
            state.tallies = [*state.tallies, self._summed(number, card.theta)]
            self._checkpoint(number)
            self._tell("audit", number, tuple(state.holders))
        tally, noise_std = AuditTally(study=self.study, grid=self._grid), self._noise_std(number)
        near = near_means(tally, card, state.tallies[1], noise_std)
        return replace(card, near=near), audit_of(tally, card, state.tallies[1], noise_std)

    def _baseline(self) -> dict[str, Any]:
        """Return the population at training as it is known, for comparison later."""
        state = self._state
        scores = state.tallies[1][AuditTally(study=self.study, grid=self._grid).scores]
        return {
            "counts": [round(float(count), 3) for count in state.counts],
            "counts_noise_std": self._noise_std(0),
            "scores": [round(float(count), 3) for count in scores[0::2] + scores[1::2]],
            "scores_noise_std": self._noise_std(state.rounds + 2) * math.sqrt(2),
        }

    def _largest(self, noise: IntegerMechanism) -> dict[str, float]:
        """Return how long each holder's gradient sum can be: every person adds at most the clip norm."""
        added = NOISE_LENGTHS * noise.std * math.sqrt(noise.size)
        return {name: persons * noise.l2_clip_norm + added for name, persons in self._state.persons.items()}

    def _collect(self, question: Question) -> Summed:
        summed = self._sums.collect(question, tuple(self._state.active))
        self._state.active, self._state.holders = list(summed.active), list(summed.holders)
        self._state.most_asked = max(self._state.most_asked, len(summed.shared))
        return summed

    def _checkpoint(self, number: int) -> None:
        self._store.save(number, self._state.pack())

    def _drop(self, number: int, name: str, reason: str) -> None:
        self._tell("dropped", number, (name,), detail=reason)

    def _tell_of_ledgers(self, number: int, answers: Answers) -> None:
        for name, answer in sorted(answers.items()):
            if isinstance(answer, NoAnswer) and answer.ledger:
                self._tell("ledger", number, (name,), detail=answer.reason)

    def _tell(self, kind: str, number: int, holders: tuple[str, ...], detail: str = "") -> None:
        rounds = self._state.rounds
        offered = kind != "offer" and self._state.accepted  # until then nothing is spent
        events = [self._cost.event(each, rounds or 1) for each in range(number + 1)] if offered else []
        spent = epsilon_of(events, self.study.privacy.delta)
        self._report(
            Progress(kind=kind, round=number, rounds=rounds, holders=holders, epsilon=spent, detail=detail)
        )
