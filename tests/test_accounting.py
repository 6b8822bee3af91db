"""What a release costs: exact, never too little, and checked against implementations that are not ours."""

import math
import subprocess
import sys

import mpmath
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.privacy.accounting import (
    COUNTS_SHARE,
    Event,
    PrivacyTarget,
    RunCost,
    delta_of,
    epsilon_of,
    epsilon_of_mu,
    mu2_of,
    mu_of,
)
from assay.privacy.errors import BadInput

NAN = float("nan")
EPSILONS = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 20.0)
DELTAS = (1e-5, 1e-6, 1e-8)


def true_delta(mu: float, epsilon: float) -> mpmath.mpf:
    """Balle & Wang 2018, theorem 8, with 60 digits."""
    with mpmath.workdps(60):
        mu, epsilon = mpmath.mpf(mu), mpmath.mpf(epsilon)
        return mpmath.ncdf(mu / 2 - epsilon / mu) - mpmath.exp(epsilon) * mpmath.ncdf(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize(
    ("delta", "expected"),
    [(1e-5, (0.1422, 0.2681, 0.5016, 0.9249, 1.666)), (1e-6, (0.1241, 0.2367, 0.4483, 0.8379, 1.5315))],
)
def test_mu_is_as_tabulated(delta, expected):
    assert [mu_of(epsilon, delta) for epsilon in (0.5, 1, 2, 4, 8)] == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_mu_of_spends_all_of_epsilon_and_never_more(epsilon, delta):
    mu = mu_of(epsilon, delta)
    assert true_delta(mu, epsilon) <= delta
    assert epsilon * (1 - 1e-9) <= epsilon_of_mu(mu, delta) <= epsilon


@given(mu=st.floats(1e-5, 30), epsilon=st.floats(0, 500))
@settings(max_examples=200, deadline=None)
def test_delta_is_exact_and_never_below_the_truth(mu, epsilon):
    truth = true_delta(mu, epsilon)
    got = delta_of(mu, epsilon)
    if truth > 1e-280:
        assert truth * (1 - mpmath.mpf(10) ** -50) <= got
    if truth > 1e-15:
        assert got <= truth * (1 + 1e-6)


@given(mu=st.floats(1e-5, 30), delta=st.floats(1e-12, 0.3))
@settings(max_examples=200, deadline=None)
def test_epsilon_is_never_below_the_truth(mu, delta):
    assert true_delta(mu, epsilon_of_mu(mu, delta)) <= delta


@given(epsilon=st.floats(1e-3, 1000), delta=st.floats(1e-12, 1e-5))
@settings(max_examples=100, deadline=None)
def test_round_trip_never_spends_more(epsilon, delta):
    assert epsilon_of_mu(mu_of(epsilon, delta), delta) <= epsilon


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("steps", [1, 15, 60, 300])
@pytest.mark.parametrize("noise_multiplier", [2.0, 5.0, 12.5, 40.0, 130.0])
def test_full_batch_agrees_with_dp_accounting(noise_multiplier, steps, delta):
    """60 settings against the PLD accountant, which discretises and rounds up; ours is exact."""
    theirs = PLDAccountant()
    theirs.compose(SelfComposedDpEvent(GaussianDpEvent(noise_multiplier), steps))
    ours = epsilon_of([Event(noise_multiplier=noise_multiplier, steps=steps)], delta)
    assert ours == pytest.approx(theirs.get_epsilon(delta), rel=1e-3, abs=1e-5)
    assert true_delta(math.sqrt(steps) / noise_multiplier, ours) <= delta


def pld_epsilon(cost: RunCost, rounds: int, delta: float, *, factor: float, times: int = 1) -> float:
    """The PLD accountant's epsilon of a run whose releases move by ``factor`` sensitivities."""
    theirs = PLDAccountant()
    for event, count in (
        (cost.counts, 1),
        (cost.gradient(rounds), rounds),
        (cost.calibration, 1),
        (cost.audit, 1),
    ):
        one = GaussianDpEvent(event.noise_multiplier / factor)
        theirs.compose(SelfComposedDpEvent(one, count * times))
    return theirs.get_epsilon(delta)


@pytest.mark.parametrize(("rounds", "delta"), [(15, 1e-8), (30, 1e-6), (60, 1e-6)])
@pytest.mark.parametrize("holders", [1, 2, 3, 5])
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_a_distributed_run_keeps_its_promise_by_dp_accounting(epsilon, holders, rounds, delta):
    """60 settings: a person at k holders moves the one noisy sum by k sensitivities."""
    target = PrivacyTarget(epsilon=epsilon, delta=delta, holders_per_person=holders)
    cost = RunCost.of(target)
    assert target.trust == "distributed"
    assert pld_epsilon(cost, rounds, delta, factor=holders) == pytest.approx(epsilon, rel=1e-3)
    mu = math.sqrt(mu2_of(cost.total(rounds)))
    assert true_delta(mu * holders, epsilon) <= delta


@pytest.mark.parametrize("shares", [2, 3, 9])
@pytest.mark.parametrize("holders", [1, 3])
@pytest.mark.parametrize("epsilon", [0.5, 4.0])
def test_what_is_left_if_aggregation_fails_by_dp_accounting(epsilon, holders, shares):
    """12 settings: each release has one share of the noise, and k holders' releases compose."""
    target = PrivacyTarget(epsilon=epsilon, delta=1e-6, holders_per_person=holders)
    theirs = pld_epsilon(RunCost.of(target), 30, 1e-6, factor=math.sqrt(shares), times=holders)
    ours = epsilon_of_mu(target.mu * math.sqrt(shares * holders), 1e-6)
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert (ours > epsilon) == (shares > holders)


@pytest.mark.slow
@pytest.mark.parametrize("delta", [1e-5, 1e-6])
@pytest.mark.parametrize(
    ("noise_multiplier", "sample_rate", "steps"),
    [(1.0, 0.01, 1000), (0.8, 0.004, 1000), (2.0, 0.1, 300), (4.0, 0.5, 60), (1.5, 0.02, 3)],
)
def test_sampled_steps_agree_with_dp_accounting(noise_multiplier, sample_rate, steps, delta):
    theirs = PLDAccountant()
    theirs.compose(
        SelfComposedDpEvent(PoissonSampledDpEvent(sample_rate, GaussianDpEvent(noise_multiplier)), steps)
    )
    event = Event(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps)
    assert epsilon_of([event], delta) == pytest.approx(theirs.get_epsilon(delta), abs=0.02)


@pytest.mark.slow
def test_full_batch_and_sampled_steps_compose():
    theirs = PLDAccountant()
    theirs.compose(SelfComposedDpEvent(PoissonSampledDpEvent(0.01, GaussianDpEvent(1.0)), 500))
    theirs.compose(SelfComposedDpEvent(GaussianDpEvent(20.0), 10))
    events = [
        Event(noise_multiplier=1.0, sample_rate=0.01, steps=500),
        Event(noise_multiplier=20.0, steps=10),
    ]
    assert epsilon_of(events, 1e-6) == pytest.approx(theirs.get_epsilon(1e-6), abs=0.02)


@pytest.mark.slow
def test_the_same_sampled_event_listed_twice_costs_as_much_as_twice_the_steps():
    once = Event(noise_multiplier=1.0, sample_rate=0.01, steps=200)
    twice = Event(noise_multiplier=1.0, sample_rate=0.01, steps=400)
    assert epsilon_of([once, once], 1e-6) == pytest.approx(epsilon_of([twice], 1e-6), abs=0.01)


@pytest.mark.slow
def test_a_tiny_sampled_cost_is_priced_within_the_accountants_error():
    event = Event(noise_multiplier=100.0, sample_rate=0.01)
    assert 0 < epsilon_of([event], 1e-6) <= 0.01


@pytest.mark.slow
def test_a_long_history_is_priced_without_gigabytes():
    """100,000 steps took 3 GB at the accountant's default width; the bound stays an upper bound."""
    event = Event(noise_multiplier=1.0, sample_rate=0.01, steps=100_000)
    exact = 27.683  # Opacus' PRV accountant at its default width, 2.3 GB
    assert exact <= epsilon_of([event], 1e-6) <= exact * 1.002


def test_sampled_steps_that_would_need_gigabytes_are_refused():
    with pytest.raises(BadInput, match="privacy loss of the sampled steps"):
        epsilon_of([Event(noise_multiplier=0.3, sample_rate=0.5, steps=1000)], 1e-6)


def test_a_fresh_accountant_per_round_would_understate():
    """The pitfall: 100 rounds accounted one by one look 5.5 times cheaper than they are."""
    one = Event(noise_multiplier=20.0)
    assert epsilon_of([one] * 100, 1e-6) > 5 * epsilon_of([one], 1e-6)


def test_epsilons_are_not_added():
    """Composition is exact, so four runs of epsilon 1 cost clearly less than 4, and more than 1."""
    run = list(RunCost.of(PrivacyTarget(epsilon=1.0, delta=1e-6)).total(30))
    assert 2.0 < epsilon_of(run * 4, 1e-6) < 2.2


def test_nothing_costs_nothing():
    assert epsilon_of([], 1e-6) == 0.0
    assert delta_of(0.0, 1.0) == 0.0
    assert epsilon_of_mu(0.0, 1e-6) == 0.0


def test_a_loss_hidden_by_delta_is_zero():
    assert epsilon_of_mu(1e-7, 1e-6) == 0.0


@pytest.mark.parametrize("rounds", [1, 15, 30, 60, 1000])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
def test_a_run_spends_its_target_whatever_the_number_of_rounds(epsilon, rounds):
    cost = RunCost.of(PrivacyTarget(epsilon=epsilon, delta=1e-6))
    spent = epsilon_of(cost.total(rounds), 1e-6)
    assert epsilon * (1 - 1e-9) <= spent <= epsilon
    assert mu2_of(cost.total(rounds)) <= cost.mu2


def test_every_round_gets_its_share():
    cost = RunCost.of(PrivacyTarget(epsilon=1.0, delta=1e-6))
    assert COUNTS_SHARE == 0.05
    assert mu2_of([cost.counts]) == pytest.approx(0.05 * cost.mu2)
    assert mu2_of([cost.gradient(30)]) == pytest.approx(0.85 * cost.mu2 / 30)
    assert mu2_of([cost.calibration]) == pytest.approx(0.03 * cost.mu2)
    assert mu2_of([cost.audit]) == pytest.approx(0.07 * cost.mu2)


def test_rounds_are_numbered_and_their_events_are_those_of_the_total():
    cost = RunCost.of(PrivacyTarget(epsilon=1.0, delta=1e-6))
    events = [cost.event(number, 30) for number in range(33)]
    assert events == [cost.counts, *[cost.gradient(30)] * 30, cost.calibration, cost.audit]
    assert mu2_of(events) == pytest.approx(mu2_of(cost.total(30)), rel=1e-12)
    assert [event.steps for event in cost.total(30)] == [1, 30, 1, 1]
    assert cost.event(0, 0) == cost.counts  # the number of rounds is not known yet


@pytest.mark.parametrize(("number", "rounds"), [(33, 30), (4, 1), (1, 0), (1, 1001), (1003, 1000)])
def test_a_round_that_no_run_has_is_refused(number, rounds):
    with pytest.raises(BadInput, match="round"):
        RunCost.of(PrivacyTarget(epsilon=1.0, delta=1e-6)).event(number, rounds)


@pytest.mark.parametrize("holders", [2, 3, 5])
def test_a_person_at_several_holders_keeps_the_promise(holders):
    """Separate noise: all k holders' releases compose to the target, not to more."""
    target = PrivacyTarget(epsilon=1.0, delta=1e-6, holders_per_person=holders, trust="local")
    everything = list(RunCost.of(target).total(30)) * holders
    assert 1 - 1e-9 <= epsilon_of(everything, 1e-6) <= 1


@pytest.mark.parametrize(("holders", "spent"), [(2, 2.15), (3, 3.41), (5, 6.17)])
def test_one_sum_of_several_holders_multiplies_mu(holders, spent):
    """Without the division, a person at k holders of one sum would lose these epsilons instead of 1."""
    target = PrivacyTarget(epsilon=1.0, delta=1e-5, holders_per_person=holders)
    assert target.mu * holders == pytest.approx(mu_of(1.0, 1e-5))
    assert epsilon_of_mu(mu_of(1.0, 1e-5) * holders, 1e-5) == pytest.approx(spent, abs=0.02)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, -math.inf, NAN])
