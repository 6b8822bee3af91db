"""Secure sums: exact over whoever is left, never opened for too few, and the same after any crash."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from rounds_support import Federation, check_exact, lost
from toy_study import FEDERATION, LAST, OTHER_RUN, ROUNDS, RUN, SUMMED, policy

from assay.privacy.auditlog import AuditLog
from assay.privacy.messages import (
    Close,
    Closed,
    Consent,
    Keys,
    KeysRequest,
    Masked,
    MaskRequest,
    Offer,
    Opened,
    OpenRequest,
    Release,
    Shares,
    SharesRequest,
    SurvivorsRequest,
)
from assay.privacy.secagg import Tally, Terms
from assay.server.courier import NoAnswer
from assay.server.rounds import Aborted, TooFewHolders

THREE = ("east", "north", "south")
FIVE = ("east", "mid", "north", "south", "west")
SEVEN = ("coast", "east", "hill", "mid", "north", "south", "west")
LONG = SUMMED.replace("rounds = 4", "rounds = 33")  # two sessions: rounds 0..31 and 32..35


def summed(folder, names=FIVE, *, text=SUMMED, **changes):
    return Federation(folder, names=names, text=text, **changes)


def without(names, *gone):
    return tuple(name for name in names if name not in gone)


def altered(kind, change, *, number=None):
    """A fault: one kind of answer, in one round or any, is changed on its way."""

    def fault(message, honest):
        answer = honest()
        fits = isinstance(answer, kind) and number in (None, getattr(answer, "round", None))
        return change(answer) if fits else answer

    return fault


def silent(message, honest):
    return NoAnswer(reason="no answer within 1 s")


class TestWhole:
    @pytest.mark.parametrize("names", [THREE, FIVE], ids=len)
    def test_the_sum_of_every_round_is_exact_and_takes_two_exchanges(self, tmp_path, names):
        federation = summed(tmp_path, names)
        trained = federation.train()
        check_exact(federation, trained, lambda number: names)
        assert (trained.holders, trained.most_asked, trained.rounds) == (names, len(names), ROUNDS)
        kinds = [kind for kind, _ in itertools.groupby(type(message) for _, message in federation.asked)]
        assert kinds == [Offer, KeysRequest, SharesRequest] + [MaskRequest, OpenRequest] * (LAST + 1)
        assert federation.dropped() == []
        for name in names:
            assert 2.0 * (1 - 1e-6) <= federation.spent(name) <= 2.0

    def test_no_holders_own_integers_are_seen(self, tmp_path):
        federation, seen = summed(tmp_path, THREE), []

        def note(message, honest):
            answer = honest()
            seen.append(answer)
            return answer

        federation.faults = dict.fromkeys(THREE, note)
        federation.train()
        assert not any(isinstance(answer, Release) for answer in seen)
        own = {value for name in THREE for n in range(LAST + 1) for value in federation.payload(name, n)}
        masked = [answer.values for answer in seen if isinstance(answer, Masked)]
        assert len(masked) == 3 * (LAST + 1)
        assert not own & {int(value) for values in masked for value in values.astype(np.int64)}

    def test_a_new_session_begins_every_32_rounds(self, tmp_path):
        federation = summed(tmp_path, THREE, text=LONG)
        trained = federation.train()
        check_exact(federation, trained, lambda number: THREE)
        asked = [m for name, m in federation.asked if name == "east"]
        assert [m.session for m in asked if isinstance(m, KeysRequest)] == [0, 1]
        masks = {m.round: m.session for m in asked if isinstance(m, MaskRequest)}
        assert masks == {number: number // 32 for number in range(36)}
        keys = [federation.store.sessions[number].tally for number in (0, 1)]
        assert keys[0] != keys[1]

    def test_the_noise_that_the_fit_reckons_with_is_that_of_the_shares(self, tmp_path):
        """Three holders add half the variance each; what they add beyond the promise is reckoned with."""
        run = summed(tmp_path, THREE).run()
        assert run._sums.noises(3) == 1.5
        assert run._sums.noises(5) == 1.25
        with pytest.raises(TooFewHolders):
            run._sums.noises(2)


class TestDropped:
    """One of five is gone, from one question on; the others go on and the sums are exact."""

    @pytest.mark.parametrize("reached", [True, False], ids=["answer lost", "question lost"])
    @pytest.mark.parametrize(
        ("kind", "number", "last"),
        [
            (KeysRequest, None, -1),
            (SharesRequest, None, -1),
            (MaskRequest, 0, -1),
            (OpenRequest, 0, 0),
            (MaskRequest, 2, 1),
            (OpenRequest, 2, 2),
            (MaskRequest, ROUNDS + 1, ROUNDS),
            (OpenRequest, LAST, LAST),
        ],
        ids=[
            *("keys", "shares", "counts", "opening the counts", "round 2", "opening round 2"),
            *("calibration", "last opening"),
        ],
    )
    def test_a_holder_that_is_gone_is_in_the_sums_it_sent_and_in_no_other(
        self, tmp_path, kind, number, last, reached
    ):
        federation = summed(tmp_path)
        federation.faults = {"south": lost(kind, number=number, reached=reached)}
        run = federation.run()
        trained = run.train(list(FIVE))
        left = without(FIVE, "south")
        check_exact(federation, trained, lambda number: FIVE if number <= last else left)
        assert federation.dropped() == [(number or 0, "south")]
        assert trained.holders == (FIVE if last == LAST else left)
        assert trained.most_asked == (4 if kind in (KeysRequest, SharesRequest) else 5)
        masks = [m.round for name, m in federation.asked if name == "south" and isinstance(m, MaskRequest)]
        assert masks == list(range((number or 0) + 1 if kind in (MaskRequest, OpenRequest) else 0))
        run.close("done")
        assert federation.open_runs() == {name: () if reached or name != "south" else (RUN,) for name in FIVE}

    @pytest.mark.parametrize("second", [SurvivorsRequest, OpenRequest], ids=["consent", "opening"])
    def test_a_survivor_that_goes_before_the_sum_is_open_is_in_it_and_out_of_the_next(self, tmp_path, second):
        federation = summed(tmp_path, SEVEN)
        federation.faults = {
            "west": lost(MaskRequest, number=2),
            "south": lost(second, number=2, reached=False),
        }
        trained = federation.train()
        six, five = without(SEVEN, "west"), without(SEVEN, "west", "south")
        check_exact(federation, trained, lambda n: SEVEN if n < 2 else six if n == 2 else five)
        assert federation.dropped() == [(2, "west"), (2, "south")]
        opened = [n for n, m in federation.asked if isinstance(m, OpenRequest) and m.round == 2]
        assert opened == list(five if second is SurvivorsRequest else six)

    def test_with_everybody_there_nobody_is_asked_for_consent(self, tmp_path):
        federation = summed(tmp_path)
        federation.faults = {"south": lost(MaskRequest, number=2)}
        federation.train()
        rounds = {m.round for _, m in federation.asked if isinstance(m, SurvivorsRequest)}
        assert rounds == {2}
        opened = {number: tuple(kept.sent) for number, kept in federation.store.sums.items()}
        left = without(FIVE, "south")
        assert opened == {0: FIVE, 1: FIVE} | dict.fromkeys(range(2, LAST + 1), left)

    def test_a_new_session_is_begun_by_those_that_are_left(self, tmp_path):
        federation = summed(tmp_path, text=LONG)
        federation.faults = {"south": lost(MaskRequest, number=20)}
        trained = federation.train()
        left = without(FIVE, "south")
        check_exact(federation, trained, lambda number: FIVE if number < 20 else left)
        asked = [set(m.holders) for _, m in federation.asked if isinstance(m, KeysRequest) and m.session == 1]
        assert asked == [set(left)] * 4


class TestTooFew:
    def abort(self, federation, match):
        with pytest.raises(TooFewHolders, match=match):
            federation.train()
        told = {name for name, m in federation.asked if isinstance(m, Close) and m.outcome == "aborted"}
        assert told == set(federation.names)
        federation.faults = {}

    def opening(self, federation, number):
        """Who was asked for consent or shares in a round."""
        kinds = (OpenRequest, SurvivorsRequest)
        return [name for name, m in federation.asked if isinstance(m, kinds) and m.round == number]

    @pytest.mark.parametrize("kind", [KeysRequest, SharesRequest], ids=["keys", "shares"])
    def test_a_session_that_too_few_join_is_not_begun(self, tmp_path, kind):
        federation = summed(tmp_path)
        federation.faults = {name: lost(kind) for name in FIVE[:3]}
        self.abort(federation, "round 0: 2 holder")
        assert not any(isinstance(m, MaskRequest) for _, m in federation.asked)
        assert all(federation.spent(name) == 0 for name in FIVE)

    def test_one_of_three_is_too_few_and_nothing_is_opened(self, tmp_path):
        federation = summed(tmp_path, THREE)
        federation.faults = {"south": lost(MaskRequest, number=2)}
        self.abort(federation, r"round 2: 2 holder\(s\) answered in time; allowed: at least 3")
        assert not [
            m for _, m in federation.asked if isinstance(m, (OpenRequest, SurvivorsRequest)) and m.round == 2
        ]
        assert list(federation.store.sums) == [0, 1]

    def test_more_missing_than_tolerated_take_too_much_noise_with_them(self, tmp_path):
        """Five of seven are the threshold, but the noise was shared among all but one."""
        federation = summed(tmp_path, SEVEN)
        federation.faults = {name: lost(MaskRequest, number=1) for name in ("south", "west")}
        self.abort(federation, r"round 1: 2 of 7 holders are missing.*at most 1 \(privacy.tolerated\)")
        assert not [
            m for _, m in federation.asked if isinstance(m, (OpenRequest, SurvivorsRequest)) and m.round == 1
        ]

    def test_where_two_are_tolerated_two_may_be_missing(self, tmp_path):
        federation = summed(tmp_path, SEVEN, text=SUMMED + "tolerated = 2\n")
        federation.faults = {name: lost(MaskRequest, number=1) for name in ("south", "west")}
        trained = federation.train()
        check_exact(federation, trained, lambda n: SEVEN if n < 1 else without(SEVEN, "south", "west"))

    def test_too_few_consents_open_nothing(self, tmp_path):
        federation = summed(tmp_path)
        federation.faults = {
            "west": lost(MaskRequest, number=1),
            "south": lost(SurvivorsRequest, number=1),
        }
        self.abort(federation, "round 1: 3 holder.*at least 4")
        assert not [m for _, m in federation.asked if isinstance(m, OpenRequest) and m.round == 1]

    def test_too_few_openings_give_no_sum(self, tmp_path, monkeypatch):
        federation = summed(tmp_path)
        unmasked = []
        unmask = Tally.unmask_sum
        monkeypatch.setattr(
            Tally, "unmask_sum", lambda *a, **k: unmasked.append(k["round"]) or unmask(*a, **k)
        )
        federation.faults = {name: lost(OpenRequest, number=1) for name in ("south", "west")}
        self.abort(federation, "round 1: 3 holder.*at least 4")
        assert unmasked == [0]

    def test_the_federations_own_minimum_counts_too(self, tmp_path):
        federation = summed(tmp_path)
        federation.faults = {"south": lost(MaskRequest, number=1)}
        with pytest.raises(TooFewHolders, match=r"round 1: 4 holder.*at least 5"):
            federation.train(minimum=5)


class TestFalseAnswers:
    """What does not fit is not used, whoever sends it; the run goes on without its sender."""

    @pytest.mark.parametrize(
        ("kind", "change", "detail"),
        [
            (Keys, lambda a: replace(a, session=1), "keys: an unexpected answer"),
            (Keys, lambda a: replace(a, advert=bytes(len(a.advert))), "south: its secagg-advert signature"),
            (Keys, lambda a: replace(a, advert=a.advert[:-1]), "south: its keys have"),
            (Shares, lambda a: replace(a, session=1), "shares: an unexpected answer"),
            (Shares, lambda a: replace(a, shares=a.shares + b"x"), "south: its shares have"),
            (Masked, lambda a: replace(a, session=1), "masked: an unexpected answer"),
            (Masked, lambda a: replace(a, round=1), "masked: an unexpected answer"),
            (Masked, lambda a: replace(a, unit=a.unit * 2), "another grid"),
            (Masked, lambda a: replace(a, values=a.values[:-1]), "another model"),
            (Masked, lambda a: replace(a, sent="00" * 64), "south: its secagg-sent signature"),
        ],
        ids=[
            *("keys of another session", "keys signed by nobody", "keys too short"),
            *("shares of another session", "shares too long"),
            *("values of another session", "values of another round", "another unit", "one value less"),
            "not signed",
        ],
    )
    def test_before_the_counts_are_summed_it_is_dropped(self, tmp_path, kind, change, detail):
        federation = summed(tmp_path)
        federation.faults = {"south": altered(kind, change, number=0 if kind is Masked else None)}
        trained = federation.train()
        check_exact(federation, trained, lambda number: without(FIVE, "south"))
        (step,) = federation.steps("dropped")
        assert (step.round, step.holders) == (0, ("south",))
        assert detail in step.detail

    @pytest.mark.parametrize(
        ("change", "detail"),
        [
            (lambda a: replace(a, session=1), "opened: an unexpected answer"),
            (lambda a: replace(a, round=1), "opened: an unexpected answer"),
            (lambda a: replace(a, shares=a.shares[:-1]), "wrong share"),
            (
                lambda a: replace(a, shares=a.shares[:1] + bytes([a.shares[1] ^ 1]) + a.shares[2:]),
                "wrong share",
            ),
            (lambda a: Closed(run=RUN, heads=""), "opened: an unexpected answer"),
        ],
        ids=["another session", "another round", "too short", "a wrong share", "another kind"],
    )
    def test_a_false_opening_changes_no_sum(self, tmp_path, change, detail):
        """East comes first, so that its shares are looked at; its values stay in the round's sum."""
        federation = summed(tmp_path)
        federation.faults = {"east": altered(Opened, change, number=2)}
        trained = federation.train()
        check_exact(federation, trained, lambda n: FIVE if n <= 2 else without(FIVE, "east"))
        (step,) = federation.steps("dropped")
        assert (step.round, step.holders) == (2, ("east",))
        assert detail in step.detail

    def test_a_false_consent_is_not_passed_on(self, tmp_path):
        federation = summed(tmp_path, SEVEN)
        federation.faults = {
            "west": lost(MaskRequest, number=1),
            "south": altered(Consent, lambda a: replace(a, signature="00" * 64)),
        }
        trained = federation.train()
        six, five = without(SEVEN, "west"), without(SEVEN, "west", "south")
        check_exact(federation, trained, lambda n: SEVEN if n < 1 else six if n == 1 else five)
        signers = [m.signers for _, m in federation.asked if isinstance(m, OpenRequest) and m.round == 1]
        assert signers == [list(five)] * 5

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda values: values * np.uint64(3), "beyond its bound"),
            (lambda values: values + np.uint64(1 << 42), "larger than its persons"),
        ],
        ids=["no masked values", "drowns the others"],
    )
    def test_values_that_no_persons_can_make_end_the_run_and_enter_no_model(self, tmp_path, change, reason):
        federation = summed(tmp_path)
        federation.faults = {
            "south": altered(Masked, lambda a: replace(a, values=change(a.values)), number=2)
        }
        with pytest.raises(Aborted, match=f"round 2: .*{reason}"):
            federation.train()
        assert federation.store.saved[-1][0] == 1
        assert federation.open_runs() == dict.fromkeys(FIVE, ())

    def test_shares_of_an_earlier_session_open_nothing(self, tmp_path):
        """The holders notice: what was encrypted for another session does not decrypt."""
        federation, first = summed(tmp_path, text=LONG), []

        def stale(answer):
            first.append(answer.shares)
            return replace(answer, shares=first[0])

        federation.faults = {"south": altered(Shares, stale)}
        with pytest.raises(TooFewHolders, match="round 32: 1 holder"):
            federation.train()
        assert all("declined (aggregation)" in step.detail for step in federation.steps("dropped"))
        assert federation.store.saved[-1][0] == 31

    def test_a_refusal_in_any_phase_is_reported_with_its_reason(self, tmp_path):
        federation = summed(tmp_path, rules={"south": policy(minimum_holders=6)})
        federation.train()
        (step,) = federation.steps("dropped")
        assert step.detail == "keys: declined (holders)"


