"""Real holders, asked one by one by a coordinator that follows the protocol just as far as a test wants."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from assay.client.holder import Holder
from assay.client.policy import Policy
from assay.models.encoding import Grid
from assay.models.study import parse_study
from assay.privacy.auditlog import AuditLog
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger
from assay.privacy.messages import (
    Close,
    KeysRequest,
    MaskRequest,
    Offer,
    OpenRequest,
    SharesRequest,
    SurvivorsRequest,
)
from assay.privacy.names import federation_id
from assay.privacy.secagg import SESSION_ROUNDS, Tally, Terms

RUN = "5a" * 16
NONE = np.zeros(1)


def study_text(*, features, values, epsilon=2.0, rounds=4, person=False, groups=0, pairs=0):
    """A study of ``features`` integer features with ``values`` values each, for a sum over holders.

    Args:
        groups: declared groups of an audited column; none without.
        pairs: of the first feature with each of so many others, that have points together.
    """
    head = """\
[study]
name = "proof"
purpose = "consumer_credit"
contexts = ["credit_card_application"]

[outcome]
column = "bad"
meaning = "missed a payment"
"""
    inputs = "".join(
        f"""
[[features]]
name = "f{number}"
column = "F{number}"
component = "spending"
kind = "integer"
domain = [0, {values - 1}]
"""
        for number in range(features)
    )
    who = '\n[person]\ncolumn = "PERSON"\n' if person else ""
    levels = ", ".join(f'"g{number}"' for number in range(groups))
    audited = f'\n[fairness]\ncolumns = ["GROUP"]\ngroups = {{ GROUP = [{levels}] }}\n' if groups else ""
    together = "".join(f'\n[[interactions]]\nfeatures = ["f0", "f{n}"]\n' for n in range(1, pairs + 1))
    tail = f"""
[training]
rounds = {rounds}

[privacy]
epsilon = {epsilon}
delta = 1e-6
trust = "distributed"
tolerated = 1
"""
    return head + who + inputs + together + audited + tail


def permissive(study):
    """A policy that allows the study and nothing beyond it."""
    privacy = study.privacy
    return Policy(
        purposes=(study.purpose,),
        components=tuple({feature.component for feature in study.features}),
        epsilon_per_run=privacy.epsilon,
        epsilon_per_study=privacy.epsilon,
        epsilon_per_year=privacy.epsilon,
        delta=privacy.delta,
        minimum_persons=1,
        new_studies_per_day=1_000_000,
    )


def model_hash(question: MaskRequest) -> bytes:
    """Return how a round's context names its model."""
    return hashlib.sha256(question.theta.astype("<f8").tobytes()).digest()


def about(question: MaskRequest) -> dict:
    """Return the fields by which the later questions of a round say which round they mean."""
    return {
        "run": question.run,
        "session": question.session,
        "round": question.round,
        "rounds": question.rounds,
        "active": question.active,
        "theta_sha256": model_hash(question).hex(),
    }


