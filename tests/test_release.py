"""One release: charged before it is computed, stored before it leaves, the same bytes for ever after."""

import numpy as np
import pytest

from assay.client.release import release
from assay.privacy.accounting import Event, PrivacyTarget, RunCost
from assay.privacy.errors import BadInput, Refused
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger, Limits
from assay.privacy.noise import gaussian, grid_unit
from assay.privacy.wire import Release

RUN = "00112233445566778899aabbccddeeff"
COST = RunCost.of(PrivacyTarget(epsilon=1.0, delta=1e-6))
LIMITS = Limits(epsilon_per_study=1.0, epsilon_per_year=1.0, delta=1e-6)
SENSITIVITY = 2.5
UNIT = grid_unit(COST.counts.noise_multiplier * SENSITIVITY)
IDENTITY = Identity.generate()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    with Ledger.open(path, IDENTITY) as opened:
        opened.reserve(study="toy", run=RUN, planned=COST.total(1), limits=LIMITS)
        yield opened


def ask(ledger, noisy_sum, *, number=0, run=RUN, event=COST.counts, sensitivity=SENSITIVITY):
    return release(
        ledger,
        run=run,
        round=number,
        mechanism="cell counts",
        sensitivity=sensitivity,
        event=event,
        noisy_sum=noisy_sum,
    )


def kinds(ledger):
    return [entry["kind"] for entry in ledger.summary(LIMITS).entries]


def never():
    pytest.fail("computed, though nothing may be")


def crash():
    raise MemoryError


def test_the_charge_is_on_disk_before_anything_is_computed(ledger, path):
    seen = []

    def noisy_sum():
        with Ledger.open(path, IDENTITY, read_only=True) as another_process:
            seen.extend(kinds(another_process))
        return np.zeros(3)

    ask(ledger, noisy_sum)
    assert seen == ["reserve", "reserve", "charge"]
    assert kinds(ledger) == ["reserve", "reserve", "charge", "release"]


def test_what_leaves_is_on_disk_before_it_leaves(ledger, path):
    sent = ask(ledger, lambda: gaussian(5, 100.0))
    with Ledger.open(path, IDENTITY, read_only=True) as another_process:
        stored = another_process.charge(
            run=RUN, round=0, mechanism="cell counts", sensitivity=SENSITIVITY, event=COST.counts
        )
    assert stored == sent.values.tobytes()


def test_the_charge_states_the_noise_and_sensitivity_of_the_release(ledger):
    ask(ledger, lambda: np.zeros(3))
    charge = next(entry for entry in ledger.summary(LIMITS).entries if entry["kind"] == "charge")
    assert (charge["run"], charge["round"], charge["mechanism"]) == (RUN, 0, "cell counts")
    assert charge["sensitivity"] == SENSITIVITY
    assert charge["noise_multiplier"] == COST.counts.noise_multiplier


def test_the_sum_is_rounded_to_the_public_grid(ledger):
    values = np.array([0.0, 1.0, -7.25, 123.456])
    sent = ask(ledger, lambda: values)
    assert sent.unit == UNIT == COST.counts.noise_multiplier * SENSITIVITY / 2**20
    assert sent.values.dtype == np.int64
    assert np.array_equal(sent.values, np.rint(values / UNIT))


def test_asked_again_it_sends_the_same_bytes_and_computes_and_charges_nothing(ledger):
    first = ask(ledger, lambda: gaussian(50, 100.0))
    again = ask(ledger, never)
    assert again.values.tobytes() == first.values.tobytes()
    assert (again.unit, again.round) == (first.unit, first.round)
    assert kinds(ledger).count("charge") == 1


def test_asked_again_after_a_restart_it_sends_the_same_bytes(path):
    with Ledger.open(path, IDENTITY) as before:
        before.reserve(study="toy", run=RUN, planned=COST.total(1), limits=LIMITS)
        first = ask(before, lambda: gaussian(50, 100.0))
    with Ledger.open(path, IDENTITY) as after:
        assert ask(after, never).values.tobytes() == first.values.tobytes()


def test_a_crash_between_charge_and_release_is_charged_once_in_all(path):
    with Ledger.open(path, IDENTITY) as before:
        before.reserve(study="toy", run=RUN, planned=COST.total(1), limits=LIMITS)
        with pytest.raises(MemoryError):
            ask(before, crash)
        assert kinds(before) == ["reserve", "reserve", "charge"]
    with Ledger.open(path, IDENTITY) as after:
        sent = ask(after, lambda: np.ones(3))
        assert isinstance(sent, Release)
        assert kinds(after) == ["reserve", "reserve", "charge", "release"]
        assert after.charged(RUN) == (COST.counts,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**53 * UNIT])
def test_a_sum_that_is_not_finite_or_too_large_is_refused_and_not_released(ledger, bad):
    with pytest.raises(BadInput, match="noisy values"):
        ask(ledger, lambda: np.array([1.0, bad]))
    assert kinds(ledger) == ["reserve", "reserve", "charge"]
    assert ask(ledger, lambda: np.ones(2)).values.size == 2


def test_a_run_that_is_not_reserved_is_refused_before_anything_is_computed(ledger):
    with pytest.raises(Refused, match="not reserved") as caught:
        ask(ledger, never, run="f" * 32)
    assert caught.value.code == "unknown"
    assert kinds(ledger) == ["reserve", "reserve"]


def test_a_closed_run_releases_nothing_new_but_repeats_what_it_released(ledger):
    first = ask(ledger, lambda: gaussian(5, 1.0))
    ledger.close_run(run=RUN, outcome="done")
    with pytest.raises(Refused) as caught:
        ask(ledger, never, number=1, event=COST.gradient(1))
    assert caught.value.code == "closed"
    assert ask(ledger, never).values.tobytes() == first.values.tobytes()


def test_a_closed_run_does_not_finish_what_it_was_charged_for(ledger):
    with pytest.raises(MemoryError):
        ask(ledger, crash)
    ledger.close_run(run=RUN, outcome="aborted")
    with pytest.raises(Refused) as caught:
        ask(ledger, never)
    assert caught.value.code == "closed"


def test_a_round_beyond_the_reservation_is_refused_before_anything_is_computed(ledger):
    ask(ledger, lambda: np.zeros(3))
    ask(ledger, lambda: np.zeros(3), number=1, event=COST.gradient(1))
    with pytest.raises(Refused) as caught:
        ask(ledger, never, number=2, event=COST.gradient(1000))
    assert caught.value.code == "budget"


@pytest.mark.parametrize(
    "changes",
    [{"event": Event(noise_multiplier=1e6)}, {"sensitivity": 1.0}],
    ids=["less noise", "another sensitivity"],
)
def test_a_round_is_never_released_again_at_another_price(ledger, changes):
    ask(ledger, lambda: np.zeros(3))
    with pytest.raises(Refused) as caught:
        ask(ledger, never, **changes)
    assert caught.value.code == "changed"
