"""A holder's books: nothing is answered from books behind what the coordinator saw, and all is logged."""

import itertools
import shutil
from dataclasses import replace

import pytest
from aggregation_support import IDENTITIES, Federation, Home, Killed, kill
from toy_study import COORDINATOR, FEDERATION, OTHER_RUN, RUN, SUMMED, counts, holder, offer

from assay.client.training import LocalTraining
from assay.privacy.auditlog import AuditLog
from assay.privacy.errors import BadData, Refused, Tampered
from assay.privacy.heads import Heads, countersign
from assay.privacy.keys import Identity
from assay.privacy.messages import (
    Accepted,
    Close,
    Release,
)
from assay.privacy.secagg import Member

QUESTIONS = ("offer", "mask", "close")


@pytest.fixture
def three(tmp_path):
    made = Federation(tmp_path).begin()
    yield made
    made.stop()


@pytest.fixture
def trained(monkeypatch):
    """The sums that were computed from records."""
    calls, real = [], LocalTraining.noisy

    def spy(self, *, number, **rest):
        calls.append("gradient" if number else "counts")
        return real(self, number=number, **rest)

    monkeypatch.setattr(LocalTraining, "noisy", spy)
    return calls


def refusal(home, question):
    with pytest.raises(Refused) as caught:
        home.holder.answer(question)
    return caught.value.code


def ask(federation, kind):
    """A question that says what the coordinator has seen of ``north``."""
    known = federation.countersigned("north")
    return {
        "offer": lambda: replace(offer(SUMMED), **known),
        "mask": lambda: federation.mask("north", 1),
        "close": lambda: Close(run=RUN, outcome="done", **known),
    }[kind]()


class TestOlderCopies:
    @pytest.mark.parametrize("kind", QUESTIONS)
    def test_an_older_copy_of_the_whole_directory_is_refused(self, three, trained, kind, tmp_path):
        home = three.homes["north"]
        home.stop()
        shutil.copytree(home.directory, tmp_path / "old")
        home.start()
        three.masked(0)
        home.stop()
        shutil.rmtree(home.directory)
        shutil.copytree(tmp_path / "old", home.directory)
        home.start()
        before, computed, files = home.rows(), len(trained), home.sessions()
        assert refusal(home, ask(three, kind)) == "ledger"
        assert (home.rows(), len(trained), home.sessions()) == (before, computed, files)
        assert home.leaves()[-1]["data"]["code"] == "ledger"

    @pytest.mark.parametrize("kind", QUESTIONS)
    def test_of_two_clones_one_is_refused(self, three, trained, kind, tmp_path):
        home = three.homes["north"]
        home.stop()
        (tmp_path / "elsewhere").mkdir()
        shutil.copytree(home.directory, tmp_path / "elsewhere" / "home-north")
        home.start()
        clone = Home(tmp_path / "elsewhere", "north")
        try:
            three.masked(0)
            clone.holder.answer(replace(three.mask("north"), heads=""))  # it has gone on as well
            computed, rows = len(trained), clone.rows()
            assert refusal(clone, ask(three, kind)) == "ledger"
            assert (len(trained), clone.rows()) == (computed, rows)
            assert home.holder.answer(three.mask("north", 1)).round == 1
        finally:
            clone.stop()

    @pytest.mark.parametrize(
        "other",
        [
            lambda seen: {"log_size": seen.log_size + 1},
            lambda seen: {"log_root": "0" * 64},
            lambda seen: {"ledger_seq": seen.ledger_seq + 1},
            lambda seen: {"ledger_hash": "0" * 64},
        ],
        ids=["log size", "log root", "ledger row", "ledger hash"],
    )
    def test_both_ledger_and_log_must_contain_what_was_seen(self, three, trained, other):
        home = three.homes["north"]
        seen = Heads.parse(three.heads["north"])
        question = replace(three.mask("north"), heads=replace(seen, **other(seen)).text)
        assert refusal(home, question) == "ledger"
        assert trained == []
        assert home.rows("charge") == []

    @pytest.mark.parametrize("older", ["audit.log", "ledger.sqlite"])
    def test_ledger_and_log_of_different_age_stop_the_start(self, three, older):
        home = three.homes["north"]
        home.stop()
        kept = (home.directory / older).read_bytes()
        home.start()
        three.masked(0)
        three.masked(1)  # one entry less could be a crash between ledger and log
        home.stop()
        for path in home.directory.glob("ledger.sqlite-*"):
            path.unlink()
        (home.directory / older).write_bytes(kept)
        with pytest.raises(Tampered):
            home.start()

    def test_a_coordinator_that_has_forgotten_is_no_danger(self, three):
        three.masked(0)
        assert isinstance(three.homes["north"].holder.answer(offer(SUMMED)), Accepted)


