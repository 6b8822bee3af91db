"""The ledger: nothing is spent twice, forgotten, exceeded or changed without being noticed."""

import hashlib
import json
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from assay.privacy.accounting import Event, PrivacyTarget, RunCost, epsilon_of
from assay.privacy.cli import app
from assay.privacy.errors import BadInput, Refused, Tampered, Unavailable
from assay.privacy.keys import Identity, canonical_json
from assay.privacy.ledger import YEAR_S, Ledger, Limits
from assay.privacy.ledger_store import COLUMNS, LedgerStore

IDENTITY = Identity.generate()


class Cost:
    """A plan of two kinds of release that cost epsilon 1 together, so that rows are easily numbered."""

    mu2 = RunCost.of(PrivacyTarget(epsilon=1.0, delta=1e-6)).mu2 * (1 - 1e-11)
    counts = Event(noise_multiplier=(0.1 * mu2) ** -0.5)

    def gradient(self, rounds):
        return Event(noise_multiplier=(0.9 * self.mu2 / rounds) ** -0.5)

    def total(self, rounds):
        steps = Event(noise_multiplier=self.gradient(rounds).noise_multiplier, steps=rounds)
        return self.counts, steps


COST = Cost()
LIMITS = Limits(epsilon_per_study=2.0, epsilon_per_year=3.0, delta=1e-6)
DAY_S = 86400.0


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger():
    with Ledger.open(":memory:", IDENTITY, Clock()) as opened:
        yield opened


def play(ledger, run, *, study="card", rounds=3, outcome="done", limits=LIMITS):
    """Do a whole run, as a holder does."""
    ledger.reserve(study=study, run=run, planned=COST.total(1), limits=limits)
    for number in range(rounds + 1):
        event = COST.counts if number == 0 else COST.gradient(rounds)
        assert (
            ledger.charge(run=run, round=number, mechanism="gaussian", sensitivity=5.0, event=event) is None
        )
        assert ledger.release(run=run, round=number, payload=b"%d" % number) == b"%d" % number
    ledger.close_run(run=run, outcome=outcome)


def charge(ledger, run="a", number=0, event=COST.counts, sensitivity=5.0, mechanism="gaussian"):
    return ledger.charge(run=run, round=number, mechanism=mechanism, sensitivity=sensitivity, event=event)


# --- caps -------------------------------------------------------------------------------------------


def test_a_whole_run_costs_what_was_promised(ledger):
    play(ledger, "a", rounds=30)
    summary = ledger.summary(LIMITS)
    assert summary.spent_epsilon == pytest.approx(1.0, rel=1e-9)
    assert summary.spent_epsilon <= 1.0
    assert summary.studies == {"card": summary.spent_epsilon}
    assert summary.open_runs == ()


def test_a_run_of_all_kinds_of_release_costs_what_was_promised(ledger):
    cost = RunCost.of(PrivacyTarget(epsilon=1.0, delta=1e-6))
    ledger.reserve(study="card", run="a", planned=cost.total(1), limits=LIMITS)
    for number in range(33):
        charge(ledger, number=number, event=cost.event(number, 30))
    assert ledger.charged_rounds("a") == {number: cost.event(number, 30) for number in range(33)}
    with pytest.raises(Refused, match="used up"):
        charge(ledger, number=33, event=Event(noise_multiplier=10_000.0))
    ledger.close_run(run="a", outcome="done")
    assert ledger.summary(LIMITS).spent_epsilon == pytest.approx(1.0, rel=1e-9)
    assert ledger.summary(LIMITS).spent_epsilon <= 1.0


def test_a_run_that_uses_a_cap_up_exactly_is_accepted(ledger):
    exact = Limits(epsilon_per_study=1.0, epsilon_per_year=1.0, delta=1e-6)
    play(ledger, "a", limits=exact)
    assert ledger.remaining(exact) < 1e-3


def test_four_runs_that_compose_exactly_to_the_cap_are_accepted(ledger):
    cap = epsilon_of(list(COST.total(1)) * 4, 1e-6)
    limits = Limits(epsilon_per_study=cap, epsilon_per_year=cap, delta=1e-6)
    for run in "abcd":
        play(ledger, run, limits=limits)
    with pytest.raises(Refused):
        ledger.reserve(study="card", run="e", planned=COST.total(1), limits=limits)


@pytest.mark.parametrize(
    ("limits", "key"),
    [
        (Limits(epsilon_per_study=0.999999, epsilon_per_year=9.0, delta=1e-6), "epsilon_per_study"),
        (Limits(epsilon_per_study=9.0, epsilon_per_year=0.999999, delta=1e-6), "epsilon_per_year"),
    ],
)
def test_a_run_beyond_a_cap_is_refused_whole_and_leaves_nothing(ledger, limits, key):
    with pytest.raises(Refused, match=rf"policy\.{key} in client\.toml") as caught:
        ledger.reserve(study="card", run="a", planned=COST.total(1), limits=limits)
    assert caught.value.code == "budget"
    assert "\n" not in str(caught.value)
    assert ledger.summary(limits).entries == ()


