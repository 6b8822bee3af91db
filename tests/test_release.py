"""One release: charged before it is computed, stored before it leaves, the same bytes for ever after."""

import numpy as np
import pytest

from assay.client.books import Books
from assay.client.release import NoisySum, release, require_released
from assay.privacy.accounting import PrivacyTarget, RunCost
from assay.privacy.auditlog import AuditLog
from assay.privacy.errors import Refused
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger, Limits
from assay.privacy.mechanism import IntegerMechanism
from assay.privacy.messages import (
    Release,
)

RUN = "00112233445566778899aabbccddeeff"
COST = RunCost.of(PrivacyTarget(epsilon=1.0, delta=1e-6))
RESERVED = ["reserve"] * len(COST.total(1))  # one row per kind of release
LIMITS = Limits(epsilon_per_study=1.0, epsilon_per_year=1.0, delta=1e-6)
SENSITIVITY = 2.5
CONTEXT = "c0" * 32
IDENTITY = Identity.generate()


class Home:
    """Ledger and log of one holder on disk; another process can look at them."""

    def __init__(self, folder):
        self.path = folder / "ledger.sqlite"
        self.audit = AuditLog.open(folder / "audit.log", IDENTITY)
        self.ledger = Ledger.open(self.path, IDENTITY, log_head=self.audit.head)
        self.books = Books(ledger=self.ledger, audit=self.audit)
        self.books.settle()

    def reserve(self):
        self.ledger.reserve(study="toy", run=RUN, planned=COST.total(1), limits=LIMITS)

    def close(self):
        self.ledger.close()
        self.audit.close()


@pytest.fixture
def home(tmp_path):
    opened = Home(tmp_path)
    opened.reserve()
    yield opened
    opened.close()


@pytest.fixture
def ledger(home):
    return home.ledger


def wanted(number=0, *, run=RUN, event=COST.counts, sensitivity=SENSITIVITY, question=CONTEXT, holders=3):
    mechanism = IntegerMechanism(
        l2_clip_norm=sensitivity, noise_multiplier=event.noise_multiplier, size=3, contributors=holders
    )
    return NoisySum(run=run, round=number, what="cell counts", question=question, mechanism=mechanism)


def ask(home, compute, number=0, **changes):
    this = wanted(number, **changes)
    return release(
        home.books,
        this,
        compute=compute,
        build=lambda values: Release(
            run=this.run,
            round=number,
            unit=this.mechanism.unit,
            values=values,
            heads=home.books.heads(),
        ),
    )


def noise():
    return wanted().mechanism.noisy(np.zeros(3))


def kinds(ledger):
    return [entry["kind"] for entry in ledger.summary(LIMITS).entries]


def never():
    pytest.fail("computed, though nothing may be")


def crash():
    raise MemoryError


def test_the_charge_is_on_disk_before_anything_is_computed(home):
    seen = []

    def compute():
        with Ledger.open(home.path, IDENTITY, read_only=True) as another_process:
            seen.extend(kinds(another_process))
        return np.zeros(3, dtype=np.int64)

    ask(home, compute)
    assert seen == [*RESERVED, "charge"]
    assert kinds(home.ledger) == [*RESERVED, "charge", "release"]


def test_what_leaves_and_its_log_entry_are_on_disk_before_the_message_is_built(home, tmp_path):
    seen = []

    def build(values):
        with Ledger.open(home.path, IDENTITY, read_only=True) as another_process:
            seen.append(kinds(another_process)[-1])
        with AuditLog.open(tmp_path / "audit.log", IDENTITY, read_only=True) as another_log:
            seen.append(another_log.has("release", run=RUN, round=0))
        return values

    release(home.books, wanted(), compute=noise, build=build)
    assert seen == ["release", True]


def test_the_charge_is_read_off_the_mechanism(home, ledger):
    ask(home, noise)
    (charge,) = [entry for entry in ledger.summary(LIMITS).entries if entry["kind"] == "charge"]
    assert (charge["run"], charge["round"], charge["mechanism"]) == (RUN, 0, "cell counts")
    assert charge["sensitivity"] == SENSITIVITY
    assert charge["noise_multiplier"] == COST.counts.noise_multiplier
    assert charge["noise_share"] == 1 / 3
    assert charge["question"] == CONTEXT


