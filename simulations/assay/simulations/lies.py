"""The lies of a simulated coordinator, one class each; what it could win by them, and how it goes about it.

``docs/threats.md`` says what stands against each. A lie that finds no moment for itself (the run ended before
it) is not told.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from assay.privacy.accounting import TALLIES
from assay.privacy.keys import Identity
from assay.privacy.messages import (
    MAX_ROUNDS,
    Accepted,
    Close,
    Consent,
    GradientRequest,
    Keys,
    KeysRequest,
    Masked,
    MaskRequest,
    Message,
    Offer,
    Release,
    Shares,
    SharesRequest,
    SurvivorsRequest,
)
from assay.privacy.secagg import SESSION_ROUNDS, SHARE_BYTES, Member, Tally, Terms
from assay.privacy.wire import seal
from assay.server.courier import COORDINATOR, Courier
from assay.server.exchange import exchange
from assay.server.sums import Answers
from assay.simulations.faults import LIES
from assay.simulations.liar import Liar, about, digest, of_round_1

__all__ = ["LIARS"]

_ASIDE = 0.5  # how far aside parameters are moved, in log-odds


class _ChangedTheta(Liar):
    """Pasquini et al. 2022: one holder gets a model of its own, so that the sum shows its gradient."""

    def lie(self, question: Message, messages: Mapping[str, Message]) -> Answers | None:
        if not of_round_1(question):
            return None
        self.done, self.victim = True, min(messages)
        victim = self.victim
        asked = {**messages, victim: _moved(messages[victim])}
        answers = self.probe("a sum, one holder at other parameters", asked)
        if isinstance(question, GradientRequest):
            if isinstance(answers[victim], Release):
                self.learned = f"a sum of {victim} at other parameters, under all of its noise"
            return answers
        masked = {name: answer for name, answer in answers.items() if isinstance(answer, Masked)}
        if self.tally is None or len(masked) < len(messages):
            return answers
        proofs = {name: answer.sent for name, answer in masked.items()}
        of_masks = {name: each for name, each in asked.items() if isinstance(each, MaskRequest)}
        opened = self.open_round(self.tally, of_masks, sorted(masked), proofs, "to open it")
        if len(opened) >= self.tally.threshold:
            self.learned = "the opening of a round in which not everybody was asked the same"
        return answers


class _TwoLists(Liar):
    """Two sums of one round that differ by one holder are that holder's own values."""

    def lie(self, question: Message, messages: Mapping[str, Message]) -> Answers | None:
        if not of_round_1(question) or self.tally is None:
            return None
        self.done = True
        answers = Courier.ask(self, messages, timeout=self.timeout)
        masked = {name: answer for name, answer in answers.items() if isinstance(answer, Masked)}
        asked = {name: each for name, each in messages.items() if isinstance(each, MaskRequest)}
        if len(masked) < len(asked):
            return answers  # somebody is really missing: there is one list only
        everybody, tally = sorted(masked), self.tally
        proofs = {name: masked[name].sent for name in everybody}
        opened = self.open_round(tally, asked, everybody, proofs, "to open the round for everybody")
        whole = self.unmasked(tally, asked[everybody[0]], masked, opened)
        self.victim, rest = everybody[0], everybody[1:]
        first = asked[rest[0]]
        agree = SurvivorsRequest(run=first.run, **about(first, rest))
        agreed = self.probe("to sign a list without one holder", dict.fromkeys(rest, agree))
        consents = {name: each.signature for name, each in agreed.items() if isinstance(each, Consent)}
        opened = self.open_round(tally, asked, rest, consents, "to open the round without that holder")
        part = self.unmasked(tally, first, {name: masked[name] for name in rest}, opened)
        if whole is not None and part is not None:
            self.vector = whole - part
            self.learned = f"the values of {self.victim} in round 1, with its share of the noise alone"
        return answers


class _AsksAgain(Liar):
    """Two answers to one round have two noises, and their mean has half."""

    def lie(self, question: Message, messages: Mapping[str, Message]) -> Answers | None:
        if not _ends(question) or not self.first:
            return None
        self.done = True
        again = {name: _moved(each) for name, each in self.first.items() if name in messages}
        for name, answer in self.probe("round 1 again, at other parameters", again).items():
            before = self.answers.get(name)
            if not isinstance(answer, (Masked, Release)) or not isinstance(before, (Masked, Release)):
                continue
            if not np.array_equal(answer.values, before.values):
                self.learned = "a second answer to round 1"
        return None