def test_the_number_in_the_message_is_what_may_still_be_asked(ledger):
    for run in "abc":
        play(ledger, run, study=run)
    left = ledger.remaining(LIMITS, "d")
    too_much = RunCost.of(PrivacyTarget(epsilon=left * 1.001, delta=1e-6)).total(1)
    with pytest.raises(Refused, match="leaves room for a run of epsilon") as caught:
        ledger.reserve(study="d", run="d", planned=too_much, limits=LIMITS)
    shown = float(str(caught.value).split("room for a run of epsilon ")[1].split(". ")[0])
    assert left - 1e-4 <= shown <= left * (1 + 1e-9)
    ledger.reserve(
        study="d",
        run="d",
        planned=RunCost.of(PrivacyTarget(epsilon=shown, delta=1e-6)).total(1),
        limits=LIMITS,
    )


def test_what_is_left_may_be_used_up_to_the_last_bit(ledger):
    play(ledger, "a")
    rest = RunCost.of(PrivacyTarget(epsilon=ledger.remaining(LIMITS, "card"), delta=1e-6))
    ledger.reserve(study="card", run="b", planned=rest.total(1), limits=LIMITS)
    assert ledger.remaining(LIMITS, "card") < 1e-3


def test_open_reservations_count_in_full(ledger):
    """Two runs that are only promised cannot together be promised more than the cap."""
    limits = Limits(epsilon_per_study=1.2, epsilon_per_year=9.0, delta=1e-6)
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=limits)
    with pytest.raises(Refused, match="this study's"):
        ledger.reserve(study="card", run="b", planned=COST.total(1), limits=limits)
    assert ledger.summary(limits).spent_epsilon == 0.0
    assert ledger.summary(limits).reserved_epsilon == pytest.approx(1.0)
    ledger.reserve(study="other", run="b", planned=COST.total(1), limits=limits)


def test_closing_frees_what_was_not_charged_and_nothing_else(ledger):
    limits = Limits(epsilon_per_study=1.0, epsilon_per_year=1.0, delta=1e-6)
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=limits)
    charge(ledger)
    ledger.close_run(run="a", outcome="aborted")
    summary = ledger.summary(limits)
    assert 0 < summary.spent_epsilon == summary.reserved_epsilon < 0.4
    with pytest.raises(Refused):
        ledger.reserve(study="card", run="b", planned=COST.total(1), limits=limits)


def test_the_year_rolls_but_the_study_does_not():
    clock = Clock()
    limits = Limits(epsilon_per_study=1.2, epsilon_per_year=1.2, delta=1e-6)
    with Ledger.open(":memory:", IDENTITY, clock) as ledger:
        play(ledger, "a", limits=limits)
        clock.now += YEAR_S - DAY_S
        with pytest.raises(Refused, match="this year's"):
            ledger.reserve(study="other", run="b", planned=COST.total(1), limits=limits)
        clock.now += 2 * DAY_S
        with pytest.raises(Refused, match="this study's"):
            ledger.reserve(study="card", run="b", planned=COST.total(1), limits=limits)
        ledger.reserve(study="other", run="b", planned=COST.total(1), limits=limits)


def test_an_open_reservation_does_not_expire_with_the_year():
    clock = Clock()
    limits = Limits(epsilon_per_study=1.2, epsilon_per_year=1.2, delta=1e-6)
    with Ledger.open(":memory:", IDENTITY, clock) as ledger:
        ledger.reserve(study="card", run="a", planned=COST.total(1), limits=limits)
        clock.now += 2 * YEAR_S
        with pytest.raises(Refused, match="this year's"):
            ledger.reserve(study="other", run="b", planned=COST.total(1), limits=limits)


def test_a_clock_set_back_frees_nothing():
    clock = Clock()
    limits = Limits(epsilon_per_study=9.0, epsilon_per_year=1.2, delta=1e-6)
    with Ledger.open(":memory:", IDENTITY, clock) as ledger:
        play(ledger, "a", limits=limits)
        for away in (-10 * YEAR_S, -DAY_S, 0.0):
            clock.now = 1_000_000.0 + away
            with pytest.raises(Refused, match="this year's"):
                ledger.reserve(study="other", run="b", planned=COST.total(1), limits=limits)
        clock.now = -10 * YEAR_S
        ledger.reserve(study="x", run="x", planned=[Event(noise_multiplier=1e6)], limits=limits)
        times = [entry["time"] for entry in ledger.summary(limits).entries]
        assert times == sorted(times)