class Coordinator:
    """Asks real holders, without a network between, and takes the masks off with the real tally.

    Attributes:
        names: of the holders, sorted.
        study, grid: what is trained.
        ledgers, logs: each holder's, in memory.
        tallies: by session.
    """

    def __init__(self, folder: Path, text: str, data: dict, *, person: str | None = None) -> None:
        self.study, self.names = parse_study(text), sorted(data)
        self.grid = Grid.of(self.study)
        self.identity = Identity.generate()
        self.federation = federation_id(self.identity.public)
        self.identities = {name: Identity.generate() for name in self.names}
        self.logs = {name: AuditLog.open(None, self.identities[name]) for name in self.names}
        self.ledgers = {
            name: Ledger.open(":memory:", self.identities[name], log_head=self.logs[name].head)
            for name in self.names
        }
        self.tallies: dict[int, Tally] = {}
        self.folder, self.person, self.data = folder, person, data
        self.holders = {name: self.start(name) for name in self.names}

    def start(self, name: str) -> Holder:
        """Start a holder as its daemon does, on the ledger it has."""
        return Holder(
            name=name,
            policy=permissive(self.study),
            ledger=self.ledgers[name],
            load=lambda _: self.data[name],
            person=self.person,
            directory=self.folder / name,
            identity=self.identities[name],
            federation=self.federation,
            coordinator_key=self.identity.public,
            audit=self.logs[name],
        )

    def restart(self) -> None:
        """Start all holders again: what they only remembered is gone."""
        self.holders = {name: self.start(name) for name in self.names}

    def ask(self, name, question):
        """Ask one holder; a refusal is raised."""
        return self.holders[name].answer(question)

    def accept(self) -> Coordinator:
        """Offer the study to everybody; all must accept."""
        for name in self.names:
            self.ask(name, Offer(run=RUN, study=self.study.text))
        return self

    def close(self) -> None:
        """End the run."""
        for name in self.names:
            self.ask(name, Close(run=RUN, outcome="done"))

    def session(self, number: int) -> Tally:
        """Set a session up with everybody, once."""
        if number not in self.tallies:
            keys = {name: identity.public for name, identity in self.identities.items()}
            holders = {name: key.hex() for name, key in keys.items()}
            question = KeysRequest(run=RUN, session=number, holders=holders)
            adverts = {name: self.ask(name, question).advert for name in self.names}
            terms = Terms(
                federation=self.federation, run=RUN, session=number, study=self.study.digest, keys=keys
            )
            tally = Tally(terms, adverts)
            joined = b"".join(adverts[name] for name in self.names)
            question = SharesRequest(run=RUN, session=number, names=self.names, adverts=joined)
            for name in self.names:
                tally.add_shares(name, self.ask(name, question).shares)
            self.tallies[number] = tally
        return self.tallies[number]

    def question(self, number: int, *, rounds: int, theta=None, active=None) -> MaskRequest:
        """Return the question of a round."""
        theta = np.zeros(self.grid.width) if theta is None else theta
        return MaskRequest(
            run=RUN,
            session=number // SESSION_ROUNDS,
            round=number,
            rounds=rounds if number else 0,
            active=list(active or self.names),
            theta=theta if number else NONE,
        )

    def context(self, question: MaskRequest) -> bytes:
        """Return what masks and signatures of a round are bound to."""
        return self.session(question.session).context(
            round=question.round,
            rounds=question.rounds,
            question=model_hash(question),
            active=question.active,
        )

    def masked(self, question: MaskRequest, *, missing=()) -> dict:
        """Ask everybody that is active and not missing for a round."""
        self.session(question.session)
        return {name: self.ask(name, question) for name in question.active if name not in missing}

    def consent(self, name, question: MaskRequest, survivors) -> bytes:
        """Ask one holder to sign the list of survivors."""
        asked = SurvivorsRequest(**about(question), survivors=list(survivors))
        return bytes.fromhex(self.ask(name, asked).signature)

    def consents(self, question: MaskRequest, survivors) -> dict[str, bytes]:
        """Ask the survivors to sign their list."""
        return {name: self.consent(name, question, survivors) for name in survivors}

    def open_one(self, name, question: MaskRequest, survivors, proofs: dict[str, bytes]) -> bytes:
        """Ask one holder to open the survivors' sum."""
        others = self.session(question.session).ciphertexts_for(name, question.round, question.active)
        asked = OpenRequest(
            **about(question),
            survivors=list(survivors),
            signers=sorted(proofs),
            blob=b"".join(proofs[signer] for signer in sorted(proofs)) + others,
        )
        return self.ask(name, asked).shares

    def open(self, question: MaskRequest, survivors, proofs: dict[str, bytes]) -> dict[str, bytes]:
        """Ask the survivors to open their sum."""
        return {name: self.open_one(name, question, survivors, proofs) for name in survivors}

    def unmask(self, question: MaskRequest, masked: dict, opened: dict[str, bytes]):
        """Return the sum, int64."""
        total, liars = self.session(question.session).unmask(
            round=question.round,
            context=self.context(question),
            active=question.active,
            masked={name: answer.values.astype(np.uint64) for name, answer in masked.items()},
            opened=opened,
        )
        assert liars == ()
        return total

    def sum(self, number: int, *, rounds: int = 1, theta=None, active=None, missing=()):
        """Take one round through all its exchanges and return the sum of those that are not missing."""
        question = self.question(number, rounds=rounds, theta=theta, active=active)
        masked = self.masked(question, missing=missing)
        survivors = sorted(masked)
        if missing:
            proofs = self.consents(question, survivors)
        else:
            proofs = {name: bytes.fromhex(answer.sent) for name, answer in masked.items()}
        return self.unmask(question, masked, self.open(question, survivors, proofs))
