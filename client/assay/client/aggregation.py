"""A holder's half of secure aggregation: whom it is summed with, what it masks, and the one list it opens.

:mod:`assay.privacy.secagg` has the protocol; here is what makes it safe in a process that crashes and with a
coordinator that lies. Everything a holder says is on its disk before it is said:

=====================  =================================================================================
seed of a session      before the keys made from it are sent; asked again, it sends the same keys
who takes part         before the shares for them are sent; another set in the same session is refused
what a round is about  the context (model, rounds, active holders) is charged with the round: masks for
                       another context do not exist
who survives a round   one list, in the ledger, before it is signed or opened: of every holder either the
                       share of its mask key or of its own mask is given, never both
=====================  =================================================================================

The holder checks by itself that enough noise is in every sum: a holder that is missing takes its share of
the noise with it, so no more than ``privacy.tolerated`` of the active holders may be.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from assay.client.books import Books
from assay.client.circle import Circle, CircleStore
from assay.client.policy import Policy, require_circle, require_count
from assay.client.release import Integers
from assay.models.schema import Study
from assay.privacy.errors import Refused
from assay.privacy.keys import SIGNATURE_BYTES, Identity, canonical_json
from assay.privacy.messages import (
    Consent,
    Keys,
    KeysRequest,
    Masked,
    MaskRequest,
    Opened,
    OpenRequest,
    Shares,
    SharesRequest,
    SurvivorsRequest,
)
from assay.privacy.secagg import ADVERT_BYTES, SHARE_BYTES, Member, Terms, threshold

__all__ = ["Aggregation"]


class Aggregation:
    """Answers the questions of secure aggregation, for runs that the caller knows to be accepted.

    Args:
        name: this holder's name.
        identity: its signing key.
        federation: identifier of the federation, 64 hexadecimal digits.
        policy: its own rules.
        books: its ledger and audit log.
        directory: where the session files lie.
    """

    def __init__(
        self, *, name: str, identity: Identity, federation: str, policy: Policy, books: Books, directory: Path
    ) -> None:
        self._name, self._identity, self._federation = name, identity, federation
        self._policy, self._books, self._store = policy, books, CircleStore(directory)
        self._store.keep_only(books.ledger.open_runs())
        # Slow to make: every holder's advert is verified and its keys are agreed on.
        self._members: dict[tuple[str, int], Member] = {}

    def keys(self, question: KeysRequest, study: Study) -> Keys:
        """Begin a session, or repeat how it began.

        Raises:
            Refused: the run is over (``"closed"``), the holders are not those this one agrees to
                (``"holders"``), or others than the session or the run began with (``"changed"``).
        """
        keys = {name: bytes.fromhex(key) for name, key in question.holders.items()}
        require_circle(study, self._policy, keys, name=self._name, public=self._identity.public)
        self._require_same_keys(question.run, keys)
        circle = self._store.load(question.run, question.session)
        if circle is None:
            if question.run not in self._books.ledger.open_runs():
                raise Refused(f"run {question.run} is closed; no session is begun for it", code="closed")
            circle = Circle(keys=keys, seed=os.urandom(32))
            self._store.save(question.run, question.session, circle)
        elif circle.keys != keys:
            raise Refused(_another("holders", question), code="changed")
        member = self._member(question.run, question.session, study, circle)
        return Keys(run=question.run, session=question.session, advert=member.advert())

    def shares(self, question: SharesRequest, study: Study) -> Shares:
        """Fix who takes part in a session and give them their shares, or repeat it.

        Raises:
            Refused: too few take part (``"holders"``), an advert is not its holder's (``"aggregation"``),
                or they are others than before (``"changed"``).
        """
        run, session = question.run, question.session
        circle = self._begun(run, session)
        require_count(study, self._policy, len(question.names))
        adverts = dict(zip(question.names, _split(question.adverts, ADVERT_BYTES), strict=False))
        if len(question.adverts) != ADVERT_BYTES * len(question.names) or self._name not in adverts:
            raise Refused("the adverts are not one of each holder, this one too", code="aggregation")
        if circle.adverts and circle.adverts != adverts:
            raise Refused(_another("adverts", question), code="changed")
        if not circle.adverts:
            # Verified before it is kept: what does not verify must not fix the session.
            circle = replace(circle, adverts=adverts)
            self._members[run, session] = self._make(run, session, study, circle)
            self._books.audit.append("session", run=run, session=session, holders=_digest(question.names))
            self._store.save(run, session, circle)
        shares = self._member(run, session, study, circle).shares()
        return Shares(run=run, session=session, shares=shares)

    def context(self, question: MaskRequest | SurvivorsRequest | OpenRequest, study: Study) -> bytes:
        """Check with whom a round is summed; return what its masks and signatures are bound to, 32 bytes.

        Raises:
            Refused: the session is not set up (``"unknown"``) or not the round's (``"aggregation"``), or the
                active holders are not a part of it that is large enough (``"holders"``).
        """
        circle = self._joined(question.run, question.session)
        active = question.active
        if self._name not in active or not set(active) <= set(circle.adverts):
            raise Refused("the active holders are not of this session, with this one", code="holders")
        require_count(study, self._policy, len(active))
        _require_threshold(len(active), circle)
        # Refuses a round that another session serves.
        return self._member(question.run, question.session, study, circle).context(
            round=question.round, rounds=question.rounds, question=_model(question), active=active
        )

    def masked(
        self, question: MaskRequest, study: Study, *, context: bytes, values: Integers, unit: float
    ) -> Masked:
        """Put the round's masks on this holder's integers; the same integers always give the same bytes."""
        member = self._ready(question, study)
        return Masked(
            run=question.run,
            session=question.session,
            round=question.round,
            unit=unit,
            sent=member.sent(question.round, context).hex(),
            heads=self._books.heads(),
            values=member.masked(values, round=question.round, context=context, active=question.active),
        )

    def consent(self, question: SurvivorsRequest, study: Study, *, context: bytes) -> Consent:
        """Sign who survives a round, once it stands in the ledger that nobody else does.

        Raises:
            Refused: too few survive (``"holders"``), or others did before (``"changed"``).
        """
        self._settle(question, study)
        signature = self._ready(question, study).consent(question.round, context, question.survivors)
        return Consent(
            run=question.run, session=question.session, round=question.round, signature=signature.hex()
        )

    def open(self, question: OpenRequest, study: Study, *, context: bytes) -> Opened:
        """Give the shares that take the masks off the survivors' sum.

        Raises:
            Refused: as :meth:`consent`, or the proofs or shares that others sent are not theirs
                (``"aggregation"``).
        """
        peers = [name for name in question.active if name != self._name]
        proofs_end = SIGNATURE_BYTES * len(question.signers)
        if len(question.blob) != proofs_end + SHARE_BYTES * len(peers):
            raise Refused(
                "the question does not hold a proof of every signer and a share of every other active holder",
                code="aggregation",
            )
        proofs = _split(question.blob[:proofs_end], SIGNATURE_BYTES)
        ciphertexts = _split(question.blob[proofs_end:], SHARE_BYTES)
        self._settle(question, study)
        shares = self._ready(question, study).open(
            round=question.round,
            context=context,
            active=question.active,
            survivors=question.survivors,
            tolerated=study.privacy.tolerated,
            proofs=dict(zip(question.signers, proofs, strict=True)),
            ciphertexts=dict(zip(peers, ciphertexts, strict=True)),
        )
        return Opened(run=question.run, session=question.session, round=question.round, shares=shares)

    def forget(self, run: str) -> None:
        """Remove the seeds of a run that is over: nobody takes its masks off any more."""
        self._store.forget(run)
        for key in [key for key in self._members if key[0] == run]:
            del self._members[key]

    def _settle(self, question: SurvivorsRequest | OpenRequest, study: Study) -> None:
        """Check the survivors of a round and write them down, durably, before anything depends on them."""
        self._require_survivors(question, study)
        self._books.ledger.open_round(
            run=question.run, round=question.round, survivors=_digest(question.survivors)
        )
        self._books.settle()

    def _require_survivors(self, question: SurvivorsRequest | OpenRequest, study: Study) -> None:
        active, survivors = question.active, question.survivors
        if self._name not in survivors or not set(survivors) <= set(active):
            raise Refused(
                "the survivors are not of the round's active holders, with this one", code="holders"
            )
        missing, tolerated = len(active) - len(survivors), study.privacy.tolerated
        if not missing <= tolerated:
            raise Refused(
                f"{missing} of {len(active)} active holders are missing; allowed: {tolerated}"
                " (privacy.tolerated), or the sum holds too little noise",
                code="holders",
            )
        if not len(survivors) >= self._policy.minimum_holders:
            raise Refused(
                f"{len(survivors)} holders would be summed; allowed: at least"
                f" {self._policy.minimum_holders} (policy.minimum_holders)",
                code="holders",
            )
        _require_threshold(len(survivors), self._joined(question.run, question.session))

    def _require_same_keys(self, run: str, keys: Mapping[str, bytes]) -> None:
        """Refuse a holder whose key is another than in an earlier session of the run: it is somebody else."""
        for earlier in self._store.sessions(run).values():
            for name in sorted(keys.keys() & earlier.keys.keys()):
                if keys[name] != earlier.keys[name]:
                    raise Refused(f"the key of holder {name!r} changed during run {run}", code="changed")

    def _begun(self, run: str, session: int) -> Circle:
        circle = self._store.load(run, session)
        if circle is None:
            raise Refused(f"session {session} of run {run} was not begun here", code="unknown")
        return circle

    def _joined(self, run: str, session: int) -> Circle:
        circle = self._begun(run, session)
        if not circle.adverts:
            raise Refused(
                f"session {session} of run {run} is not set up: no shares were made", code="unknown"
            )
        return circle

    def _ready(self, question: MaskRequest | SurvivorsRequest | OpenRequest, study: Study) -> Member:
        circle = self._joined(question.run, question.session)
        return self._member(question.run, question.session, study, circle)

    def _member(self, run: str, session: int, study: Study, circle: Circle) -> Member:
        if (run, session) not in self._members:
            self._members[run, session] = self._make(run, session, study, circle)
        return self._members[run, session]

    def _make(self, run: str, session: int, study: Study, circle: Circle) -> Member:
        terms = Terms(
            federation=self._federation, run=run, session=session, study=study.digest, keys=circle.keys
        )
        member = Member(name=self._name, terms=terms, seed=circle.seed, identity=self._identity)
        if circle.adverts:
            member.join(circle.adverts)
        return member


def _require_threshold(holders: int, circle: Circle) -> None:
    least = threshold(len(circle.adverts))
    if not holders >= least:
        raise Refused(
            f"{holders} holders would be summed; allowed: at least {least} of the session's"
            f" {len(circle.adverts)}",
            code="holders",
        )


def _model(question: MaskRequest | SurvivorsRequest | OpenRequest) -> bytes:
    """Return the SHA-256 of the parameters a round is about, 32 bytes."""
    if isinstance(question, MaskRequest):
        return hashlib.sha256(question.theta.astype("<f8").tobytes()).digest()
    return bytes.fromhex(question.theta_sha256)


def _another(what: str, question: KeysRequest | SharesRequest) -> str:
    return f"session {question.session} of run {question.run} began with other {what}"


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256(canonical_json(list(names))).hexdigest()


def _split(blob: bytes, width: int) -> list[bytes]:
    return [blob[at : at + width] for at in range(0, len(blob), width)]