@given(epsilons=st.lists(st.floats(0.05, 2.0), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_no_sequence_of_runs_ever_passes_the_cap(epsilons):
    with Ledger.open(":memory:", IDENTITY, Clock()) as ledger:
        for number, epsilon in enumerate(epsilons):
            cost = RunCost.of(PrivacyTarget(epsilon=epsilon, delta=1e-6))
            before = ledger.remaining(LIMITS, "card")
            try:
                ledger.reserve(study="card", run=str(number), planned=cost.total(5), limits=LIMITS)
            except Refused:
                assert epsilon > before * (1 - 1e-9)
            else:
                assert epsilon < before * (1 + 1e-6) + 1e-9
        assert ledger.summary(LIMITS).reserved_epsilon <= LIMITS.epsilon_per_study * (1 + 1e-9)


@pytest.mark.slow
def test_sampled_steps_are_reserved_and_charged_step_by_step(ledger):
    plan = Event(noise_multiplier=1.0, sample_rate=0.01, steps=100)
    ledger.reserve(study="card", run="a", planned=[plan], limits=LIMITS)
    most = Event(noise_multiplier=1.0, sample_rate=0.01, steps=99)
    charge(ledger, event=most)
    with pytest.raises(Refused):
        charge(ledger, number=1, event=Event(noise_multiplier=1.0, sample_rate=0.01, steps=2))
    with pytest.raises(Refused):
        charge(ledger, number=1, event=Event(noise_multiplier=2.0, sample_rate=0.01))
    charge(ledger, number=1, event=Event(noise_multiplier=1.0, sample_rate=0.01))
    assert 0.5 < ledger.summary(LIMITS).spent_epsilon < 2.0


# --- one release per round --------------------------------------------------------------------------


def test_the_same_round_is_charged_once_and_gives_the_same_bytes(ledger):
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
    assert charge(ledger) is None
    assert charge(ledger) is None  # charged, and the process died before it released
    assert ledger.release(run="a", round=0, payload=b"first") == b"first"
    assert charge(ledger) == b"first"
    assert ledger.release(run="a", round=0, payload=b"second") == b"first"
    assert [entry["kind"] for entry in ledger.summary(LIMITS).entries[2:]] == ["charge", "release"]


def test_a_closed_run_gives_nothing_again_and_has_nothing_to_give(ledger):
    play(ledger, "a")
    for call in (
        lambda: charge(ledger, number=0),
        lambda: charge(ledger, number=0, sensitivity=4.0),
        lambda: ledger.release(run="a", round=0, payload=b"new noise"),
    ):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.code == "closed"
    assert {row["payload"] for row in ledger._store._db.execute("SELECT payload FROM ledger")} == {None}
    assert ledger.summary(LIMITS).entries[3]["payload_sha256"] == hashlib.sha256(b"0").hexdigest()
    ledger.verify()


@pytest.mark.parametrize(
    "changed",
    [{"event": COST.gradient(5)}, {"sensitivity": 4.0}, {"mechanism": "laplace"}],
)
def test_a_round_cannot_be_repeated_at_another_cost(ledger, changed):
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
    charge(ledger)
    with pytest.raises(Refused, match="another cost") as caught:
        charge(ledger, **changed)
    assert caught.value.code == "changed"


def test_a_round_cannot_be_asked_another_question(ledger):
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
    asked = {"run": "a", "round": 0, "mechanism": "gaussian", "sensitivity": 5.0, "event": COST.counts}
    assert ledger.charge(**asked, question="these holders", noise_share=0.25) is None
    for changed, words in (
        ({"question": "other holders", "noise_share": 0.25}, "another question"),
        ({"question": "these holders", "noise_share": 0.5}, "another cost"),
        ({}, "another cost"),
    ):
        for _ in range(2):
            with pytest.raises(Refused, match=words) as caught:
                ledger.charge(**asked, **changed)
            assert caught.value.code == "changed"
            ledger.release(run="a", round=0, payload=b"x")  # also when it was released
    assert ledger.charge(**asked, question="these holders", noise_share=0.25) == b"x"
    entry = ledger.summary(LIMITS).entries[2]
    assert (entry["question"], entry["noise_share"]) == ("these holders", 0.25)


def test_a_round_is_opened_for_one_list_of_survivors(ledger):
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
    charge(ledger)
    with pytest.raises(Refused, match="not released"):
        ledger.open_round(run="a", round=0, survivors="x,y,z")
    ledger.release(run="a", round=0, payload=b"first")
    ledger.open_round(run="a", round=0, survivors="x,y,z")
    ledger.open_round(run="a", round=0, survivors="x,y,z")
    for survivors in ("x,y", "x,y,z,w", ""):
        with pytest.raises(Refused, match="other survivors") as caught:
            ledger.open_round(run="a", round=0, survivors=survivors)
        assert caught.value.code == "changed"
    kinds = [entry["kind"] for entry in ledger.summary(LIMITS).entries]
    assert kinds.count("open") == 1
    with pytest.raises(Refused, match="not reserved"):
        ledger.open_round(run="b", round=0, survivors="x,y,z")
    charge(ledger, number=1, event=COST.gradient(5))
    ledger.release(run="a", round=1, payload=b"second")
    ledger.close_run(run="a", outcome="done")
    ledger.open_round(run="a", round=0, survivors="x,y,z")
    with pytest.raises(Refused, match="closed"):
        ledger.open_round(run="a", round=1, survivors="x,y,z")
    ledger.verify()


@pytest.mark.parametrize("kind", ["charge", "release", "open"])
def test_the_file_itself_holds_one_row_of_a_kind_per_round(ledger, kind):
    """Should a check above it fail, the database still refuses."""
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
    ledger._append(kind=kind, study="card", run="a", round=0)
    with pytest.raises(sqlite3.IntegrityError):
        ledger._append(kind=kind, study="card", run="a", round=0)


def test_what_was_rolled_back_is_not_remembered(ledger):
    """The account kept in memory follows the file, also where a transaction fails after it was looked at."""
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
    row = {"mechanism": "m", "sensitivity": 1.0, "noise_multiplier": 50.0, "sample_rate": 1.0, "steps": 1}

    def fail_late():
        with ledger._store.transaction():
            ledger._append(kind="charge", study="card", run="a", round=0, **row)
            assert len(ledger._run("a").charged) == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail_late()
    assert ledger.charged("a") == ()
    charge(ledger)
    assert ledger.charged("a") == (COST.counts,)


def test_an_abort_refunds_nothing(ledger):
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
    charge(ledger)
    before = ledger.summary(LIMITS).spent_epsilon
    ledger.close_run(run="a", outcome="aborted")
    assert ledger.summary(LIMITS).spent_epsilon == before > 0


def test_a_charge_beyond_the_reservation_is_refused(ledger):
    ledger.reserve(study="card", run="a", planned=COST.total(30), limits=LIMITS)
    charge(ledger)
    for number in range(1, 31):
        charge(ledger, number=number, event=COST.gradient(30))
    with pytest.raises(Refused, match="used up") as caught:
        charge(ledger, number=31, event=Event(noise_multiplier=10_000.0))
    assert caught.value.code == "budget"


def test_an_unknown_run_cannot_charge_release_or_close(ledger):
    for call in (
        lambda: charge(ledger),
        lambda: ledger.release(run="a", round=0, payload=b""),
        lambda: ledger.close_run(run="a", outcome="done"),
    ):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.code == "unknown"
    assert ledger.summary(LIMITS).entries == ()


def test_nothing_is_released_that_was_not_charged(ledger):
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
    with pytest.raises(Refused, match="not charged"):
        ledger.release(run="a", round=0, payload=b"x")


def test_a_closed_run_is_closed(ledger):
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
    charge(ledger)
    ledger.close_run(run="a", outcome="aborted")
    ledger.close_run(run="a", outcome="done")
    assert [entry["outcome"] for entry in ledger.summary(LIMITS).entries if entry["kind"] == "close"] == [
        "aborted"
    ]
    for call in (
        lambda: charge(ledger),
        lambda: charge(ledger, number=1),
        lambda: ledger.release(run="a", round=0, payload=b"x"),
        lambda: ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS),
    ):
        with pytest.raises(Refused, match="closed"):
            call()


def test_reserving_again_changes_nothing_unless_the_plan_changed(ledger):
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
    assert len(ledger.summary(LIMITS).entries) == 2
    for study, rounds in (("other", 1), ("card", 2)):
        with pytest.raises(Refused, match="another study or plan"):
            ledger.reserve(study=study, run="a", planned=COST.total(rounds), limits=LIMITS)


@pytest.mark.parametrize("values", [{"sensitivity": 0.0}, {"sensitivity": float("nan")}, {"number": -1}])
def test_a_charge_that_makes_no_sense_is_refused(ledger, values):
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
    with pytest.raises(BadInput):
        charge(ledger, **values)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_a_noise_share_is_a_part_of_the_whole(ledger, share):
    ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
    with pytest.raises(BadInput, match="noise_share"):
        ledger.charge(run="a", round=0, mechanism="m", sensitivity=1.0, event=COST.counts, noise_share=share)


def test_an_empty_plan_is_refused(ledger):
    with pytest.raises(BadInput, match="planned"):
        ledger.reserve(study="card", run="a", planned=(), limits=LIMITS)


@pytest.mark.parametrize("setting", ["epsilon_per_study", "epsilon_per_year", "delta"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_limits_must_be_positive_and_finite(setting, value):
    with pytest.raises(BadInput, match=setting):
        Limits(**{"epsilon_per_study": 1.0, "epsilon_per_year": 1.0, "delta": 1e-6, setting: value})


def test_threads_share_one_ledger(path):
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
        answers: list[bytes | None] = []

        def work() -> None:
            for number in range(1, 21):
                charge(ledger, number=number, event=COST.gradient(20))
                mine = str(threading.get_ident()).encode()
                answers.append(ledger.release(run="a", round=number, payload=mine))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kinds = [entry["kind"] for entry in ledger.summary(LIMITS).entries]
        assert (kinds.count("charge"), kinds.count("release"), len(answers)) == (20, 20, 80)
        ledger.verify()


# --- the file ---------------------------------------------------------------------------------------


def test_the_file_is_private_and_durable(path):
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        play(ledger, "a")
        database = ledger._store._db
        assert database.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert database.execute("PRAGMA secure_delete").fetchone()[0] == 1
        assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_ledger_that_others_may_read_is_refused(path):
    Ledger.open(path, IDENTITY).close()
    path.chmod(0o644)
    with pytest.raises(BadInput, match="chmod 600"):
        Ledger.open(path, IDENTITY)


def test_a_second_daemon_is_refused_by_name_and_a_reader_is_not(path):
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        play(ledger, "a")
        with pytest.raises(Unavailable, match=r"ledger\.sqlite is held by another process"):
            Ledger.open(path, IDENTITY)
        with Ledger.open(path, IDENTITY, read_only=True) as reader:
            reader.verify()
            assert len(reader.summary(LIMITS).entries) == 11
            with pytest.raises(Unavailable, match="readonly"):
                play(reader, "b")
        play(ledger, "b")
    Ledger.open(path, IDENTITY).close()


def test_a_refused_opening_lets_go_of_the_lock(path):
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        play(ledger, "a")
    with pytest.raises(Tampered):
        Ledger.open(path, Identity.generate())
    Ledger.open(path, IDENTITY).close()


def test_a_newer_or_foreign_file_is_refused(path):
    Ledger.open(path, IDENTITY).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 3")
    database.close()
    with pytest.raises(BadInput, match="ledger version is 3; allowed: 2"):
        Ledger.open(path, IDENTITY)
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 1")
    database.close()
    with pytest.raises(BadInput, match=r"version is 1; allowed: 2\. Use the version of Assay that wrote it"):
        Ledger.open(path, IDENTITY)
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 0")
    database.close()
    with pytest.raises(BadInput, match="ledger version is 0"):
        Ledger.open(path, IDENTITY)


def test_a_file_that_is_no_database_is_refused(path):
    path.write_bytes(b"not a database, but long enough to be looked at as one" * 20)
    path.chmod(0o600)
    with pytest.raises(Tampered, match="not a readable ledger"):
        Ledger.open(path, IDENTITY)


def test_reading_a_ledger_that_is_not_there_creates_nothing(path):
    with pytest.raises(BadInput):
        Ledger.open(path, IDENTITY, read_only=True)
    assert list(path.parent.iterdir()) == []


# --- tampering --------------------------------------------------------------------------------------

TAMPERING = {
    "an edited value": ("UPDATE ledger SET noise_multiplier = 99.0 WHERE seq = 3", "row 3"),
    "an edited time": ("UPDATE ledger SET time = time - 400 * 86400 WHERE seq = 5", "row 5"),
    "an edited outcome": ("UPDATE ledger SET outcome = 'aborted' WHERE seq = 11", "row 11"),
    "a deleted row": ("DELETE FROM ledger WHERE seq = 4", "row 4 is missing"),
    "the first row deleted": ("DELETE FROM ledger WHERE seq = 1", "row 1 is missing"),
    "a deleted tail": ("DELETE FROM ledger WHERE seq > 9", "row 10 is missing; the head names row 11"),
    "a tail and the head deleted": (
        "DELETE FROM ledger WHERE seq > 9; DELETE FROM head",
        "the head is missing after row 9",
    ),
    "an older head": ("UPDATE head SET seq = 10", "the head: the signature"),
    "swapped rows": (
        "UPDATE ledger SET seq = 100 WHERE seq = 3; UPDATE ledger SET seq = 3 WHERE seq = 5;"
        "UPDATE ledger SET seq = 5 WHERE seq = 100",
        "row 3",
    ),
    "deleted and renumbered": (
        "DELETE FROM ledger WHERE seq = 4; UPDATE ledger SET seq = seq - 1 WHERE seq > 4",
        "row 4",
    ),
    "another payload than was erased": (
        "UPDATE ledger SET payload = x'00' WHERE seq = 6",
        "row 6: the released bytes are not those that were signed",
    ),
    "an edited question": ("UPDATE ledger SET question = 'other' WHERE seq = 3", "row 3"),
    "an edited noise share": ("UPDATE ledger SET noise_share = 0.5 WHERE seq = 3", "row 3"),
    "another next key": ("UPDATE ledger SET next_key = prev_hash WHERE seq = 4", "row 4"),
    "a value no row can hold": ("UPDATE ledger SET sensitivity = 9e999 WHERE seq = 4", "row 4 is damaged"),
    "no release key": ("DELETE FROM release_key", "the release key is not the one that row 11 names"),
    "another release key": (
        "UPDATE release_key SET private = randomblob(32)",
        "the release key is not the one that row 11 names",
    ),
    "a release key cut short": ("UPDATE release_key SET private = x'00'", "the release key is not"),
    "a forged signature": (
        "UPDATE ledger SET signature = zeroblob(64) WHERE seq = 7",
        "row 7: the signature",
    ),
}


def tamper(path, script):
    database = sqlite3.connect(path)
    database.executescript(script)
    database.close()


@pytest.mark.parametrize(("script", "words"), TAMPERING.values(), ids=TAMPERING.keys())
def test_tampering_is_noticed_and_the_first_bad_row_is_named(path, script, words):
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        play(ledger, "a")
        ledger.verify()
    tamper(path, script)
    with Ledger.open(path, IDENTITY, read_only=True) as reader, pytest.raises(Tampered, match=words):
        reader.verify()
    with pytest.raises(Tampered, match=words):
        Ledger.open(path, IDENTITY)


OPEN_TAMPERING = {
    "a changed payload": ("payload = x'00' WHERE seq = 7", "row 7: the released bytes are not those"),
    "a removed payload": ("payload = NULL WHERE seq = 7", "row 7: the released bytes are missing"),
    "all released payloads removed": (
        "payload = NULL WHERE kind = 'release'",
        "row 4: the released bytes are missing",
    ),
    "a removed list of survivors": (
        "payload = NULL WHERE seq = 5",
        "row 5: the released bytes are not those",
    ),
}


@pytest.mark.parametrize(("change", "words"), OPEN_TAMPERING.values(), ids=OPEN_TAMPERING.keys())
def test_what_an_open_run_released_must_be_there(path, change, words):
    """Also where another run is closed, which erases its own releases and no others."""
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
        charge(ledger, number=0, event=COST.gradient(40))
        ledger.release(run="a", round=0, payload=b"first")
        ledger.open_round(run="a", round=0, survivors="x,y,z")
        charge(ledger, number=1, event=COST.gradient(40))
        ledger.release(run="a", round=1, payload=b"second")
        play(ledger, "b", study="other", rounds=1)
        assert charge(ledger, number=1, event=COST.gradient(40)) == b"second"
        ledger.verify()
    tamper(path, f"UPDATE ledger SET {change}")
    with pytest.raises(Tampered, match=words):
        Ledger.open(path, IDENTITY)


def test_another_holders_ledger_does_not_verify(path):
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        play(ledger, "a")
    with pytest.raises(Tampered, match="row 1"):
        Ledger.open(path, Identity.generate())


def test_a_row_moved_to_another_ledger_of_the_same_holder_is_noticed(tmp_path):
    """Same identity, other history: other release keys."""
    for name, rounds in (("one", 2), ("two", 3)):
        with Ledger.open(tmp_path / name, IDENTITY, Clock()) as ledger:
            play(ledger, name, rounds=rounds)
    tamper(
        tmp_path / "two",
        f"ATTACH '{tmp_path / 'one'}' AS other; DELETE FROM ledger WHERE seq = 3;"
        "INSERT INTO ledger SELECT * FROM other.ledger WHERE seq = 3",
    )
    with pytest.raises(Tampered, match="row 3: the signature"):
        Ledger.open(tmp_path / "two", IDENTITY)


def test_any_flipped_byte_is_noticed_or_changes_nothing(path):
    """Bytes that SQLite does not read may change; what the ledger says may not."""
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        play(ledger, "a")
        said = ledger.summary(LIMITS)
    whole = path.read_bytes()
    noticed = 0
    for position in range(0, len(whole), 79):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        try:
            with Ledger.open(path, IDENTITY, Clock(), read_only=True) as reader:
                reader.verify()
                assert reader.summary(LIMITS) == said
        except (BadInput, Tampered, Unavailable):
            noticed += 1
    assert noticed > 50


@pytest.mark.parametrize(
    "script",
    [
        "DROP INDEX once_per_round",
        "CREATE TRIGGER forget AFTER INSERT ON ledger BEGIN DELETE FROM ledger WHERE seq = new.seq - 1; END",
        "ALTER TABLE ledger RENAME COLUMN question TO answer",
    ],
)
def test_changed_tables_are_noticed(path, script):
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        play(ledger, "a")
    tamper(path, script)
    for read_only in (True, False):
        with pytest.raises(Tampered, match="not those of a ledger"):
            Ledger.open(path, IDENTITY, read_only=read_only)


def test_an_index_that_lost_a_round_is_noticed(path):
    """The index says whether a round was charged before: rows are whole, and the round looks new."""
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        play(ledger, "a")
    with sqlite3.connect(path) as database:
        (page,) = database.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'once_per_round'"
        ).fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    database.close()
    data = bytearray(path.read_bytes())
    at = (page - 1) * size + 3  # number of cells of the index's root page
    data[at : at + 2] = (int.from_bytes(data[at : at + 2], "big") - 1).to_bytes(2, "big")
    path.write_bytes(data)
    with pytest.raises(Tampered, match="damaged"):
        Ledger.open(path, IDENTITY)


# --- the release key --------------------------------------------------------------------------------


def resign(path, seq, identity, **changes):
    """Edit row ``seq``, sign it anew, and link and sign all that follows with the same key."""
    database = sqlite3.connect(path)
    database.row_factory = sqlite3.Row
    last = None
    for row in database.execute("SELECT * FROM ledger WHERE seq >= ? ORDER BY seq", (seq,)).fetchall():
        body = {column: row[column] for column in COLUMNS} | (changes if row["seq"] == seq else {})
        body["prev_hash"] = last or body["prev_hash"]
        signed = canonical_json(body)
        last = hashlib.sha256(signed).hexdigest()
        names = ", ".join(f"{column} = ?" for column in COLUMNS)
        database.execute(
            f"UPDATE ledger SET {names}, signature = ? WHERE seq = ?",
            [*body.values(), identity.sign("ledger", signed), row["seq"]],
        )
    head = canonical_json({"hash": last, "seq": row["seq"]})
    signature = IDENTITY.sign("ledger-head", head)
    database.execute("UPDATE head SET hash = ?, signature = ?", (last, signature))
    database.commit()
    database.close()


@pytest.mark.parametrize("seq", [2, 5, 11])
def test_the_identity_key_cannot_rewrite_a_past_row(path, seq):
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        play(ledger, "a")
    resign(path, seq, IDENTITY, study="cheaper")
    with pytest.raises(Tampered, match=f"row {seq}: the signature"):
        Ledger.open(path, IDENTITY)


def test_todays_release_key_cannot_rewrite_a_past_row(path):
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        play(ledger, "a")
        stored = ledger._store._db.execute("SELECT private FROM release_key").fetchone()["private"]
    resign(path, 11, Identity(Ed25519PrivateKey.from_private_bytes(stored)), outcome="aborted")
    with pytest.raises(Tampered, match="row 11: the signature"):
        Ledger.open(path, IDENTITY)


def test_no_file_holds_a_release_key_that_signed(path):
    """Nor the write-ahead log: the keys of a release and of all rows before it are gone when it returns."""
    keys = []

    def note():
        keys.append(ledger._store._db.execute("SELECT private FROM release_key").fetchone()["private"])

    def search():
        files = b"".join(file.read_bytes() for file in path.parent.iterdir())
        assert keys[-1] in files
        assert not [number for number, key in enumerate(keys[:-1]) if key in files]

    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
        note()
        for number in range(12):
            charge(ledger, number=number, event=COST.gradient(40))
            note()
            ledger.release(run="a", round=number, payload=bytes(5000))
            note()
            search()
            ledger.open_round(run="a", round=number, survivors="x,y,z")
            note()
        ledger.close_run(run="a", outcome="done")
        note()
        search()
    assert len(set(keys)) == 38


@pytest.mark.parametrize("size", [16, 300, 1000, 3000, 9000])
def test_no_file_holds_what_a_closed_run_released(path, size):
    """Nor a part of it on a page that SQLite moved rows away from, nor in the write-ahead log."""
    payloads = [random.Random(number).randbytes(size) for number in range(12)]

    def left():
        files = b"".join(file.read_bytes() for file in path.parent.iterdir())
        return [
            number
            for number, payload in enumerate(payloads)
            if any(payload[at : at + 8] in files for at in range(0, size, 8))
        ]

    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
        for number, payload in enumerate(payloads):
            charge(ledger, number=number, event=COST.gradient(40))
            ledger.release(run="a", round=number, payload=payload)
            ledger.open_round(run="a", round=number, survivors="x,y,z")
        assert left() == list(range(12))
        ledger.close_run(run="a", outcome="done")
        assert left() == []
        ledger.verify()
    assert left() == []


def test_a_run_is_closed_and_erased_or_neither(path, monkeypatch):
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
        charge(ledger)
        ledger.release(run="a", round=0, payload=b"first")

        def fail(*_):
            raise KeyError

        with monkeypatch.context() as failing:
            failing.setattr(LedgerStore, "erase_releases", fail)
            with pytest.raises(KeyError):
                ledger.close_run(run="a", outcome="done")
        assert ledger.open_runs() == ("a",)
        assert charge(ledger) == b"first"
        ledger.verify()


def test_a_crash_leaves_no_release_key_behind_the_next_start(path, tmp_path):
    """The files as they are in the middle of a run: the write-ahead log still holds keys."""
    copy = tmp_path / "copy"
    copy.mkdir()
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
        old = ledger._store._db.execute("SELECT private FROM release_key").fetchone()["private"]
        charge(ledger)
        for suffix in ("", "-wal"):
            file = copy / (path.name + suffix)
            file.write_bytes(path.with_name(path.name + suffix).read_bytes())
            file.chmod(0o600)
    assert any(old in file.read_bytes() for file in copy.iterdir())
    with Ledger.open(copy / path.name, IDENTITY, Clock()) as ledger:
        assert len(ledger.summary(LIMITS).entries) == 3
        assert not [file for file in copy.iterdir() if old in file.read_bytes()]


def test_a_reader_in_the_way_does_not_hold_up_a_charge(path):
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
        with Ledger.open(path, IDENTITY, read_only=True) as reader, reader._store.transaction(write=False):
            reader._store.rows()
            began = time.monotonic()
            charge(ledger)
            assert time.monotonic() - began < 5.0
        ledger.release(run="a", round=0, payload=b"x")
        ledger.verify()


# --- older copies and clones ------------------------------------------------------------------------


def test_whoever_saw_a_later_row_notices_an_older_copy_and_a_clone(path, tmp_path):
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        empty = ledger.head()
        play(ledger, "a", study="one")
        common = ledger.head()
    clone = tmp_path / "clone.sqlite"
    clone.write_bytes(path.read_bytes())
    clone.chmod(0o600)
    heads = []
    for file in (path, clone):  # both go on, and each is genuine in itself
        with Ledger.open(file, IDENTITY, Clock()) as ledger:
            play(ledger, "b", study=file.name)
            ledger.verify()
            heads.append(ledger.head())
            for head in (empty, common, heads[-1]):
                ledger.require_prefix(*head)
    (seq, first), (same_seq, second) = heads
    assert seq == same_seq
    with Ledger.open(clone, IDENTITY, Clock()) as ledger:
        for number, digest in ((seq, first), (seq + 1, second), (3, second), (0, "00" * 32), (-1, second)):
            with pytest.raises(Refused, match="older copy, or its directory was cloned") as caught:
                ledger.require_prefix(number, digest)
            assert caught.value.code == "ledger"
            assert "\n" not in str(caught.value)


def test_every_row_can_be_asked_for(ledger):
    heads = [ledger.head()]
    ledger.reserve(study="card", run="a", planned=[COST.counts], limits=LIMITS)
    heads.append(ledger.head())
    charge(ledger)
    heads.append(ledger.head())
    for number, (seq, digest) in enumerate(heads):
        assert seq == number
        ledger.require_prefix(seq, digest)


# --- crashes ----------------------------------------------------------------------------------------

CRASHING = """
import sys
from pathlib import Path
from assay.privacy.accounting import Event
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger, Limits
directory, run = Path(sys.argv[1]), sys.argv[2]
with Ledger.open(directory / "ledger.sqlite", Identity.load(directory / "identity.key")) as ledger:
    limits = Limits(epsilon_per_study=9.0, epsilon_per_year=9.0, delta=1e-6)
    ledger.reserve(study="card", run=run, planned=[Event(noise_multiplier=1e6, steps=10**6)], limits=limits)
    for number in range(10**6):
        ledger.charge(run=run, round=number, mechanism="gaussian", sensitivity=1.0,
                      event=Event(noise_multiplier=1e6))
        print("charged", number, flush=True)
        ledger.release(run=run, round=number, payload=b"%d" % number)
        print("released", number, flush=True)
"""


@pytest.mark.slow
def test_kill_9_loses_no_acknowledged_row(tmp_path):
    IDENTITY.save(tmp_path / "identity.key")
    for attempt in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", CRASHING, str(tmp_path), str(attempt)], stdout=subprocess.PIPE, text=True
        )
        # The death comes at another moment in each attempt: after 3, 10, 17, ... acknowledgements.
        lines = [child.stdout.readline() for _ in range(3 + 7 * attempt)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
        child.wait()
        child.stdout.close()
        acknowledged = {tuple(line.split()) for line in lines if line.endswith("\n")}
        with Ledger.open(tmp_path / "ledger.sqlite", IDENTITY) as ledger:  # verifies
            rows = [entry for entry in ledger.summary(LIMITS).entries if entry["run"] == str(attempt)]
            kept = {
                ({"charge": "charged", "release": "released"}.get(row["kind"]), str(row["round"]))
                for row in rows
            }
            assert acknowledged - {()} <= kept
            assert len(rows) == len({(row["kind"], row["round"]) for row in rows})


def test_a_reservation_that_fails_half_way_leaves_nothing():
    class Stopping(Clock):
        calls = 0

        def __call__(self) -> float:
            self.calls += 1
            if self.calls == 3:  # asked once for the year and once for each row
                raise OSError("no clock")
            return self.now

    with Ledger.open(":memory:", IDENTITY, Stopping()) as ledger:
        with pytest.raises(OSError, match="no clock"):
            ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
        assert ledger.summary(LIMITS).entries == ()
        play(ledger, "a")
        ledger.verify()


def test_a_full_disk_charges_nothing(path):
    with Ledger.open(path, IDENTITY, Clock()) as ledger:
        ledger.reserve(study="card", run="a", planned=COST.total(1), limits=LIMITS)
        pages = ledger._store._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._store._db.execute(f"PRAGMA max_page_count = {pages}")
        charge(ledger)
        with pytest.raises(Unavailable, match="full"):
            ledger.release(run="a", round=0, payload=bytes(200_000))
        assert [entry["kind"] for entry in ledger.summary(LIMITS).entries] == ["reserve", "reserve", "charge"]
        ledger._store._db.execute("PRAGMA max_page_count = 100000")
        assert ledger.release(run="a", round=0, payload=bytes(200_000)) == bytes(200_000)
        ledger.verify()


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path):
    (tmp_path / "keys").mkdir(mode=0o700)
    IDENTITY.save(tmp_path / "keys" / "identity.key")
    (tmp_path / "client.toml").write_text(
        "[policy]\nepsilon_per_study = 2.0\nepsilon_per_year = 3\ndelta = 1e-6\n", encoding="utf-8"
    )
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(app, ["ledger", *map(str, arguments)])


def test_command_lists_an_empty_ledger_without_making_one(home):
    result = call(home, "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (answer["entries"], answer["spent_epsilon"], answer["limit_epsilon"], answer["verified"]) == (
        [],
        0.0,
        3.0,
        True,
    )
    assert not (home / "ledger.sqlite").exists()


def test_command_shows_every_charge_while_the_daemon_runs(home):
    with Ledger.open(home / "ledger.sqlite", IDENTITY) as ledger:
        play(ledger, "a" * 32, study="[card]")
        answer = json.loads(call(home, "--json").stdout)
        text = call(home).stdout
    assert len(answer["entries"]) == 11
    assert answer["spent_epsilon"] == pytest.approx(1.0)
    assert answer["studies"] == {"[card]": answer["spent_epsilon"]}
    assert answer["verified"] is True
    assert {"seq", "prev_hash", "kind", "study", "run", "round", "signature"} <= set(answer["entries"][0])
    assert "[card]" in text
    assert "close (done)" in text
    assert "11 entries, verified" in text


def test_command_exits_1_when_the_ledger_was_changed(home):
    with Ledger.open(home / "ledger.sqlite", IDENTITY) as ledger:
        play(ledger, "a" * 32)
    for script in (
        "UPDATE ledger SET sensitivity = 1 WHERE seq = 3",
        "UPDATE ledger SET steps = -1 WHERE seq = 4",
    ):
        tamper(home / "ledger.sqlite", script)
        result = call(home, "--verify", "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["verified"] is False
        assert "row 3: the signature does not verify" in result.stderr
        assert "NOT VERIFIED" in call(home, "--verify").stdout


def test_command_reports_a_file_that_is_no_ledger(home):
    (home / "ledger.sqlite").write_bytes(b"scribble" * 200)
    (home / "ledger.sqlite").chmod(0o600)
    result = call(home, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["verified"] is False


@pytest.mark.parametrize("line", ["delta = 1e-6", "epsilon_per_year = 3"])
def test_command_names_a_missing_or_wrong_cap(home, line):
    text = (home / "client.toml").read_text()
    key = line.split(" = ")[0]
    for broken in (
        text.replace(line, ""),
        text.replace(line, f'{key} = "much"'),
        text.replace(line, f"{key} = true"),
    ):
        (home / "client.toml").write_text(broken)
        result = call(home, "--json")
        assert result.exit_code == 2
        assert f"policy.{key}" in result.stderr
        assert result.stdout == ""


def test_command_needs_the_holders_directory(tmp_path):
    assert call(tmp_path / "nowhere").exit_code == 2


def test_the_file_alone_is_the_ledger_once_a_run_is_closed(tmp_path):
    """An everyday backup copies ``ledger.sqlite`` and forgets its write-ahead log."""
    identity = Identity.generate()
    event = Event(noise_multiplier=10.0)
    limits = Limits(epsilon_per_study=3.0, epsilon_per_year=6.0, delta=1e-6)
    with Ledger.open(tmp_path / "ledger.sqlite", identity) as ledger:
        ledger.reserve(study="s", run="r", planned=[event], limits=limits)
        ledger.charge(run="r", round=0, mechanism="gaussian", sensitivity=1.0, event=event)
        ledger.release(run="r", round=0, payload=b"x" * 100)
        ledger.close_run(run="r", outcome="done")
        copy = tmp_path / "copy.sqlite"
        copy.write_bytes((tmp_path / "ledger.sqlite").read_bytes())
        copy.chmod(0o600)
    with Ledger.open(copy, identity, read_only=True) as restored:
        assert [entry["kind"] for entry in restored.summary(limits).entries] == [
            "reserve",
            "charge",
            "release",
            "close",
        ]
