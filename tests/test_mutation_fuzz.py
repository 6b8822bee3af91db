"""One byte of one message is changed: it is refused by name, or the sum is the same. Never another sum.

Two rounds of secure aggregation between real holders and the coordinator's own code are recorded: one in
which a holder drops out, and one in which everybody answers. Ten thousand mutants of the frames are played as
they are (somebody on the line changed a byte), and ten thousand more signed anew by their sender (who is
broken, or lies). Any exception but Assay's own ends the test.
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np
import pytest
from proof_support import RUN, Coordinator
from toy_study import SUMMED, policy, records

from assay.client.holder import decline_code
from assay.models.label import mechanism_of
from assay.privacy.errors import AssayError, BadInput, Refused
from assay.privacy.ledger import Ledger
from assay.privacy.messages import (
    Accepted,
    Close,
    Closed,
    Declined,
    Masked,
    MaskRequest,
    Offer,
)
from assay.privacy.wire import Frame, open_frame, seal
from assay.server import courier
from assay.server.aggregation import SecureSums
from assay.server.courier import COORDINATOR, Courier
from assay.server.sums import Panel, Question

NAMES = ("east", "north", "south", "west")
GONE = "west"
ROUNDS = 4
# How many mutants each test plays.
RAW, QUESTIONS, ANSWERS, FRESH, OFFERS = 10_000, 8_500, 1_000, 6, 500


@dataclass(kw_only=True)
class Exchanged:
    """One question and its answer as they went over the line."""

    name: str
    round: int
    question: bytes
    answer: bytes


class Store:
    """What the coordinator keeps."""

    def __init__(self, sessions=()):
        self.sessions, self.sums = dict(sessions), {}

    def session(self, number):
        return self.sessions.get(number)

    def save_session(self, session):
        self.sessions[session.session] = session

    def collected(self, number):
        return self.sums.get(number)

    def save_collected(self, collected):
        self.sums[collected.round] = collected


@dataclass
class Line:
    """Frames between the coordinator and the holders of one small federation."""

    world: Coordinator
    deliver: Callable[[str, bytes], bytes | None] | None = None  # None: nobody answers
    heads: dict = field(default_factory=dict)
    store: Store = field(default_factory=Store)

    def inbound(self, name):
        return Frame(federation=self.world.federation, sender=COORDINATOR, receiver=name)

    def outbound(self, name):
        return Frame(federation=self.world.federation, sender=name, receiver=COORDINATOR)

    def at_holder(self, name, data):
        return open_frame(data, self.inbound(name), self.world.identity.public)

    def at_coordinator(self, name, data):
        return open_frame(data, self.outbound(name), self.world.identities[name].public)

    def hold(self, name, data):
        """Answer as the holder's app does."""
        question = self.at_holder(name, data)
        try:
            answer = self.world.ask(name, question)
        except (BadInput, Refused) as error:
            answer = Declined(run=question.run, code=decline_code(error))
        return self.sealed(name, answer)

    def sealed(self, name, answer):
        return seal(answer, self.outbound(name), self.world.identities[name])

    def courier(self):
        keys = {name: identity.public for name, identity in self.world.identities.items()}
        return Courier(
            None,
            identity=self.world.identity,
            federation=self.world.federation,
            roster=keys,
            heads=self.heads,
            keep=self.heads.update,
        )

    def collect(self, number, active=NAMES):
        """Take one round through the coordinator's own code; returns its ``Summed``."""
        asked = self.courier()
        world = self.world
        sums = SecureSums(
            Panel(
                run=RUN,
                ask=lambda number, messages: asked.ask(messages, timeout=1.0),
                drop=lambda number, name, reason: None,
            ),
            self.store,
            study=world.study,
            federation=world.federation,
            roster=asked.roster,
            minimum=3,
        )
        release = mechanism_of(world.study, world.grid, number=number, rounds=ROUNDS)
        question = Question(
            round=number,
            rounds=ROUNDS if number else 0,
            theta=np.zeros(world.grid.width if number else 1),
            size=release.size,
            unit=release.unit,
        )
        return sums.collect(question, tuple(active))

    def exchange(self, grid, sealed, kind, timeout):
        """Stands where ``assay.server.fleet.exchange`` stands."""
        answers = ((name, self.deliver(name, data)) for name, data in sealed.items())
        return {name: answer for name, answer in answers if answer is not None}


@dataclass(kw_only=True)
class Recording:
    """A recorded run: round 0 without one holder, round 1 with the rest, and a close that nobody has seen.

    Attributes:
        line: to the holders, who have answered everything.
        exchanged: all questions and answers, oldest first.
        totals, heads: the sum of each round, and what the coordinator knew before it.
        close: the frame of the close, by name.
    """

    line: Line
    exchanged: list[Exchanged]
    totals: dict[int, np.ndarray]
    heads: dict[int, dict[str, str]]
    close: dict[str, bytes]

    def frames(self):
        """All frames as (open, sender's identity, bytes)."""
        for each in self.exchanged:
            yield self.line.at_holder, each.name, each.question
            yield self.line.at_coordinator, each.name, each.answer
        for name, data in self.close.items():
            yield self.line.at_holder, name, data