class Crash(Exception):
    """The coordinator is killed."""


def crash_everywhere(federation):
    """Kill the coordinator once before and once after every question and every write; resume each time."""
    seen = set()

    def once(*place):
        if place not in seen:
            seen.add(place)
            raise Crash(place)

    federation.crash = lambda when, question: once(
        when, question.kind, getattr(question, "session", None), getattr(question, "round", None)
    )
    federation.store.after = lambda kind: once("written", kind, len(federation.store.saved))
    for _ in range(300):
        try:
            return federation.resume(), len(seen)
        except Crash:
            continue
    raise AssertionError("the run does not end")


def check_same_questions(federation):
    """Whatever was asked again was asked with the same content."""
    first = {}
    for name, message in federation.asked:
        key = (name, message.kind, getattr(message, "session", None), getattr(message, "round", None))
        known = vars(first.setdefault(key, message))
        assert all(np.array_equal(value, known[field]) for field, value in vars(message).items()), key


class TestCrash:
    def test_a_coordinator_that_is_killed_everywhere_ends_in_the_same_model(self, tmp_path):
        federation = summed(tmp_path, THREE)
        trained, crashes = crash_everywhere(federation)
        assert crashes > 30
        check_exact(federation, trained, lambda number: THREE)
        check_same_questions(federation)
        for name in THREE:
            assert 2.0 * (1 - 1e-6) <= federation.spent(name) <= 2.0

    def test_also_with_a_holder_that_drops_out(self, tmp_path):
        federation = summed(tmp_path)
        federation.faults = {"west": lost(MaskRequest, number=2)}
        trained, _ = crash_everywhere(federation)
        check_exact(federation, trained, lambda n: FIVE if n < 2 else without(FIVE, "west"))
        check_same_questions(federation)

    def test_also_where_a_session_ends(self, tmp_path):
        federation = summed(tmp_path, THREE, text=LONG)
        trained, _ = crash_everywhere(federation)
        check_exact(federation, trained, lambda number: THREE)
        check_same_questions(federation)

    @pytest.mark.parametrize(
        ("missed", "place"),
        [(KeysRequest, SharesRequest), (SharesRequest, MaskRequest)],
        ids=["keys", "shares"],
    )
    def test_a_holder_that_missed_the_beginning_of_a_session_stays_out_after_the_crash(
        self, tmp_path, missed, place
    ):
        """The others have begun without it, and would refuse to begin again with it."""
        federation = summed(tmp_path)

        def kill(when, question):
            if when == "after" and isinstance(question, place):
                raise Crash

        federation.faults, federation.crash = {"south": lost(missed, reached=False)}, kill
        with pytest.raises(Crash):
            federation.train()
        federation.faults, federation.crash = {}, lambda when, question: None
        trained = federation.resume()
        check_exact(federation, trained, lambda number: without(FIVE, "south"))
        check_same_questions(federation)

    @pytest.mark.parametrize("place", [SurvivorsRequest, OpenRequest], ids=["consents", "opening"])
    def test_a_dropped_holder_that_is_back_after_the_crash_stays_out_of_that_sum(self, tmp_path, place):
        """Its sum is not opened beside theirs: the list was written down before anybody signed it."""
        federation = summed(tmp_path)

        def killed(message, honest):
            if isinstance(message, place) and message.round == 2:
                honest()
                raise Crash
            return honest()

        federation.faults = {"west": lost(MaskRequest, number=2), "south": killed}
        with pytest.raises(Crash):
            federation.train()
        federation.faults = {}
        trained = federation.resume()
        left = without(FIVE, "west")
        assert trained.holders == left
        check_exact(federation, trained, lambda n: FIVE if n < 2 else left)

    @pytest.mark.parametrize("gone", [(), ("south",)], ids=["nobody gone", "one gone"])
    @pytest.mark.parametrize("missing", [(), ("west",)], ids=["all answered", "one missing"])
    @pytest.mark.parametrize("place", [MaskRequest, OpenRequest], ids=["stored", "opened"])
    def test_what_was_collected_is_opened_after_the_crash_by_those_that_are_left(
        self, tmp_path, place, missing, gone
    ):
        """It is paid for: nobody is asked for masked values again, and those of the gone are in the sum."""
        federation = self.crashed(tmp_path, place, missing)
        federation.faults |= dict.fromkeys(gone, silent)
        asked = len(federation.asked)
        trained = federation.resume()
        survivors, left = without(SEVEN, *missing), without(SEVEN, *missing, *gone)
        check_exact(federation, trained, lambda n: SEVEN if n < 2 else survivors if n == 2 else left)
        again = {type(m) for _, m in federation.asked[asked:] if m.round == 2}
        assert again == ({SurvivorsRequest, OpenRequest} if missing else {OpenRequest})

    def test_what_was_collected_is_not_opened_by_fewer_than_the_threshold(self, tmp_path):
        federation = self.crashed(tmp_path, OpenRequest, ("west",))
        federation.faults |= dict.fromkeys(("south", "north"), silent)
        with pytest.raises(TooFewHolders, match=r"round 2: 4 holder.*at least 5"):
            federation.resume()

    def crashed(self, folder, place, missing):
        """Return a run of seven whose coordinator was killed in round 2, once the sum is stored or opened."""
        federation = summed(folder, SEVEN)

        def kill(now):
            if now:
                raise Crash

        if place is OpenRequest:
            federation.crash = lambda when, m: kill(when == "after" and isinstance(m, place) and m.round == 2)
        else:
            federation.store.after = lambda kind: kill(kind == "collected" and 2 in federation.store.sums)
        federation.faults = {name: lost(MaskRequest, number=2) for name in missing}
        with pytest.raises(Crash):
            federation.train()
        federation.crash, federation.store.after = lambda when, question: None, lambda kind: None
        return federation

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_a_holder_revoked_meanwhile_is_dropped_and_the_others_are_asked_the_same(self, tmp_path, moment):
        """Those that have answered for five holders would decline to begin the session again with four."""
        federation = summed(tmp_path)

        def kill(when, question):
            if when == moment and isinstance(question, KeysRequest):
                raise Crash

        federation.crash = kill
        with pytest.raises(Crash):
            federation.train()
        federation.crash = lambda when, question: None
        federation.names = without(FIVE, "south")
        gone = federation.identities.pop("south").public.hex()
        federation.restart_all()
        trained = federation.run().train([], federation.store.latest)
        check_exact(federation, trained, lambda number: federation.names)
        assert federation.dropped() == [(0, "south")]
        assert gone in federation.store.sessions[0].holders.values()


