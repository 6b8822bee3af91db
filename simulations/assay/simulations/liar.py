"""A simulated coordinator that lies: what it sees, what it asks, and what the holders made of it.

A liar is a :class:`~assay.server.courier.Courier` between an honest run and honest holders. It sees what any
coordinator sees (keys, encrypted shares, masked values), keeps it, and at one point of the run asks what it
must not ask, with whatever signatures and shares it has. What the holders refuse, they refuse by themselves.
What a coordinator would have learned, it works out by the coordinator's own arithmetic
(:class:`assay.privacy.secagg.Tally`). The lies themselves are in :mod:`assay.simulations.lies`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models.schema import Study
from assay.privacy.errors import Refused
from assay.privacy.messages import (
    Declined,
    GradientRequest,
    KeysRequest,
    Masked,
    MaskRequest,
    Message,
    Opened,
    OpenRequest,
    Release,
    Shares,
    SharesRequest,
)
from assay.privacy.secagg import ADVERT_BYTES, Tally, Terms
from assay.server.courier import Courier, NoAnswer
from assay.server.sums import Answers

__all__ = ["Liar", "about", "digest", "of_round_1"]


class Liar(Courier):
    """A coordinator that keeps what it sees and lies once.

    Attributes:
        study: what is trained.
        done: whether it has lied.
        first: what an honest coordinator asks in round 1, by holder; empty before.
        answers: what came of that.
        tally: the session of masks that is open; None before the first.
        timeout: seconds that it waits for answers.
        learned: what it knows or has got by lying that it should not have, in words; empty: nothing.
        victim: whom alone it tried to harm; empty: everybody.
        vector: int64, values of one holder that it has taken out of a sum; None where it has none.
    """

    study: Study

    def __init__(self, *settings: Any, **named: Any) -> None:
        super().__init__(*settings, **named)
        self.done, self.timeout, self.learned, self.victim = False, 1.0, "", ""
        self.first: dict[str, Message] = {}
        self.answers: Answers = {}
        self.tally: Tally | None = None
        self.vector: NDArray[np.int64] | None = None
        self._terms: Terms | None = None
        self._probes: dict[tuple[int, str, str], list[str]] = {}

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> Answers:
        """See :class:`Courier`; here is where it lies."""
        self.timeout = timeout
        question = next(iter(messages.values()), None)
        answers = None if self.done or question is None else self.lie(question, messages)
        if answers is None:
            answers = super().ask(messages, timeout=timeout)
        self._see(question, messages, answers)
        return answers

    def lie(self, question: Message, messages: Mapping[str, Message]) -> Answers | None:
        """Lie if this is the moment, and set ``done``.

        Args:
            question: one of the messages.
            messages: what an honest coordinator would send now.

        Returns:
            Answers to use in place of those to ``messages``; None: ask them.
        """
        raise NotImplementedError

    def told(self) -> dict[str, Any]:
        """Return what it asked that it must not ask, and what it got."""
        return {
            "told": self.done,
            "victim": self.victim or None,
            "learned": self.learned or None,
            "answers": [
                {"round": number, "question": what, "answer": answer, "holders": holders}
                for (number, what, answer), holders in self._probes.items()
            ],
        }

    # What a coordinator sees -----------------------------------------------------------------------

    def _see(self, question: Message | None, messages: Mapping[str, Message], answers: Answers) -> None:
        if isinstance(question, KeysRequest):
            keys = {name: bytes.fromhex(key) for name, key in question.holders.items()}
            self._terms = self.terms_of(question.run, question.session, keys)
        elif isinstance(question, SharesRequest) and self._terms is not None:
            pieces = [
                question.adverts[at : at + ADVERT_BYTES]
                for at in range(0, len(question.adverts), ADVERT_BYTES)
            ]
            self.tally = Tally(self._terms, dict(zip(question.names, pieces, strict=True)))
            for name, answer in answers.items():
                if isinstance(answer, Shares) and name in self.tally.names:
                    self.tally.add_shares(name, answer.shares)
        elif of_round_1(question) and not self.first:
            self.first, self.answers = dict(messages), answers

    def terms_of(self, run: str, session: int, keys: Mapping[str, bytes]) -> Terms:
        """Return the terms of a session with these holders."""
        return Terms(federation=self.federation, run=run, session=session, study=self.study.digest, keys=keys)

    # What a liar does ----------------------------------------------------------------------------------

    def probe(self, what: str, messages: Mapping[str, Message]) -> Answers:
        """Ask, signed and sealed as ever, and note who answered what."""
        answers = super().ask(messages, timeout=self.timeout) if messages else {}
        for name, answer in sorted(answers.items()):
            number = getattr(messages[name], "round", 0)
            self.note(what, number, name, _words(answer, self.answers.get(name)))
        return answers

    def note(self, what: str, number: int, name: str, answer: str) -> None:
        """Note what a holder answered."""
        self._probes.setdefault((number, what, answer), []).append(name)

    def open_round(
        self,
        tally: Tally,
        asked: Mapping[str, MaskRequest],
        survivors: Sequence[str],
        proofs: Mapping[str, str],
        what: str,
    ) -> dict[str, bytes]:
        """Ask survivors to open a round, each about the question that it was asked; return their shares."""
        signatures = b"".join(bytes.fromhex(proofs[name]) for name in sorted(proofs))
        messages: dict[str, Message] = {}
        for name in (each for each in survivors if proofs and each in asked):
            question = asked[name]
            ciphertexts = tally.ciphertexts_for(name, question.round, question.active)
            messages[name] = OpenRequest(
                run=question.run,
                **about(question, survivors),
                signers=sorted(proofs),
                blob=signatures + ciphertexts,
            )
        answers = self.probe(what, messages)
        return {name: answer.shares for name, answer in answers.items() if isinstance(answer, Opened)}

    def unmasked(
        self, tally: Tally, question: MaskRequest, masked: Mapping[str, Masked], opened: Mapping[str, bytes]
    ) -> NDArray[np.int64] | None:
        """Return the sum of what was masked, or None where too little of it was opened."""
        context = tally.context(
            round=question.round, rounds=question.rounds, question=digest(question), active=question.active
        )
        try:
            total, _ = tally.unmask(
                round=question.round,
                context=context,
                active=question.active,
                masked={name: answer.values for name, answer in masked.items()},
                opened=opened,
            )
        except Refused:
            return None
        return total


def of_round_1(question: Message | None) -> bool:
    """Return whether it asks for the first sum of gradients."""
    return isinstance(question, (GradientRequest, MaskRequest)) and question.round == 1


def about(question: MaskRequest, survivors: Sequence[str]) -> dict[str, Any]:
    """Return by what the opening of a round is named, for a holder that was asked ``question``."""
    return {
        "session": question.session,
        "round": question.round,
        "rounds": question.rounds,
        "active": list(question.active),
        "theta_sha256": digest(question).hex(),
        "survivors": list(survivors),
    }


def digest(question: MaskRequest) -> bytes:
    """Return the SHA-256 of the parameters that are asked about, 32 bytes."""
    return hashlib.sha256(question.theta.astype("<f8").tobytes()).digest()


def _words(answer: Message | NoAnswer, before: Message | NoAnswer | None) -> str:
    if isinstance(answer, Declined):
        return f"refused ({answer.code})"
    if isinstance(answer, NoAnswer):
        return f"no answer: {answer.reason}"
    if isinstance(answer, Release) and isinstance(before, Release):
        same = answer.round == before.round and np.array_equal(answer.values, before.values)
        return "answered with the bytes of before" if same else "answered anew"
    return f"answered ({answer.kind})"
