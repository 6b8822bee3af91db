"""Runs in one process: real holders, a real courier, a store that outlives a crash, and faults between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from toy_study import COORDINATOR, FEDERATION, GRID, RUN, TEXT, holder, policy, records

from assay.client.app import make_app
from assay.models.audit import audit_of, near_means
from assay.models.calibration import platt_step
from assay.models.fitting import Fit
from assay.models.label import mechanism_of
from assay.models.scorecard import Scorecard
from assay.models.study import parse_study
from assay.models.tally import AuditTally, CalibrationTally
from assay.privacy.accounting import TALLIES
from assay.privacy.auditlog import AuditLog
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger
from assay.server.courier import Courier, NoAnswer
from assay.server.rounds import Run
from assay.simulations.grid import LocalGrid

NAMES = ("east", "north", "south")
LIMITS = policy().limits


class Store:
    """What a run keeps, in memory; ``after`` is called with each kind of write once it is durable."""

    def __init__(self):
        self.saved, self.sessions, self.sums, self.after = [], {}, {}, lambda kind: None

    @property
    def latest(self):
        return self.saved[-1][1] if self.saved else None

    def state(self, number):
        """The last checkpoint of a round."""
        return dict(self.saved)[number]

    def save(self, number, state):
        self.saved.append((number, state))
        self.after("checkpoint")

    def session(self, number):
        return self.sessions.get(number)

    def save_session(self, session):
        self.sessions[session.session] = session
        self.after("session")

    def collected(self, number):
        return self.sums.get(number)

    def save_collected(self, collected):
        assert self.sums.setdefault(collected.round, collected) == collected
        self.after("collected")


@dataclass(frozen=True)
class Plain:
    """What a run must end in."""

    theta: Any
    counts: Any
    card: Scorecard
    audit: dict


class Federation:
    """Real holders and a coordinator that may lose its memory; a test may put faults between them.

    ``faults`` maps a holder's name to a function of the question and the holder's answer function;
    ``crash`` is called with ``"before"`` or ``"after"`` and the question at each exchange.
    """

    def __init__(self, folder, *, names=NAMES, text=TEXT, rules=None):
        self.folder, self.names, self.text, self.rules = folder, names, text, rules or {}
        self.study = parse_study(text)
        self.identities = {name: Identity.generate() for name in names}
        self.audits = {name: AuditLog.open(None, self.identities[name]) for name in names}
        self.ledgers = {name: self.new_ledger(name) for name in names}
        self.asked, self.faults, self.reports, self.heads = [], {}, [], {}
        self.crash, self.store = lambda when, question: None, Store()
        self.restart_all()

    def new_ledger(self, name):
        return Ledger.open(":memory:", self.identities[name], log_head=self.audits[name].head)

    def restart(self, name):
        """Start a holder anew: what it kept in memory only is gone."""
        self.holders[name] = holder(
            self.folder,
            name=name,
            identity=self.identities[name],
            ledger=self.ledgers[name],
            audit=self.audits[name],
            data=records(300, self.names.index(name)),
            rules=self.rules.get(name, policy()),
        )

    def restart_all(self):
        self.holders = {}
        for name in self.names:
            self.restart(name)

    def new_courier(self):
        apps = {
            name: make_app(
                held,
                identity=self.identities[name],
                federation=FEDERATION,
                coordinator_key=COORDINATOR.public,
                log=lambda _: None,
            )
            for name, held in self.holders.items()
        }
        return Courier(
            LocalGrid(apps),
            identity=COORDINATOR,
            federation=FEDERATION,
            roster={name: identity.public for name, identity in self.identities.items()},
            heads=self.heads,
            keep=self.heads.update,
        )

    def run(self, *, minimum=2, stopping=lambda: False, run=RUN):
        """Return a run of a coordinator that knows what is stored and nothing else."""
        return Run(
            run=run,
            study_text=self.text,
            courier=Faulty(self),
            minimum_holders=minimum,
            timeout_s=1.0,
            store=self.store,
            report=self.reports.append,
            stopping=stopping,
        )

    def train(self, **settings):
        return self.run(**settings).train(list(self.names))

    def resume(self, **settings):
        """Go on after a crash of the coordinator; every holder has been restarted too."""
        self.restart_all()
        return self.run(**settings).train(list(self.names), self.store.latest)

    # What came of it ----------------------------------------------------------------------------

    def open_runs(self):
        return {name: ledger.open_runs() for name, ledger in self.ledgers.items()}

    def spent(self, name):
        return self.ledgers[name].summary(LIMITS).spent_epsilon

    def kinds_asked(self, name):
        return [type(message) for asked, message in self.asked if asked == name]

    def steps(self, kind):
        return [step for step in self.reports if step.kind == kind]

    def dropped(self):
        """Who was dropped in which round, in order."""
        return [(step.round, *step.holders) for step in self.steps("dropped")]

    def payload(self, name, number, run=RUN):
        """The integers a holder's ledger holds for a round, with noise and without masks; or None."""
        store = self.ledgers[name]._store
        with store.transaction(write=False):
            row = store.row(run, number, "release")
        return None if row is None else np.frombuffer(row["payload"], dtype="<i8")

    def plain_fit(self, in_sum):
        """Fit what plain addition of the ledgers' integers gives.

        Args:
            in_sum: function of the round; names whose integers are in its sum.

        Returns:
            The calibrated log-odds, the counts, the card and its audit, as the run must have them to the last
            bit. All holders have all components, and share the persons equally as far as anybody knows.
        """
        study, first, everything = self.study, in_sum(0), (GRID.patterns,)
        tolerated, rounds = study.privacy.tolerated, study.training.rounds
        noises = len(first) / (len(first) - tolerated) if study.privacy.trust == "distributed" else len(first)
        mechanisms = [
            mechanism_of(study, GRID, number=number, rounds=rounds) for number in range(rounds + TALLIES + 1)
        ]
        stds = [each.std * noises**0.5 for each in mechanisms]
        counts = self.added(0, first) * mechanisms[0].unit
        fit = Fit(GRID, counts=counts, gradient_noise_std=stds[1], rounds=rounds, patterns=everything)
        persons = dict.fromkeys(first, fit.persons / len(first))

        def whole(number):
            names = in_sum(number)
            scale = sum(persons.values()) / sum(persons[name] for name in names)
            return self.added(number, names) * mechanisms[number].unit * scale

        while fit.done < rounds:
            fit.update(whole(fit.done + 1))
        platt = platt_step(CalibrationTally(grid=GRID), whole(rounds + 1), stds[-2])
        theta = platt.theta(fit.result(study), GRID)
        card, tally = Scorecard.of(study, GRID, theta, counts), AuditTally(study=study, grid=GRID)
        audited = whole(rounds + 2)
        near = near_means(tally, card, audited, stds[-1])
        return Plain(theta, counts, replace(card, near=near), audit_of(tally, card, audited, stds[-1]))

    def added(self, number, names):
        return sum(self.payload(name, number) for name in names).astype(np.float64)