@pytest.mark.parametrize("call", [lambda v: mu_of(v, 1e-6), lambda v: Event(noise_multiplier=v)])
def test_a_number_that_is_not_positive_and_finite_is_refused(call, bad):
    with pytest.raises(BadInput):
        call(bad)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-6, NAN, math.inf])
def test_a_delta_outside_its_range_is_refused(delta):
    for call in (
        lambda: mu_of(1.0, delta),
        lambda: epsilon_of_mu(1.0, delta),
        lambda: epsilon_of([], delta),
        lambda: PrivacyTarget(epsilon=1.0, delta=delta),
    ):
        with pytest.raises(BadInput, match="delta"):
            call()


@pytest.mark.parametrize(
    "values",
    [
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"sample_rate": NAN},
        {"steps": 0},
        {"steps": 1.5},
        {"steps": True},
    ],
)
def test_an_event_outside_its_range_is_refused(values):
    with pytest.raises(BadInput):
        Event(noise_multiplier=1.0, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": NAN},
        {"epsilon": 1001.0},
        {"delta": 1e-4},
        {"holders_per_person": 0},
        {"holders_per_person": 1.5},
        {"trust": "nobody"},
    ],
)
def test_a_target_outside_its_range_is_refused(values):
    with pytest.raises(BadInput):
        PrivacyTarget(**{"epsilon": 1.0, "delta": 1e-6, **values})


@pytest.mark.parametrize("rounds", [0, -1, 1001, 1.5, True])
def test_a_number_of_rounds_outside_its_range_is_refused(rounds):
    with pytest.raises(BadInput, match="rounds"):
        RunCost.of(PrivacyTarget(epsilon=1.0, delta=1e-6)).gradient(rounds)


@pytest.mark.parametrize("value", [-1.0, NAN, math.inf])
def test_mu_and_epsilon_must_be_finite_and_not_negative(value):
    with pytest.raises(BadInput, match="mu"):
        delta_of(value, 1.0)
    with pytest.raises(BadInput, match="epsilon"):
        delta_of(1.0, value)


def test_a_sampled_event_has_no_mu():
    with pytest.raises(BadInput, match="sample_rate"):
        mu2_of([Event(noise_multiplier=1.0, sample_rate=0.5)])


def test_pricing_full_batch_releases_does_not_import_torch():
    code = (
        "import sys; from assay.privacy.accounting import *; "
        "epsilon_of(RunCost.of(PrivacyTarget(epsilon=1.0, delta=1e-6)).total(30), 1e-6); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'opacus')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
