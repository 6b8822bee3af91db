"""Distributed trust: the coordinator's side of secure aggregation, one sum per round.

==================  ==================================================================================
every 32 rounds     KeysRequest -> Keys; the keys are stored; SharesRequest -> Shares; those are stored
every round         MaskRequest -> Masked from everybody that is still in
...                 who answered, their signatures and the sum of their masked values are stored
all answered        OpenRequest -> Opened: two exchanges
somebody missing    SurvivorsRequest -> Consent, then OpenRequest to those that consent
==================  ==================================================================================

After a crash the same questions go out again with the same bytes, and holders answer them with the same
bytes: what decides a question (holders, keys, shares, survivors) is stored before anybody sees it. A list of
survivors is never changed: holders open one list per round, so another would open nothing. Its masked sum is
stored with it: what holders have paid for is opened by any threshold of them, also where others of the list
have gone since.

Nothing is opened where fewer than the threshold answer, or where more holders than the study tolerates
took their share of the noise with them. The cryptography is :class:`assay.privacy.secagg.Tally`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models.schema import Study
from assay.privacy.cohort import fewest_holders
from assay.privacy.errors import Refused
from assay.privacy.messages import (
    Consent,
    Masked,
    MaskRequest,
    Message,
    Opened,
    OpenRequest,
    SurvivorsRequest,
)
from assay.privacy.secagg import Tally
from assay.server.records import Collected
from assay.server.sessions import Sessions, SessionSetup
from assay.server.sums import Aborted, Panel, Question, SessionAnswer, Summed, TooFewHolders

__all__ = ["SecureSums"]

Names = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Round:
    """One round of an open session.

    Attributes:
        tally: of the session.
        question: what is summed.
        active: names of the holders that are asked, sorted.
        theta_sha256: SHA-256 of the bytes of the question's ``theta``, 64 hexadecimal digits.
        context: 32 bytes that bind masks and signatures to all of these.
    """

    tally: Tally
    question: Question
    active: Names
    theta_sha256: str
    context: bytes

    @classmethod
    def of(cls, tally: Tally, question: Question, active: Names) -> _Round:
        digest = hashlib.sha256(question.theta.astype("<f8").tobytes())
        context = tally.context(
            round=question.round,
            rounds=question.rounds,
            question=digest.digest(),
            active=active,
        )
        return cls(
            tally=tally, question=question, active=active, theta_sha256=digest.hexdigest(), context=context
        )

    @property
    def number(self) -> int:
        return self.question.round

    @property
    def session(self) -> int:
        return self.tally.cohort.terms.session

    def opening(self, survivors: Names) -> dict[str, Any]:
        """Return what both messages about the opening of the round say of it."""
        return {
            "session": self.session,
            "round": self.number,
            "rounds": self.question.rounds,
            "active": list(self.active),
            "theta_sha256": self.theta_sha256,
            "survivors": list(survivors),
        }


class SecureSums:
    """Only sums are seen: every holder's values stay under masks that fall away together."""

    def __init__(
        self,
        panel: Panel,
        sessions: Sessions,
        *,
        study: Study,
        federation: str,
        roster: Mapping[str, bytes],
        minimum: int,
    ) -> None:
        """Build it.

        Args:
            panel: the holders of the run.
            sessions: what an earlier process of this run has kept.
            study: what is trained; its trust is distributed.
            federation: its identifier, 64 hexadecimal digits.
            roster: Ed25519 key (32 bytes) of every admitted holder by name.
            minimum: fewer answers than this end the run, whatever the threshold.
        """
        self._panel, self._sessions, self._answers = panel, sessions, minimum
        self._tolerated = study.privacy.tolerated
        self._asked = max(minimum, fewest_holders(self._tolerated))
        self._setup = SessionSetup(
            panel,
            sessions,
            study=study.digest,
            federation=federation,
            roster=roster,
            minimum=self._asked,
        )

    def noises(self, holders: int) -> float:
        """See :class:`assay.server.sums.Sums`: each share is 1 / (holders - tolerated) of one noise."""
        self._panel.require(0, holders, self._asked)
        return holders / (holders - self._tolerated)

    def collect(self, question: Question, active: Names) -> Summed:
        """See :class:`assay.server.sums.Sums`."""
        tally = self._setup.enter(question.round, active)
        active = tuple(name for name in active if name in tally.sharers)
        self._panel.require(question.round, len(active), max(self._asked, tally.threshold))
        now = _Round.of(tally, question, active)
        collected = self._sessions.collected(now.number) or self._mask(now)
        survivors = tuple(collected.sent)
        proofs = collected.sent if survivors == active else self._agree(now, survivors)
        opened = self._open(now, survivors, proofs)
        total, liars = self._unmask(now, collected, opened)
        for name in liars:
            self._panel.drop(now.number, name, "it opened a wrong share, or was sent one")
        left = tuple(name for name in opened if name not in liars)
        return Summed(total=total, shared=active, holders=survivors, active=left)

    def _mask(self, now: _Round) -> Collected:
        """Collect masked values and keep their sum; from here on it is the only one for the round.

        Raises:
            TooFewHolders: too few values came, or too much noise is missing.
        """
        request = MaskRequest(
            run=self._panel.run,
            session=now.session,
            round=now.number,
            rounds=now.question.rounds,
            active=list(now.active),
            theta=now.question.theta,
        )
        messages = dict.fromkeys(now.active, request)
        masked = {}
        for name, answer in self._ask(now, Masked, messages).items():
            problem = _unfit(now, name, answer)
            if problem is None:
                masked[name] = answer
            else:
                self._panel.drop(now.number, name, problem)
        self._panel.require(now.number, len(masked), max(self._answers, now.tally.threshold))
        self._require_noise(now, len(masked))
        total = now.tally.add({name: answer.values.astype(np.uint64) for name, answer in masked.items()})
        collected = Collected(
            run=self._panel.run,
            round=now.number,
            sent={name: answer.sent for name, answer in masked.items()},
            total=total.astype("<u8").tobytes(),
        )
        self._sessions.save_collected(collected)
        return collected

    def _require_noise(self, now: _Round, found: int) -> None:
        missing = len(now.active) - found
        if missing > self._tolerated:
            raise TooFewHolders(
                f"round {now.number}: {missing} of {len(now.active)} holders are missing, and their noise;"
                f" allowed: at most {self._tolerated} (privacy.tolerated). The run is aborted, nothing of the"
                " round is opened; start the holders and train again"
            )

    def _agree(self, now: _Round, survivors: Names) -> dict[str, str]:
        """Get the survivors' signatures of their list."""
        request = SurvivorsRequest(run=self._panel.run, **now.opening(survivors))
        consents = {}
        messages = dict.fromkeys(survivors, request)
        for name, answer in self._ask(now, Consent, messages).items():
            signature = bytes.fromhex(answer.signature)
            try:
                now.tally.cohort.require_consent(
                    name, round=now.number, context=now.context, survivors=survivors, signature=signature
                )
            except Refused as error:
                self._panel.drop(now.number, name, str(error))
            else:
                consents[name] = answer.signature
        self._panel.require(now.number, len(consents), now.tally.threshold)
        return consents

    def _open(self, now: _Round, survivors: Names, proofs: Mapping[str, str]) -> dict[str, bytes]:
        """Ask those who signed for their shares of the round."""
        signatures = b"".join(bytes.fromhex(signature) for signature in proofs.values())
        messages = {
            name: OpenRequest(
                run=self._panel.run,
                **now.opening(survivors),
                signers=list(proofs),
                blob=signatures + now.tally.ciphertexts_for(name, now.number, now.active),
            )
            for name in proofs
        }
        answers = self._ask(now, Opened, messages)
        self._panel.require(now.number, len(answers), now.tally.threshold)
        return {name: answer.shares for name, answer in answers.items()}

    def _unmask(
        self, now: _Round, collected: Collected, opened: Mapping[str, bytes]
    ) -> tuple[NDArray[np.int64], Names]:
        try:
            total, liars = now.tally.unmask_sum(
                np.frombuffer(collected.total, dtype="<u8").astype(np.uint64),
                round=now.number,
                context=now.context,
                active=now.active,
                survivors=tuple(collected.sent),
                opened=opened,
            )
        except Refused as error:
            raise Aborted(f"round {now.number}: {error}. The run is aborted") from None
        largest = now.question.largest
        length = float(np.linalg.norm(total.astype(np.float64))) * now.question.unit
        if largest and not length <= sum(largest[name] for name in collected.sent):
            raise Aborted(
                f"round {now.number}: the sum is larger than its persons can make it; a holder is broken or"
                " drowns the others, and under masks nobody can see which. The run is aborted"
            )
        return total, liars

    def _ask(
        self, now: _Round, kind: type[SessionAnswer], messages: Mapping[str, Message]
    ) -> dict[str, SessionAnswer]:
        return self._panel.ask_for(kind, now.number, messages, session=now.session)


def _unfit(now: _Round, name: str, answer: Masked) -> str | None:
    """Return why masked values cannot be used, or None."""
    if answer.values.size != now.question.size:
        return "the masked values are of another model"
    if answer.unit != now.question.unit:
        return "the masked values use another grid"
    try:
        signature = bytes.fromhex(answer.sent)
        now.tally.cohort.require_sent(name, round=now.number, context=now.context, signature=signature)
    except Refused as error:
        return str(error)
    return None