class TestCountersignatures:
    def test_the_coordinators_signature_of_the_heads_is_kept_once(self, three):
        home, heads = three.homes["north"], three.heads["north"]
        question = ask(three, "offer")
        for _ in range(2):
            home.holder.answer(question)
        home.restart()
        home.holder.answer(question)
        assert home.log("countersigned") == [{"heads": heads, "signature": question.countersignature}]

    @pytest.mark.parametrize("kind", ["offer", "close"])
    def test_a_signature_that_is_not_the_coordinators_is_refused(self, three, kind):
        home, question = three.homes["north"], ask(three, kind)
        heads = Heads.parse(question.heads)
        for forged in (
            countersign(Identity.generate(), federation=FEDERATION, holder="north", heads=heads),
            countersign(COORDINATOR, federation=FEDERATION, holder="east", heads=heads),
            countersign(COORDINATOR, federation="0" * 64, holder="north", heads=heads),
        ):
            assert refusal(home, replace(question, countersignature=forged)) == "invalid"
        assert home.log("countersigned") == []
        assert home.ledger.open_runs() == (RUN,)


class TestHeads:
    def test_an_entry_written_meanwhile_by_another_thread_splits_no_heads(self, tmp_path, monkeypatch):
        """Heads that never existed would have this holder refuse everything from then on."""
        north = holder(tmp_path)
        log, real = north._books.audit, AuditLog.root.fget

        def late(self):
            self.append("stop")
            return real(self)

        monkeypatch.setattr(AuditLog, "root", property(late))
        for question in (offer(), counts()):
            heads = Heads.parse(north.answer(question).heads)
            assert log.root_at(heads.log_size) == heads.log_root
            log.append("stop")
        assert isinstance(north.answer(replace(counts(), heads=heads.text)), Release)


class TestTheLog:
    def test_every_decision_stands_in_it(self, three):
        home = three.homes["north"]
        three.total(0, three.masked(0))
        refusal(home, three.survivors_request(("east", "north")))
        refusal(home, offer(SUMMED.replace("epsilon = 2.0", "epsilon = 3.0"), OTHER_RUN))
        three.close()
        kinds = [kind for kind, _ in itertools.groupby(leaf["kind"] for leaf in home.leaves())]
        assert kinds == [
            *("accepted", "session", "release", "open"),
            *("refused", "declined", "countersigned", "closed"),
        ]
        assert home.log("refused") == [{"run": RUN, "question": "survivors", "code": "holders"}]
        assert home.log("declined") == [{"run": OTHER_RUN, "code": "epsilon"}]
        assert home.log("accepted") == [{"run": RUN, "study": three.study.digest}]
        (release,) = home.log("release")
        after = next(row for row in home.rows() if row["seq"] == release["ledger_seq"] + 1)
        assert release["row_sha256"] == after["prev_hash"]

    def test_what_is_wrong_with_records_is_one_word_in_it(self, tmp_path):
        def load(_):
            raise BadData("row 7, column 'INCOME'", value="secret", allowed="a number")

        with AuditLog.open(tmp_path / "audit.log", IDENTITIES["north"]) as audit:
            north = holder(tmp_path, audit=audit, identity=IDENTITIES["north"], load=load)
            with pytest.raises(BadData):
                north.answer(offer())
            with pytest.raises(Refused):
                north.answer(counts())
        text = (tmp_path / "audit.log").read_text()
        assert '"code":"data"' in text
        assert "secret" not in text
        assert "INCOME" not in text

    def test_one_that_cannot_be_written_stops_the_answers(self, three, monkeypatch):
        monkeypatch.setattr(AuditLog, "append", kill)
        masked = []
        monkeypatch.setattr(Member, "masked", lambda *args, **settings: masked.append(1))
        with pytest.raises(Killed):
            three.homes["north"].holder.answer(three.mask("north"))
        assert masked == []

    def test_a_question_asked_again_adds_nothing(self, three):
        home = three.homes["north"]
        three.total(0, three.masked(0))
        size = home.audit.size
        three.offer()  # adds the countersignature
        three.total(0, three.masked(0))
        assert [leaf["kind"] for leaf in home.leaves()[size:]] == ["countersigned"]