class TestLedgers:
    """A holder whose ledger went back is noticed, in the same run and in the next."""

    def go_back(self, federation, name):
        """Put an empty directory in the place of a holder's own, with the same identity."""
        federation.audits[name] = AuditLog.open(None, federation.identities[name])
        federation.ledgers[name] = federation.new_ledger(name)
        federation.restart(name)

    def test_in_the_next_run_it_is_left_out_with_a_loud_word(self, tmp_path):
        twice = policy(epsilon_per_study=6.0, epsilon_per_year=6.0)
        names = FIVE[:4]
        federation = summed(tmp_path, names, rules=dict.fromkeys(names, twice))
        run = federation.run()
        run.train(list(names))
        run.close("done")
        self.go_back(federation, "north")
        federation.store = type(federation.store)()
        trained = federation.run(run=OTHER_RUN).train(list(names))
        assert trained.holders == without(names, "north")
        (loud,) = federation.steps("ledger")
        assert (loud.round, loud.holders, loud.epsilon) == (0, ("north",), 0.0)
        assert "ROLLED BACK OR CLONED" in loud.detail
        assert federation.payload("north", 0, OTHER_RUN) is None

    def test_in_the_middle_of_a_run_it_is_dropped(self, tmp_path):
        federation = summed(tmp_path)

        def goes_back(message, honest):
            if isinstance(message, MaskRequest) and message.round == 2 and not federation.steps("ledger"):
                self.go_back(federation, "north")
                return federation.new_courier().ask({"north": message}, timeout=1.0)["north"]
            return honest()

        federation.faults = {"north": goes_back}
        trained = federation.train()
        assert trained.holders == without(FIVE, "north")
        assert [(step.round, step.holders) for step in federation.steps("ledger")] == [(2, ("north",))]
        assert federation.dropped() == [(2, "north")]


def test_a_stored_session_is_read_again_with_the_keys_it_was_begun_with(tmp_path):
    federation = summed(tmp_path, THREE)
    federation.train()
    kept = federation.store.sessions[0]
    terms = Terms(
        federation=FEDERATION,
        run=RUN,
        session=0,
        study=federation.study.digest,
        keys={name: bytes.fromhex(key) for name, key in kept.holders.items()},
    )
    tally = Tally.unpack(terms, kept.tally)
    assert tally.names == tally.sharers == THREE