def world(folder):
    """Four accepting holders; nobody has been asked anything."""
    return Coordinator(folder, SUMMED, {name: records(30, seed) for seed, name in enumerate(NAMES)})


def silent_in_round_0(line, name, question):
    message = line.at_holder(name, question)
    return name == GONE and isinstance(message, MaskRequest) and message.round == 0


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Record one run; its holders stay as they are at its end."""
    kept, number = [], -1
    line = Line(world(tmp_path_factory.mktemp("federation")))

    def deliver(name, question):
        if silent_in_round_0(line, name, question):
            return None
        answer = line.hold(name, question)
        kept.append(Exchanged(name=name, round=number, question=question, answer=answer))
        return answer

    line.deliver = deliver
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(courier, "exchange", lambda *exchange: line.exchange(*exchange))
        line.courier().ask(dict.fromkeys(NAMES, Offer(run=RUN, study=SUMMED)), timeout=1.0)
        totals, heads, active = {}, {}, NAMES
        for number in (0, 1):
            heads[number] = dict(line.heads)
            summed = line.collect(number, active)
            totals[number], active = summed.total, summed.active
        close = {}
        line.deliver = close.__setitem__  # taken down, delivered to nobody
        line.courier().ask(dict.fromkeys(NAMES, Close(run=RUN, outcome="done")), timeout=1.0)
    return Recording(line=line, exchanged=kept, totals=totals, heads=heads, close=close)


def changed_anywhere(data, rng):
    """Return ``data`` with one byte changed."""
    at = int(rng.integers(len(data)))
    return data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :]


def changed_and_signed(data, identity, rng):
    """Return a frame with one byte changed and a valid signature.

    Half of the changes are in the header and keep a digit a digit and a letter a letter, so that many of
    them still say something.
    """
    signed = data[:-64]
    end = 10 + int.from_bytes(signed[6:10], "big")
    if rng.random() < 0.5:
        at = int(rng.integers(10, end))
        old = chr(signed[at])
        alike = next(
            (group for group in ("0123456789", "abcdef", "ghijklmnopqrstuvwxyz") if old in group), ""
        )
        new = ord(rng.choice([c for c in alike if c != old])) if alike else signed[at] ^ 1
        signed = signed[:at] + bytes([new]) + signed[at + 1 :]
    else:
        signed = changed_anywhere(signed, rng)
    return signed + identity.sign("frame", signed)


def without_heads(answer):
    """Return what an answer says, arrays as bytes; where the books stand changes from answer to answer."""
    plain = {f.name: getattr(answer, f.name) for f in fields(answer) if f.name != "heads"}
    return {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in plain.items()}


def test_the_recording_holds_every_message_of_secure_aggregation(recording):
    kinds = {open_(name, data).kind for open_, name, data in recording.frames()}
    assert kinds == {
        *("offer", "accepted", "keys-request", "keys", "shares-request", "shares", "mask", "masked"),
        *("survivors", "consent", "open", "opened", "close"),
    }


def test_a_byte_changed_on_the_way_is_always_refused(recording):
    rng = np.random.default_rng(1)
    frames = list(recording.frames())
    for number in range(RAW):
        open_, name, data = frames[number % len(frames)]
        with pytest.raises(AssayError):
            open_(name, changed_anywhere(data, rng))


@pytest.mark.slow
def test_a_question_changed_by_its_sender_is_refused_or_answered_as_before(recording):
    """The holders have answered everything: what they say now to a changed question must add nothing."""
    rng, line = np.random.default_rng(2), recording.line
    said = {}
    for each in recording.exchanged:
        answer = line.at_coordinator(each.name, each.answer)
        said[each.name, *about(answer)] = without_heads(answer)
    asked = [(each.name, each.question) for each in recording.exchanged if each.round >= 0]
    asked += recording.close.items()
    outcomes = Counter()
    for number in range(QUESTIONS):
        name, data = asked[number % len(asked)]
        try:
            question = line.at_holder(name, changed_and_signed(data, line.world.identity, rng))
            answer = line.world.ask(name, question)
        except AssayError as error:
            outcomes[type(error).__name__] += 1
            continue
        assert not isinstance(answer, Closed)
        # Another round or session may be asked for. What was said of this one is said again, or nothing.
        known = said.setdefault((name, *about(answer)), without_heads(answer))
        assert known == without_heads(answer), question
        outcomes["answered"] += 1
    assert outcomes["answered"] > 0
    assert outcomes["WireError"] > QUESTIONS // 10
    assert outcomes["Refused"] > QUESTIONS // 10
    for each in recording.exchanged:
        if each.round >= 0:
            again = line.at_coordinator(each.name, line.hold(each.name, each.question))
            assert without_heads(again) == said[each.name, *about(again)]


def about(message):
    """Return which message of a run this is."""
    return message.kind, getattr(message, "session", None), getattr(message, "round", None)


@pytest.mark.slow
def test_an_answer_changed_by_its_sender_never_makes_another_sum(recording, monkeypatch):
    """What a holder puts into its own vector is its own affair: that very change may show, and no other."""
    rng, line = np.random.default_rng(3), recording.line
    answered = [each for each in recording.exchanged if each.round >= 0]
    replay = Replay(recording)
    monkeypatch.setattr(courier, "exchange", lambda *exchange: replay.line.exchange(*exchange))
    outcomes = Counter()
    for number in range(ANSWERS):
        each = answered[number % len(answered)]
        mutant = changed_and_signed(each.answer, line.world.identities[each.name], rng)
        try:
            total = replay.collect(each, mutant)
        except AssayError as error:
            outcomes[type(error).__name__] += 1
            continue
        shift = total - recording.totals[each.round]
        if shift.any():
            before, after = (line.at_coordinator(each.name, data) for data in (each.answer, mutant))
            assert isinstance(after, Masked)
            assert np.array_equal(shift, (after.values - before.values).view(np.int64))
        outcomes["shifted" if shift.any() else "same"] += 1
    assert outcomes["TooFewHolders"] > ANSWERS // 10
    assert outcomes["Aborted"] > ANSWERS // 100


class Replay:
    """The coordinator's own code with recorded answers, one of them changed."""

    def __init__(self, recording):
        self.recording, self.world = recording, recording.line.world
        self.sessions = recording.line.store.sessions
        self.answers = {(each.name, each.question): each.answer for each in recording.exchanged}

    def collect(self, each, mutant):
        """Collect the round of ``each`` with ``mutant`` as its answer; return the sum."""
        setting_up = self.recording.line.at_coordinator(each.name, each.answer).kind in ("keys", "shares")
        self.line = Line(
            self.world,
            deliver=lambda name, question: self.answer(name, question, each, mutant),
            heads=dict(self.recording.heads[each.round]),
            store=Store({} if setting_up else self.sessions),
        )
        active = NAMES if each.round == 0 else tuple(name for name in NAMES if name != GONE)
        return self.line.collect(each.round, active).total

    def answer(self, name, question, each, mutant):
        if (name, question) == (each.name, each.question):
            return mutant
        if silent_in_round_0(self.line, name, question):
            return None
        # A holder that has answered refuses whatever it was not asked then.
        refusal = Declined(run=RUN, code="changed")
        return self.answers.get((name, question)) or self.line.sealed(name, refusal)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keys-request", "shares-request", "mask", "survivors", "open"])
