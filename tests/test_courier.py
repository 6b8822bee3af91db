"""Questions and answers: no bad frame becomes a message, and a ledger that went back is noticed."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from toy_study import COORDINATOR, FEDERATION, RUN, offer

from assay.privacy.heads import Heads, verify_countersignature
from assay.privacy.keys import Identity
from assay.privacy.messages import (
    Accepted,
    Close,
    CountsRequest,
    Declined,
)
from assay.privacy.wire import Frame, open_frame, seal
from assay.server.courier import Courier, NoAnswer
from assay.simulations.grid import LocalGrid

NAMES = ("east", "north", "south")


def heads(seq=5, size=9, *, ledger="a", log="b"):
    """Heads of a ledger of ``seq`` rows and a log of ``size`` entries; the letters stand for content."""
    return Heads(ledger_seq=seq, ledger_hash=ledger * 64, log_size=size, log_root=log * 64).text


HEADS = heads()


class TestCourier:
    """What one holder sends never disturbs another's answer, and no bad frame becomes a message."""

    @pytest.fixture
    def identities(self):
        return {name: Identity.generate() for name in NAMES}

    def ask(self, identities, liar, *, question=None):
        """Ask all three; ``south`` answers with ``liar(question bytes)``, the others honestly."""

        def app(name):
            def answer(message, context):
                frame = bytes(message.content["assay"]["frame"])
                inbound = Frame(federation=FEDERATION, sender="coordinator", receiver=name)
                open_frame(frame, inbound, COORDINATOR.public)
                reply = liar(frame) if name == "south" else self.honest(identities, name)
                return Message(RecordDict({"assay": ConfigRecord({"frame": reply})}), reply_to=message)

            return answer

        courier = Courier(
            LocalGrid({name: app(name) for name in NAMES}),
            identity=COORDINATOR,
            federation=FEDERATION,
            roster={name: identity.public for name, identity in identities.items()},
            heads={},
            keep=lambda _: None,
        )
        return courier.ask(dict.fromkeys(NAMES, question or offer()), timeout=5.0)

    @staticmethod
    def honest(identities, name, *, federation=FEDERATION, sender=None, receiver="coordinator", run=RUN):
        frame = Frame(federation=federation, sender=sender or name, receiver=receiver)
        return seal(Accepted(run=run, pattern=7, heads=HEADS), frame, identities[name])

    def check(self, answers, reason):
        assert answers["north"] == answers["east"] == Accepted(run=RUN, pattern=7, heads=HEADS)
        assert isinstance(answers["south"], NoAnswer)
        assert reason in answers["south"].reason
        assert len(answers["south"].reason.splitlines()) == 1

    def test_honest_answers_arrive(self, identities):
        answers = self.ask(identities, lambda _: self.honest(identities, "south"))
        assert answers == dict.fromkeys(NAMES, Accepted(run=RUN, pattern=7, heads=HEADS))

    def test_a_forged_answer_is_no_answer(self, identities):
        forger = dict(identities, south=Identity.generate())
        self.check(self.ask(identities, lambda _: self.honest(forger, "south")), "signature")

    def test_another_holders_answer_is_no_answer(self, identities):
        self.check(self.ask(identities, lambda _: self.honest(identities, "north")), "signature")

    def test_an_answer_in_another_holders_name_is_no_answer(self, identities):
        self.check(self.ask(identities, lambda _: self.honest(identities, "south", sender="north")), "from")

    def test_an_answer_of_another_federation_is_no_answer(self, identities):
        foreign = self.honest(identities, "south", federation="0" * 64)
        self.check(self.ask(identities, lambda _: foreign), "federation")

    def test_an_answer_to_somebody_else_is_no_answer(self, identities):
        self.check(self.ask(identities, lambda _: self.honest(identities, "south", receiver="north")), "to;")

    def test_an_answer_of_another_run_is_no_answer(self, identities):
        self.check(
            self.ask(identities, lambda _: self.honest(identities, "south", run="0" * 32)), "another run"
        )

    def test_the_question_sent_back_is_no_answer(self, identities):
        self.check(self.ask(identities, lambda frame: frame), "signature")

    @pytest.mark.parametrize("garbage", [b"", b"x", bytes(1000), b"ASSAY2" + bytes(100)])
    def test_garbage_is_no_answer(self, identities, garbage):
        self.check(self.ask(identities, lambda _: garbage), "")

    def test_an_answer_that_is_no_bytes_is_no_answer(self, identities):
        self.check(self.ask(identities, lambda _: "text"), "not a frame")

    def test_a_holder_that_fails_is_no_answer_and_its_reason_stays_there(self, identities):
        def fails(_):
            raise ValueError("a secret of the holder")

        answers = self.ask(identities, fails)
        self.check(answers, "failed")
        assert "secret" not in answers["south"].reason

    def test_a_holder_that_is_not_admitted_is_no_answer(self, identities):
        courier = Courier(
            LocalGrid({}), identity=COORDINATOR, federation=FEDERATION, roster={}, heads={}, keep=dict
        )
        (answer,) = courier.ask({"west": offer()}, timeout=1.0).values()
        assert answer == NoAnswer(reason="not admitted")

    def test_a_holder_that_still_answers_once_it_is_revoked_is_no_answer(self, identities):
        revoked = identities | {"south": Identity.generate()}
        answers = self.ask(
            {name: identities[name] for name in NAMES if name != "south"},
            lambda question: self.honest(revoked, "south"),
        )
        self.check(answers, "no longer admitted")


