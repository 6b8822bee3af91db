"""A holder's answers: policy, privacy budget, records and training behind one method.

Live daemons and simulations use this class alike; only the transport around it differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from assay.client.config import Policy
from assay.client.offers import OfferLog
from assay.client.policy import admit, require_persons, require_same_person
from assay.client.records import Records
from assay.client.release import release
from assay.client.training import LocalTraining
from assay.models.label import privacy_target
from assay.models.study import Study, parse_study
from assay.privacy.accounting import Event, RunCost
from assay.privacy.errors import Refused
from assay.privacy.files import make_private_dir, write_durably
from assay.privacy.ledger import Ledger
from assay.privacy.wire import (
    Accepted,
    Close,
    Closed,
    CountsRequest,
    GradientRequest,
    Message,
    Offer,
    Release,
)

__all__ = ["Holder"]


@dataclass
class _Run:
    """One accepted run, in memory; rebuilt from the accepted study after a restart."""

    study: Study
    training: LocalTraining


class Holder:
    """Answers the coordinator's questions.

    Args:
        name: the holder's name in the federation.
        policy: what the holder allows.
        ledger: the holder's privacy account.
        load: reads and checks the records a study needs; called once per run.
        person: column that names the person, as the holder says; None: every row is a different person.
        accepted: directory that keeps the text of accepted studies, so that a restart can go on.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        *,
        name: str,
        policy: Policy,
        ledger: Ledger,
        load: Callable[[Study], Records],
        person: str | None,
        accepted: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._policy, self._ledger, self._load = policy, ledger, load
        self._person, self._accepted = person, make_private_dir(accepted)
        self._offers = OfferLog(accepted / "offers.json", policy.new_studies_per_day, clock)
        self._runs: dict[str, _Run] = {}

    def answer(self, question: Message) -> Message:
        """Answer one question.

        Raises:
            Refused: the policy, the budget or the state of the run forbids it; nothing was computed.
            BadInput: the study or the records are not what they must be.
        """
        if isinstance(question, Offer):
            return self._accept(question)
        if isinstance(question, CountsRequest):
            return self._counts(question)
        if isinstance(question, GradientRequest):
            return self._gradient(question)
        if isinstance(question, Close):
            return self._close(question)
        raise Refused(f"a holder does not answer {question.kind!r}", code="invalid")

    def _accept(self, offer: Offer) -> Accepted:
        """Check policy and records, end abandoned runs, reserve the whole run; accepting spends nothing."""
        study = parse_study(offer.study, where="offered study")
        admit(study, self._policy)
        require_same_person(study, self._person)
        self._require_same(offer)
        self._offers.count(study.digest)  # from here on the answer depends on records
        training = self._open(study)
        # A coordinator trains one run at a time: what it left open before this offer is over.
        for abandoned in set(self._ledger.open_runs()) - {offer.run}:
            self._end(abandoned, "aborted")
        planned = RunCost.of(privacy_target(study)).total(rounds=1)  # rounds only divide it
        self._ledger.reserve(study=study.name, run=offer.run, planned=planned, limits=self._policy.limits)
        write_durably(self._study_file(offer.run), offer.study.encode(), mode=0o600)
        self._runs[offer.run] = _Run(study=study, training=training)
        return Accepted(run=offer.run)

    def _require_same(self, offer: Offer) -> None:
        """Refuse to put another study under a run that was accepted before."""
        path = self._study_file(offer.run)
        if path.exists() and path.read_bytes() != offer.study.encode():
            raise Refused(f"run {offer.run} was accepted with another study; start a new run", code="changed")

    def _open(self, study: Study) -> LocalTraining:
        records = self._load(study)
        require_persons(records, self._policy)
        return LocalTraining(study, records)

    def _counts(self, question: CountsRequest) -> Release:
        run = self._run(question.run)
        event = RunCost.of(privacy_target(run.study)).counts
        return release(
            self._ledger,
            run=question.run,
            round=0,
            mechanism="cell counts",
            sensitivity=run.training.counts_sensitivity,
            event=event,
            noisy_sum=lambda: run.training.noisy_counts(event, self._ledger.charged(question.run)),
        )

    def _gradient(self, question: GradientRequest) -> Release:
        run = self._run(question.run)
        cost = RunCost.of(privacy_target(run.study))
        event = cost.gradient(question.rounds)
        self._require_rounds(question.run, cost.counts, event)
        run.training.require_model(question.theta)
        return release(
            self._ledger,
            run=question.run,
            round=question.round,
            mechanism="clipped gradient sum",
            sensitivity=run.training.gradient_sensitivity,
            event=event,
            noisy_sum=lambda: run.training.noisy_gradient(
                question.theta, event, self._ledger.charged(question.run)
            ),
        )

    def _require_rounds(self, run: str, counts: Event, gradient: Event) -> None:
        """Refuse another number of rounds than the run began with: all its gradients cost the same."""
        charged = list(self._ledger.charged(run))
        if counts in charged:
            charged.remove(counts)
        if any(event != gradient for event in charged):
            raise Refused(f"the number of rounds of run {run} was fixed by its first", code="changed")

    def _close(self, question: Close) -> Closed:
        self._end(question.run, question.outcome)
        return Closed(run=question.run)

    def _end(self, run: str, outcome: str) -> None:
        self._ledger.close_run(run=run, outcome=outcome)
        self._runs.pop(run, None)
        self._study_file(run).unlink(missing_ok=True)

    def _run(self, run: str) -> _Run:
        if run not in self._runs:
            path = self._study_file(run)
            if not path.exists():
                raise Refused(f"run {run} was not accepted here, or is closed", code="unknown")
            study = parse_study(path.read_text(encoding="utf-8"), where="accepted study")
            admit(study, self._policy)
            require_same_person(study, self._person)
            self._runs[run] = _Run(study=study, training=self._open(study))
        return self._runs[run]

    def _study_file(self, run: str) -> Path:
        return self._accepted / f"{run}.toml"