def test_a_question_changed_for_one_fresh_holder_never_makes_another_sum(tmp_path, monkeypatch, kind):
    """One holder is told something else than the others, for the first time: a lying coordinator's way."""
    rng, sent = np.random.default_rng(4), {}
    release = Ledger.release

    def spy(ledger, *, run, round, payload):  # noqa: A002
        sent[id(ledger)] = np.frombuffer(payload, dtype="<i8")
        return release(ledger, run=run, round=round, payload=payload)

    monkeypatch.setattr(Ledger, "release", spy)
    for number in range(FRESH):
        line = Line(world(tmp_path / str(number)).accept())
        line.deliver = Liar(line, kind, rng)
        monkeypatch.setattr(courier, "exchange", lambda *exchange, line=line: line.exchange(*exchange))
        try:
            summed = line.collect(0)
        except AssayError:
            summed = None
        assert line.deliver.lied
        if summed is not None:
            assert np.array_equal(summed.total, sum(sent[id(line.world.ledgers[n])] for n in summed.holders))


class Liar:
    """Delivers everything, but to one holder another question of one kind."""

    def __init__(self, line, kind, rng):
        self.line, self.kind, self.rng, self.lied = line, kind, rng, False

    def __call__(self, name, question):
        if silent_in_round_0(self.line, name, question):
            return None
        if name == "north" and self.line.at_holder(name, question).kind == self.kind:
            question, self.lied = self.changed(name, question), True
        return self.line.hold(name, question)

    def changed(self, name, question):
        """Return a changed question that still is one."""
        while True:
            mutant = changed_and_signed(question, self.line.world.identity, self.rng)
            with contextlib.suppress(AssayError):
                if self.line.at_holder(name, mutant).run == RUN:
                    return mutant


@pytest.mark.slow
def test_a_changed_offer_spends_nothing(tmp_path):
    rng, line = np.random.default_rng(5), Line(world(tmp_path))
    data = seal(Offer(run=RUN, study=SUMMED), line.inbound("east"), line.world.identity)
    outcomes = Counter()
    for _ in range(OFFERS):
        try:
            answer = line.world.ask(
                "east", line.at_holder("east", changed_and_signed(data, line.world.identity, rng))
            )
        except AssayError as error:
            outcomes[type(error).__name__] += 1
        else:
            assert isinstance(answer, Accepted)
            outcomes["accepted"] += 1
    assert outcomes["accepted"] > 5
    ledger = line.world.ledgers["east"]
    ledger.verify()
    assert {entry["kind"] for entry in ledger.summary(policy().limits).entries} <= {"reserve", "close"}