class _MoreRounds(Liar):
    """What was not reserved is not paid for."""

    def lie(self, question: Message, messages: Mapping[str, Message]) -> Answers | None:
        if not _ends(question) or not self.first:
            return None
        self.done = True
        more = {name: _one_more(each) for name, each in self.first.items() if name in messages}
        answers = self.probe("a round after the last", more)
        if any(isinstance(answer, (Masked, Release)) for answer in answers.values()):
            self.learned = "a sum beyond those that were reserved"
        return None


class _OtherStudy(Liar):
    """A study fixes bound, noise and promise: another one under the same run would be another promise."""

    def lie(self, question: Message, messages: Mapping[str, Message]) -> Answers | None:
        if not of_round_1(question):
            return None
        from assay.simulations.engine import with_epsilon  # late: the engine is built on this module

        self.done, run, epsilon = True, question.run, self.study.privacy.epsilon
        answers: list[Any] = []
        for factor, what in ((2.0, "double"), (0.5, "half")):
            offer = Offer(run=run, study=with_epsilon(self.study.text, factor * epsilon))
            answers += self.probe(f"the run with {what} its epsilon", dict.fromkeys(messages, offer)).values()
        wider = {name: _wider(each) for name, each in messages.items()}
        answers += self.probe("a sum at the parameters of another model", wider).values()
        if any(isinstance(answer, (Accepted, Masked, Release)) for answer in answers):
            self.learned = "an answer under a study that the run did not begin with"
        return None


class _AnotherRun(Liar):
    """The budget of a study is one for all its runs."""

    def lie(self, question: Message, messages: Mapping[str, Message]) -> Answers | None:
        if not _ends(question):
            return None
        self.done = True
        answers = Courier.ask(self, messages, timeout=self.timeout)
        offer = Offer(run=secrets.token_hex(16), study=self.study.text)
        again = self.probe("the same study in a new run", dict.fromkeys(messages, offer))
        if any(isinstance(answer, Accepted) for answer in again.values()):
            self.learned = "a second run on a budget that was spent"
        return answers


class _Unsigned(Liar):
    """What anybody on the way could send."""

    def lie(self, question: Message, messages: Mapping[str, Message]) -> Answers | None:
        if not of_round_1(question):
            return None
        self.done, stranger, names = True, Identity.generate(), sorted(messages)
        own = {name: self._frame(sender=COORDINATOR, receiver=name) for name in names}
        good = {name: seal(messages[name], own[name], self._identity) for name in names}
        self._throw(
            "a question with a stranger's signature",
            question,
            {name: seal(messages[name], own[name], stranger) for name in names},
        )
        self._throw(
            "a question with its last byte changed",
            question,
            {name: frame[:-1] + bytes([frame[-1] ^ 1]) for name, frame in good.items()},
        )
        self._throw(
            "a question meant for another holder",
            question,
            dict(zip(names, [good[name] for name in [*names[1:], names[0]]], strict=True)),
        )
        return None

    def _throw(self, what: str, question: Message, frames: Mapping[str, bytes]) -> None:
        replies = exchange(self._grid, frames, "train", self.timeout)
        for name, reply in sorted(replies.items()):
            answered = isinstance(reply, bytes)
            self.note(
                what, getattr(question, "round", 0), name, "answered" if answered else f"no answer: {reply!s}"
            )
            if answered:
                self.learned = f"an answer to {what}"