class Faulty:
    """The courier of one run, with a federation's faults and crashes."""

    def __init__(self, federation):
        self._of, self._courier = federation, federation.new_courier()
        self.federation, self.roster = self._courier.federation, self._courier.roster

    def ask(self, messages, *, timeout):
        question, answers = next(iter(messages.values()), None), {}
        self._of.crash("before", question)
        for name, message in messages.items():
            self._of.asked.append((name, message))

            def honest(name=name, message=message):
                return self._courier.ask({name: message}, timeout=timeout)[name]

            fault = self._of.faults.get(name)
            answers[name] = honest() if fault is None else fault(message, honest)
        self._of.crash("after", question)
        return answers


def check_exact(federation, trained, in_sum):
    """The result is what plain addition of the integers in the holders' ledgers gives, to the last bit."""
    plain = federation.plain_fit(in_sum)
    assert trained.counts.tobytes() == plain.counts.tobytes()
    assert trained.theta.tobytes() == plain.theta.tobytes()
    assert trained.card.to_json() == plain.card.to_json()
    assert trained.audit == plain.audit


def lost(kind, *, number=None, reached=True):
    """A fault: from one kind of question on, of one round or the first, a holder's answers are lost.

    With ``reached`` false the question itself is lost.
    """
    gone = []

    def fault(message, honest):
        if gone or (isinstance(message, kind) and number in (None, getattr(message, "round", None))):
            gone.append(True)
            if reached:
                honest()
            return NoAnswer(reason="no answer within 1 s")
        return honest()

    return fault