class TestHeads:
    """What a holder says of its ledger may only go forward; what the coordinator saw goes back to it."""

    @pytest.fixture
    def north(self):
        return Identity.generate()

    def ask(self, north, reply, *, known=None, question=None):
        """Ask north once; return the answer, the question as it came, and what was kept."""
        seen, kept = [], []

        def app(message, context):
            frame = bytes(message.content["assay"]["frame"])
            inbound = Frame(federation=FEDERATION, sender="coordinator", receiver="north")
            seen.append(open_frame(frame, inbound, COORDINATOR.public))
            outbound = Frame(federation=FEDERATION, sender="north", receiver="coordinator")
            content = RecordDict({"assay": ConfigRecord({"frame": seal(reply, outbound, north)})})
            return Message(content, reply_to=message)

        courier = Courier(
            LocalGrid({"north": app}),
            identity=COORDINATOR,
            federation=FEDERATION,
            roster={"north": north.public},
            heads={} if known is None else {"north": known},
            keep=lambda new: kept.append(dict(new)),
        )
        (answer,) = courier.ask({"north": question or offer()}, timeout=5.0).values()
        assert courier.heads.get("north") == (kept[-1]["north"] if kept else known)
        return answer, seen[0], kept

    def test_the_first_heads_are_kept_and_the_question_named_none(self, north):
        answer, question, kept = self.ask(north, Accepted(run=RUN, pattern=7, heads=HEADS))
        assert answer == Accepted(run=RUN, pattern=7, heads=HEADS)
        assert (question.heads, question.countersignature) == ("", "")
        assert kept == [{"north": HEADS}]

    def test_what_is_known_goes_with_the_question_signed_where_the_run_begins_and_ends(self, north):
        reply = Accepted(run=RUN, pattern=7, heads=heads(7, 12, ledger="c", log="d"))
        for question in (offer(), Close(run=RUN, outcome="done")):
            _, asked, kept = self.ask(north, reply, known=HEADS, question=question)
            assert asked.heads == HEADS
            verify_countersignature(
                COORDINATOR.public,
                federation=FEDERATION,
                holder="north",
                heads=Heads.parse(HEADS),
                signature=asked.countersignature,
            )
            assert kept == [{"north": reply.heads}]
        _, asked, _ = self.ask(north, reply, known=HEADS, question=CountsRequest(run=RUN))
        assert asked.heads == HEADS

    def test_the_same_heads_again_are_not_written_again(self, north):
        answer, _, kept = self.ask(north, Accepted(run=RUN, pattern=7, heads=HEADS), known=HEADS)
        assert answer == Accepted(run=RUN, pattern=7, heads=HEADS)
        assert kept == []

    @pytest.mark.parametrize(
        ("said", "reason"),
        [
            (heads(4, 12), "its ledger has 4 entries and had 5"),
            (heads(8, 8, ledger="c"), "its audit log has 8 entries and had 9"),
            (heads(5, 12, ledger="c", log="d"), "its ledger has another entry 5"),
            (heads(8, 9, ledger="c", log="d"), "its audit log has another entry 9"),
            (heads(0, 0), "its ledger has 0 entries"),
            ("", "does not say"),
        ],
        ids=["ledger went back", "log went back", "ledger forked", "log forked", "empty", "silent"],
    )
    def test_a_ledger_that_went_back_or_forked_is_not_used(self, north, said, reason):
        answer, _, kept = self.ask(north, Accepted(run=RUN, pattern=7, heads=said), known=HEADS)
        assert isinstance(answer, NoAnswer)
        assert answer.ledger
        assert reason in answer.reason
        assert "ROLLED BACK OR CLONED" in answer.reason
        assert kept == []

    def test_a_holder_that_finds_its_own_ledger_too_old_is_told_of_as_loudly(self, north):
        answer, _, _ = self.ask(north, Declined(run=RUN, code="ledger"), known=HEADS)
        assert isinstance(answer, NoAnswer)
        assert answer.ledger
        assert "ROLLED BACK OR CLONED" in answer.reason

    def test_any_other_refusal_is_passed_on(self, north):
        answer, _, _ = self.ask(north, Declined(run=RUN, code="budget"), known=HEADS)
        assert answer == Declined(run=RUN, code="budget")