class _FakeHolder(Liar):
    """Holders that the coordinator made up: it knows their values, and so what is left of the sum."""

    def lie(self, question: Message, messages: Mapping[str, Message]) -> Answers | None:
        if not isinstance(question, KeysRequest):
            return None
        self.done, self.victim = True, min(question.holders)
        victim = self.victim
        made_up = {name: Identity.generate() for name in question.holders if name != victim}
        keys = {name: each.public for name, each in made_up.items()}
        keys[victim] = bytes.fromhex(question.holders[victim])
        named = replace(question, holders={name: key.hex() for name, key in keys.items()})
        answer = self.probe("keys for a session with made-up holders", {victim: named})[victim]
        if isinstance(answer, Keys):
            self._go_on(victim, answer, made_up, self.terms_of(question.run, question.session, keys))
        return None

    def _go_on(self, victim: str, keys: Keys, made_up: Mapping[str, Identity], terms: Terms) -> None:
        """Play all other holders, whose values are zero, through round 0."""
        members = {
            name: Member(name=name, terms=terms, seed=secrets.token_bytes(32), identity=identity)
            for name, identity in made_up.items()
        }
        adverts = {name: member.advert() for name, member in members.items()} | {victim: keys.advert}
        names = sorted(adverts)
        ask = SharesRequest(
            run=keys.run, session=keys.session, names=names, adverts=b"".join(adverts[name] for name in names)
        )
        shares = self.probe("its shares for them", {victim: ask})[victim]
        question = MaskRequest(
            run=keys.run, session=keys.session, round=0, rounds=0, active=names, theta=np.zeros(1)
        )
        masked = self.probe("a sum with them", {victim: question})[victim]
        if not isinstance(shares, Shares) or not isinstance(masked, Masked):
            return
        tally = Tally(terms, adverts)
        tally.add_shares(victim, shares.shares)
        for name, member in members.items():
            member.join(adverts)
            tally.add_shares(name, member.shares())
        self._finish(victim, question, masked, members, tally)

    def _finish(
        self, victim: str, question: MaskRequest, masked: Masked, members: Mapping[str, Member], tally: Tally
    ) -> None:
        names, parameters = question.active, digest(question)
        context = tally.context(round=0, rounds=0, question=parameters, active=names)
        values, proofs = {victim: masked}, {victim: masked.sent}
        for name, member in members.items():
            member.context(round=0, rounds=0, question=parameters, active=names)
            zeros = np.zeros(masked.values.size, dtype=np.int64)
            hidden = member.masked(zeros, round=0, context=context, active=names)
            proofs[name] = member.sent(0, context).hex()
            values[name] = replace(masked, values=hidden, sent=proofs[name])
        opened = self.open_round(tally, {victim: question}, names, proofs, "to open it")
        for name, member in members.items():
            opened[name] = member.open(
                round=0,
                context=context,
                active=names,
                survivors=names,
                tolerated=self.study.privacy.tolerated,
                proofs={peer: bytes.fromhex(proof) for peer, proof in proofs.items() if peer != name},
                ciphertexts=_by_sender(tally, name, names),
            )
        self.vector = self.unmasked(tally, question, values, opened)
        if self.vector is not None:
            self.learned = f"the values of {victim} in round 0, with its share of the noise alone"


def _ends(question: Message) -> bool:
    """Return whether the run is about to be closed, with everything in it done."""
    return isinstance(question, Close) and question.outcome == "done"


def _moved(message: Message) -> Message:
    """Return a question for a sum at other parameters."""
    if isinstance(message, (GradientRequest, MaskRequest)):
        return replace(message, theta=message.theta + _ASIDE)
    return message


def _wider(message: Message) -> Message:
    """Return a question for a sum at parameters of another number."""
    if isinstance(message, (GradientRequest, MaskRequest)):
        return replace(message, theta=np.append(message.theta, 0.0))
    return message


def _one_more(message: Message) -> Message:
    """Return a question for the round after the last, in a run that is one round longer."""
    if not isinstance(message, (GradientRequest, MaskRequest)):
        return message
    rounds = min(message.rounds + 1, MAX_ROUNDS)
    last = rounds + TALLIES
    if isinstance(message, GradientRequest):
        return replace(message, round=last, rounds=rounds)
    return replace(message, session=last // SESSION_ROUNDS, round=last, rounds=rounds)


def _by_sender(tally: Tally, name: str, active: list[str]) -> dict[str, bytes]:
    """Return what the others encrypted for one holder in round 0, by sender."""
    blob, peers = tally.ciphertexts_for(name, 0, active), [peer for peer in active if peer != name]
    return {peer: blob[SHARE_BYTES * at : SHARE_BYTES * (at + 1)] for at, peer in enumerate(peers)}


_CLASSES = (
    *(_ChangedTheta, _TwoLists, _AsksAgain, _MoreRounds, _OtherStudy, _AnotherRun, _Unsigned),
    *(_FakeHolder, _FakeHolder),
)
LIARS: Mapping[str, type[Liar]] = dict(zip(LIES, _CLASSES, strict=True))
"""Who tells which of :data:`assay.simulations.faults.LIES`."""
