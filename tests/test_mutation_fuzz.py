"""One byte of one message is changed: it is refused by name, or the sum is the same. Never another sum.

A round of secure aggregation among real holders and the real collector is recorded, with a holder that drops out,
and then one in which everybody answers. Ten thousand mutants of its frames are played as they are (somebody on
the line changed a byte) and ten thousand more signed anew by their sender (the sender itself is broken or
lies). Every exception that is not one of Assay's own ends the test.
"""

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from proof_support import RUN, Coordinator
from toy_study import SUMMED, records

from assay.client.holder import decline_code
from assay.models.label import counts_mechanism, gradient_mechanism
from assay.privacy.errors import AssayError, BadInput, Refused
from assay.privacy.wire import (
    Accepted,
    Close,
    Declined,
    Frame,
    Masked,
    MaskRequest,
    Offer,
    Opened,
    open_frame,
    seal,
)
from assay.server import courier
from assay.server.aggregation import SecureSums
from assay.server.courier import COORDINATOR, Courier
from assay.server.sums import Panel, Question

NAMES = ("east", "north", "south", "west")
GONE = "west"
ROUNDS = 4
TEXT = SUMMED


@dataclass(kw_only=True)
class Exchanged:
    """One question and its answer as they went over the line."""

    name: str
    round: int
    question: bytes
    answer: bytes

    def kinds(self, line):
        return line.at_holder(self.name, self.question).kind, line.at_coordinator(self.name, self.answer).kind


class Store:
    """What the coordinator keeps."""

    def __init__(self, sessions=(), lists=()):
        self.sessions, self.lists = dict(sessions), dict(lists)

    def session(self, number):
        return self.sessions.get(number)

    def save_session(self, session):
        self.sessions[session.session] = session

    def survivors(self, number):
        return self.lists.get(number)

    def save_survivors(self, number, survivors):
        self.lists[number] = survivors


@dataclass
class Line:
    """Frames between the coordinator and the holders of one small federation."""

    world: Coordinator
    deliver: object  # (name, question frame) -> answer frame, or None where nobody answers
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
        release = (
            gradient_mechanism(world.study, world.grid, ROUNDS)
            if number
            else counts_mechanism(world.study, world.grid)
        )
        question = Question(
            round=number,
            rounds=ROUNDS if number else 0,
            theta=np.zeros(world.grid.size + 1 if number else 1),
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
    """A recorded run: an offer, round 0 without one holder, round 1 with the rest, and a close not sent yet."""

    line: Line
    exchanged: list
    totals: dict
    heads: dict  # by round, as they stood before it
    sessions: dict
    offer: dict  # sealed, by name
    close: dict


def world(folder):
    data = {name: records(30, seed) for seed, name in enumerate(NAMES)}
    return Coordinator(folder, TEXT, data)


@pytest.fixture
def patched(monkeypatch):
    """Let couriers exchange frames by a function of the test."""
    return lambda line: monkeypatch.setattr(courier, "exchange", line.exchange)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        kept = []
        line = Line(world(tmp_path_factory.mktemp("federation")), None)

        def deliver(name, question):
            message = line.at_holder(name, question)
            if name == GONE and isinstance(message, MaskRequest):
                return None
            answer = line.hold(name, question)
            kept.append(Exchanged(name=name, round=number, question=question, answer=answer))
            return answer

        line.deliver = deliver
        patch.setattr(courier, "exchange", line.exchange)
        number = -1
        offer = Offer(run=RUN, study=TEXT)
        line.courier().ask(dict.fromkeys(NAMES, offer), timeout=1.0)
        totals, heads, active = {}, {}, NAMES
        for number in (0, 1):
            heads[number] = dict(line.heads)
            summed = line.collect(number, active)
            totals[number], active = summed.total, summed.active
        asked = line.courier()
        close = {
            name: seal(
                asked._with_heads(name, Close(run=RUN, outcome="done")), line.inbound(name), line.world.identity
            )
            for name in NAMES
        }
        return Recording(
            line=line,
            exchanged=kept,
            totals=totals,
            heads=heads,
            sessions=dict(line.store.sessions),
            offer={each.name: each.question for each in kept if each.round == -1},
            close=close,
        )


class TestRecording:
    def test_it_holds_every_message_of_secure_aggregation_in_both_directions(self, recording):
        kinds = {kind for each in recording.exchanged for kind in each.kinds(recording.line)}
        assert kinds == {
            *("offer", "accepted", "keys-request", "keys", "shares-request", "shares", "mask", "masked"),
            *("survivors", "consent", "open", "opened"),
        }