def test_the_message_speaks_of_heads_that_hold_the_release(home):
    sent = ask(home, noise)
    assert sent.heads == home.books.heads()
    home.books.require(sent.heads)
    assert int(sent.heads.split(":")[0]) == len(RESERVED) + 2  # the charge and the release


def test_asked_again_it_sends_the_same_bytes_and_computes_and_charges_nothing(home, ledger):
    first = ask(home, noise)
    again = ask(home, never)
    assert again.values.tobytes() == first.values.tobytes()
    assert (again.unit, again.round, again.heads) == (first.unit, first.round, first.heads)
    assert kinds(ledger).count("charge") == 1
    assert home.audit.size == 1


def test_asked_again_after_a_restart_it_sends_the_same_bytes(home, tmp_path):
    first = ask(home, noise)
    home.close()
    again = Home(tmp_path)
    assert ask(again, never).values.tobytes() == first.values.tobytes()
    again.close()


def test_a_crash_between_charge_and_release_is_charged_once_in_all(home, tmp_path):
    with pytest.raises(MemoryError):
        ask(home, crash)
    assert kinds(home.ledger) == [*RESERVED, "charge"]
    home.close()
    again = Home(tmp_path)
    assert isinstance(ask(again, noise), Release)
    assert kinds(again.ledger) == [*RESERVED, "charge", "release"]
    assert again.ledger.charged(RUN) == (COST.counts,)
    again.close()


def test_a_run_that_is_not_reserved_is_refused_before_anything_is_computed(home, ledger):
    assert refusal(home, run="f" * 32) == "unknown"
    assert kinds(ledger) == RESERVED


def test_a_closed_run_releases_nothing_new_and_nothing_again(home, ledger):
    ask(home, noise)
    ledger.close_run(run=RUN, outcome="done")
    assert refusal(home, 1, event=COST.gradient(1)) == "closed"
    assert refusal(home) == "closed"


def test_a_closed_run_does_not_finish_what_it_was_charged_for(home, ledger):
    with pytest.raises(MemoryError):
        ask(home, crash)
    ledger.close_run(run=RUN, outcome="aborted")
    assert refusal(home) == "closed"


def test_a_round_beyond_the_reservation_is_refused_before_anything_is_computed(home):
    ask(home, noise)
    for number in (1, 2, 3):
        ask(home, noise, number, event=COST.event(number, 1))
    assert refusal(home, 4, event=COST.gradient(1000)) == "budget"


@pytest.mark.parametrize(
    "changes",
    [
        {"event": COST.gradient(7)},
        {"sensitivity": 1.0},
        {"question": "c1" * 32},
        {"question": ""},
        {"holders": 2},
    ],
    ids=["another noise", "another sensitivity", "another question", "no question", "another share"],
)
@pytest.mark.parametrize("released", [True, False])
def test_a_round_answers_one_question_at_one_price(home, changes, released):
    if released:
        ask(home, noise)
    else:
        with pytest.raises(MemoryError):
            ask(home, crash)
    before = kinds(home.ledger)
    assert refusal(home, **changes) == "changed"
    assert kinds(home.ledger) == before


def test_only_what_was_released_can_be_opened(home):
    with pytest.raises(Refused) as caught:
        require_released(home.books, wanted())
    assert caught.value.code == "unknown"
    with pytest.raises(MemoryError):
        ask(home, crash)
    with pytest.raises(Refused) as caught:
        require_released(home.books, wanted())
    assert caught.value.code == "unknown"
    ask(home, noise)
    before = kinds(home.ledger)
    require_released(home.books, wanted())
    with pytest.raises(Refused) as caught:
        require_released(home.books, wanted(question="c1" * 32))
    assert caught.value.code == "changed"
    assert kinds(home.ledger) == before


def refusal(home, number=0, **changes):
    with pytest.raises(Refused) as caught:
        ask(home, never, number, **changes)
    return caught.value.code
