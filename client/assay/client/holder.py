"""A holder's answers: policy, privacy budget, records and training behind one method.

Live daemons and simulations use this class alike; only the transport around it differs. Whatever a question
asks, the order is the same: do the books contain what the coordinator saw last; do policy and the state of
the run allow it; write it down; only then compute, and answer last.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from assay.client.aggregation import Aggregation
from assay.client.books import Books
from assay.client.config import Policy
from assay.client.offers import OfferLog
from assay.client.policy import admit, require_persons, require_same_person
from assay.client.records import Records
from assay.client.release import Integers, NoisySum, release, require_released
from assay.client.training import LocalTraining
from assay.models.label import privacy_target
from assay.models.study import Study, parse_study
from assay.privacy.accounting import TALLIES, RunCost
from assay.privacy.auditlog import AuditLog
from assay.privacy.errors import BadData, BadInput, Refused, Tampered
from assay.privacy.files import make_private_dir, write_durably
from assay.privacy.heads import Heads, verify_countersignature
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger
from assay.privacy.messages import (
    DECLINE_CODES,
    MODEL_VERSION,
    Accepted,
    Close,
    Closed,
    Consent,
    CountsRequest,
    GradientRequest,
    KeysRequest,
    Masked,
    MaskRequest,
    Message,
    Offer,
    Opened,
    OpenRequest,
    Release,
    SharesRequest,
    SurvivorsRequest,
)

__all__ = ["Holder", "decline_code"]

Vector = NDArray[np.float64]
_NO_THETA = np.zeros(0)  # counts are taken at no parameters
# Questions that say what the coordinator saw last of this holder.
_SEEN = (Offer, Close, CountsRequest, GradientRequest, MaskRequest)


@dataclass
class _Run:
    """One accepted run, in memory; rebuilt from the accepted study after a restart."""

    study: Study
    training: LocalTraining


class Holder:
    """Answers the coordinator's questions.

    Args:
        name: the holder's name in the federation.
        identity: its signing key.
        federation: identifier of the federation, 64 hexadecimal digits.
        coordinator_key: Ed25519 key of the coordinator, 32 bytes; countersigns this holder's heads.
        policy: what the holder allows.
        ledger: the holder's privacy account.
        audit: its audit log.
        load: reads and checks the records a study needs; called once per run.
        person: column that names the person, as the holder says; None: every row is a different person.
        directory: where accepted studies and the seeds of their sessions are kept, so that a restart can
            go on.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        *,
        name: str,
        identity: Identity,
        federation: str,
        coordinator_key: bytes,
        policy: Policy,
        ledger: Ledger,
        audit: AuditLog,
        load: Callable[[Study], Records],
        person: str | None,
        directory: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._federation, self._coordinator_key = federation, coordinator_key
        self._policy, self._ledger, self._load, self._person = policy, ledger, load, person
        self._books = Books(ledger=ledger, audit=audit)
        self._books.settle()  # what a crash kept from the log
        self._accepted = make_private_dir(directory / "accepted")
        self._offers = OfferLog(self._accepted / "offers.json", policy.new_studies_per_day, clock)
        self._aggregation = Aggregation(
            name=name,
            identity=identity,
            federation=federation,
            policy=policy,
            books=self._books,
            directory=directory / "sessions",
        )
        self._runs: dict[str, _Run] = {}
        self._tidy()

    def answer(self, question: Message) -> Message:
        """Answer one question.

        Raises:
            Refused: the books, the policy, the budget or the state of the run forbid it; nothing was
                computed. It stands in the audit log.
            BadInput: the study or the records are not what they must be; likewise.
        """
        try:
            if isinstance(question, _SEEN):
                self._books.require(question.heads)
            return self._answer(question)
        except (BadInput, Refused) as error:
            reason = {"code": decline_code(error)}
            if isinstance(error, Refused) and error.article:
                reason = {"code": error.code, "article": error.article}
            if isinstance(question, Offer):
                self._books.audit.append("declined", run=question.run, **reason)
            else:
                self._books.audit.append("refused", run=question.run, question=question.kind, **reason)
            raise

    def _answer(self, question: Message) -> Message:
        if isinstance(question, Offer):
            return self._accept(question)
        if isinstance(question, Close):
            return self._close(question)
        if isinstance(question, CountsRequest | GradientRequest):
            return self._release(question)
        if isinstance(question, MaskRequest):
            return self._mask(question)
        if isinstance(question, KeysRequest):
            return self._aggregation.keys(question, self._study(question.run, "distributed"))
        if isinstance(question, SharesRequest):
            return self._aggregation.shares(question, self._study(question.run, "distributed"))
        if isinstance(question, SurvivorsRequest | OpenRequest):
            return self._unmask(question)
        raise Refused(f"a holder does not answer {question.kind!r}", code="invalid")

    def _accept(self, offer: Offer) -> Accepted:
        """Check policy and records, end abandoned runs, reserve the whole run; accepting spends nothing."""
        self._witness(offer)
        if offer.version != MODEL_VERSION:
            raise Refused(
                f"the coordinator's version of models is {offer.version}; allowed: {MODEL_VERSION}, this"
                " holder's. Install the same version of assay at both",
                code="version",
            )
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
        if not self._books.audit.has("accepted", run=offer.run):
            self._books.audit.append("accepted", run=offer.run, study=study.digest)
        return Accepted(run=offer.run, pattern=training.pattern, heads=self._books.heads())

    def _witness(self, question: Offer | Close) -> None:
        """Keep the coordinator's signature that it has seen this holder's heads.

        Raises:
            Refused: code ``"invalid"``: it is not the coordinator's.
        """
        if not question.heads:
            return
        try:
            verify_countersignature(
                self._coordinator_key,
                federation=self._federation,
                holder=self.name,
                heads=Heads.parse(question.heads),
                signature=question.countersignature,
            )
        except Tampered as error:
            raise Refused(f"{error}; nothing was done", code="invalid") from None
        self._books.witnessed(question.heads, question.countersignature)

    def _require_same(self, offer: Offer) -> None:
        """Refuse to put another study under a run that was accepted before."""
        path = self._study_file(offer.run)
        if path.exists() and path.read_bytes() != offer.study.encode():
            raise Refused(f"run {offer.run} was accepted with another study; start a new run", code="changed")

    def _open(self, study: Study) -> LocalTraining:
        records = self._load(study)
        require_persons(records, self._policy)
        return LocalTraining(study, records)

    def _release(self, question: CountsRequest | GradientRequest) -> Release:
        """Release a sum with this holder's full noise: it may be seen by anybody."""
        run = self._run(question.run, "local")
        number, rounds, theta = 0, 0, _NO_THETA
        if isinstance(question, GradientRequest):
            number, rounds, theta = question.round, question.rounds, question.theta
        wanted = NoisySum.of(run.study, question.run, number, rounds)
        return release(
            self._books,
            wanted,
            compute=self._computation(wanted, run.training, rounds, theta),
            build=lambda values: Release(
                run=question.run,
                round=number,
                unit=wanted.mechanism.unit,
                values=values,
                heads=self._books.heads(),
            ),
        )

    def _mask(self, question: MaskRequest) -> Masked:
        """Release a sum with a share of the noise, under masks that fall away from the sum of all holders."""
        run = self._run(question.run, "distributed")
        context = self._aggregation.context(question, run.study)
        wanted = _part_of_sum(run.study, question, context)
        return release(
            self._books,
            wanted,
            compute=self._computation(wanted, run.training, question.rounds, question.theta),
            build=lambda values: self._aggregation.masked(
                question, run.study, context=context, values=values, unit=wanted.mechanism.unit
            ),
        )

    def _unmask(self, question: SurvivorsRequest | OpenRequest) -> Consent | Opened:
        """Help to open a round that this holder has answered; no records are needed for it."""
        study = self._study(question.run, "distributed")
        context = self._aggregation.context(question, study)
        require_released(self._books, _part_of_sum(study, question, context))
        if isinstance(question, SurvivorsRequest):
            return self._aggregation.consent(question, study, context=context)
        return self._aggregation.open(question, study, context=context)

    def _computation(
        self, wanted: NoisySum, training: LocalTraining, rounds: int, theta: Vector
    ) -> Callable[[], Integers]:
        """Return what computes a release; call it once it is charged.

        Raises:
            BadInput: ``theta`` is no model of the study.
            Refused: the number of rounds is another than the run began with (``"changed"``).
        """
        if wanted.round:
            self._require_rounds(wanted.run, rounds)
            training.require_model(theta, card=wanted.round == rounds + TALLIES)
        return lambda: training.noisy(
            number=wanted.round,
            rounds=rounds,
            theta=theta,
            mechanism=wanted.mechanism,
            charged=self._ledger.charged(wanted.run),
        )

    def _require_rounds(self, run: str, rounds: int) -> None:
        """Refuse another number of rounds than the run began with: it says what each round is and costs."""
        cost, last = RunCost.of(privacy_target(self._runs[run].study)), rounds + TALLIES
        for number, event in self._ledger.charged_rounds(run).items():
            if number > last or event != cost.event(number, rounds):
                raise Refused(f"the number of rounds of run {run} was fixed by its first", code="changed")

    def _close(self, question: Close) -> Closed:
        self._witness(question)
        self._end(question.run, question.outcome)
        return Closed(run=question.run, heads=self._books.heads())

    def _end(self, run: str, outcome: str) -> None:
        self._ledger.close_run(run=run, outcome=outcome)
        self._books.settle()
        self._runs.pop(run, None)
        self._study_file(run).unlink(missing_ok=True)
        self._aggregation.forget(run)

    def _tidy(self) -> None:
        """Remove accepted studies of runs that are over, after a crash between close and removal."""
        still_open = self._ledger.open_runs()
        for path in self._accepted.glob("*.toml"):
            if path.stem not in still_open:
                path.unlink(missing_ok=True)

    def _run(self, run: str, trust: str) -> _Run:
        """Return an accepted run with its records; they are read again after a restart."""
        study = self._study(run, trust)
        if run not in self._runs:
            self._runs[run] = _Run(study=study, training=self._open(study))
        return self._runs[run]

    def _study(self, run: str, trust: str) -> Study:
        """Return the study of an accepted run, if the question belongs to its trust.

        Raises:
            Refused: the run is not open here (``"unknown"``), is under another trust (``"trust"``), or the
                policy has become stricter meanwhile.
        """
        if run in self._runs:
            study = self._runs[run].study
        else:
            path = self._study_file(run)
            if not path.exists():
                raise Refused(f"run {run} was not accepted here, or is closed", code="unknown")
            study = parse_study(path.read_text(encoding="utf-8"), where="accepted study")
            admit(study, self._policy)
            require_same_person(study, self._person)
        if study.privacy.trust != trust:
            raise Refused(
                f"run {run} is under trust {study.privacy.trust!r}; the question is of trust {trust!r}",
                code="trust",
            )
        return study

    def _study_file(self, run: str) -> Path:
        return self._accepted / f"{run}.toml"


def _part_of_sum(
    study: Study, question: MaskRequest | SurvivorsRequest | OpenRequest, context: bytes
) -> NoisySum:
    """Return what a holder's part of a sum is.

    The noise is shared as if the tolerated holders added none: the shares of the others make up the whole.
    """
    return NoisySum.of(
        study,
        question.run,
        question.round,
        question.rounds,
        contributors=len(question.active) - study.privacy.tolerated,
        question=context.hex(),
    )


def decline_code(error: BadInput | Refused) -> str:
    """Return the word of :data:`DECLINE_CODES` that may leave for an error; the sentence stays here."""
    if isinstance(error, Refused):
        return error.code if error.code in DECLINE_CODES else "invalid"
    return "data" if isinstance(error, BadData) else "invalid"
