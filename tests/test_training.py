"""T1 and T2 on the path of every release: the noise that is really added, and what one person can change."""

import math

import numpy as np
import pytest
from scipy import stats
from toy_study import FEATURES, GRID, STUDY, records

from assay.client.training import LocalTraining
from assay.models import additive
from assay.models.label import counts_mechanism, gradient_mechanism, privacy_target
from assay.privacy import mechanism, noise
from assay.privacy.accounting import RunCost
from assay.privacy.errors import AssayError, BadInput

COST = RunCost.of(privacy_target(STUDY))
COUNTS, GRADIENT = COST.counts, COST.gradient(9)
# Statistical tests here fail on healthy noise once in 1,000,000 runs each; the planted fault beside each is
# noticed in all but one of 10,000.
FALSE_ALARM = 1e-6
ROUNDS = 60
EXTREME = np.concatenate([np.tile([20.0, -20.0], GRID.size)[: GRID.size], [20.0]])


def training(data=None):
    return LocalTraining(STUDY, records() if data is None else data)


def null_noise(contributors=1, study_rounds=ROUNDS):
    """T1: what ``contributors`` holders add up to in every round of a run, where all gradients are zero."""
    event = COST.gradient(study_rounds)
    holders = [training() for _ in range(contributors)]
    total = np.zeros((study_rounds, GRID.size + 1))
    for held in holders:
        for number in range(study_rounds):
            total[number] += held.gradient(
                np.zeros(GRID.size + 1), event, [event] * (number + 1), contributors
            )
    promised = gradient_mechanism(STUDY, GRID, study_rounds, contributors)
    return total * promised.unit / promised.std


def variance_p_value(values):
    below = stats.chi2.cdf(np.square(values).sum(), df=values.size)
    return 2 * min(below, 1 - below)


def correlation_p_value(first, second):
    return 2 * stats.norm.sf(abs(float((first * second).sum())) / math.sqrt(first.size))


def looks_right(values):
    """The promised variance; no correlation between neighbouring values, nor between rounds."""
    lagged = correlation_p_value(values[:, :-1], values[:, 1:]), correlation_p_value(values[:-1], values[1:])
    return variance_p_value(values) > FALSE_ALARM and min(lagged) > FALSE_ALARM


@pytest.fixture
def no_noise(monkeypatch):
    """Inside a test, and only there, releases carry no noise."""
    monkeypatch.setattr(mechanism, "discrete_gaussian", lambda size, variance, entropy: np.zeros(size, int))


@pytest.fixture
def zero_gradients(monkeypatch):
    monkeypatch.setattr(additive.AdditiveClippedSum, "__call__", lambda self, theta: np.zeros(theta.size))


@pytest.mark.usefixtures("zero_gradients")
class TestNullNoise:
    @pytest.mark.parametrize("contributors", [1, 3])
    def test_noise_alone_has_the_promised_variance_and_no_memory(self, contributors):
        assert looks_right(null_noise(contributors))

    def test_control_no_noise_is_noticed(self, no_noise):
        assert not looks_right(null_noise())

    @pytest.mark.parametrize("part", [0.5, 0.85])
    def test_control_less_noise_is_noticed(self, monkeypatch, part):
        real = noise.discrete_gaussian
        monkeypatch.setattr(
            mechanism, "discrete_gaussian", lambda size, variance, _: real(size, int(variance * part**2))
        )
        assert not looks_right(null_noise())

    def test_control_shares_of_std_over_n_are_noticed(self, monkeypatch):
        real = noise.discrete_gaussian
        monkeypatch.setattr(
            mechanism, "discrete_gaussian", lambda size, variance, _: real(size, variance // 3)
        )
        assert not looks_right(null_noise(3))

    def test_control_the_same_seed_every_round_is_noticed(self, monkeypatch):
        real = noise.discrete_gaussian
        monkeypatch.setattr(
            mechanism, "discrete_gaussian", lambda size, variance, _: real(size, variance, bytes)
        )
        values = null_noise()
        assert correlation_p_value(values[:-1], values[1:]) < FALSE_ALARM


def neighbours():
    """Data sets that are hard on the bound: (name, with the person, without)."""
    rows = 80
    plain = records(rows, persons=np.arange(rows))
    many = records(rows, persons=np.concatenate([np.zeros(50, dtype=np.int64), np.arange(1, rows - 49)]))
    copies = records(rows, persons=np.concatenate([np.zeros(50, dtype=np.int64), np.arange(1, rows - 49)]))
    for name in copies.columns:
        copies.columns[name][:50] = copies.columns[name][0]
    copies.labels[:50] = 1.0
    for name, data in (("one row", plain), ("fifty rows", many), ("fifty copies", copies)):
        yield name, data, without_first(data)


def without_first(data):
    keep = data.persons != 0
    return type(data)(
        columns={name: values[keep] for name, values in data.columns.items()},
        labels=data.labels[keep],
        persons=data.persons[keep],
    )


NEIGHBOURS = [pytest.param(data, rest, id=name) for name, data, rest in neighbours()]


@pytest.mark.parametrize(("data", "rest"), NEIGHBOURS)
class TestSensitivity:
    """T2: with the noise off, nobody changes the released integers by more than the noise is made for."""

    @pytest.mark.parametrize("contributors", [1, 3])
    @pytest.mark.parametrize("theta", [np.zeros(GRID.size + 1), EXTREME, -EXTREME], ids=["0", "+", "-"])
    def test_one_person_changes_a_gradient_within_the_bound(self, no_noise, data, rest, theta, contributors):
        with_person, without = (
            training(d).gradient(theta, GRADIENT, [GRADIENT], contributors) for d in (data, rest)
        )
        promised = gradient_mechanism(STUDY, GRID, 9, contributors)
        assert np.linalg.norm((with_person - without).astype(float)) <= promised.sensitivity_units

    def test_one_person_changes_the_counts_within_the_bound(self, no_noise, data, rest):
        with_person, without = (training(d).counts(COUNTS, [COUNTS], 1) for d in (data, rest))
        promised = counts_mechanism(STUDY, GRID)
        assert np.linalg.norm((with_person - without).astype(float)) <= promised.sensitivity_units


class TestControlSensitivity:
    """The same measurement, on code that is wrong."""

    def changed(self, data, rest):
        theta = EXTREME
        one, other = (training(d).gradient(theta, GRADIENT, [GRADIENT], 1) for d in (data, rest))
        units = gradient_mechanism(STUDY, GRID, 9).sensitivity_units
        return np.linalg.norm((one - other).astype(float)) / units

    def test_a_person_of_fifty_rows_that_is_not_clipped_is_noticed(self, no_noise, monkeypatch):
        _, data, rest = list(neighbours())[2]
        assert 0.9 < self.changed(data, rest) <= 1
        monkeypatch.setattr(
            additive.AdditiveClippedSum, "_scales", lambda self, block, residuals: np.ones(len(residuals))
        )
        assert self.changed(data, rest) > 10

    def test_a_record_that_is_counted_twice_is_noticed(self, no_noise, monkeypatch):
        _, data, rest = list(neighbours())[2]
        real = additive.AdditiveClippedSum.__call__
        monkeypatch.setattr(
            additive.AdditiveClippedSum, "__call__", lambda self, theta: 2 * real(self, theta)
        )
        assert self.changed(data, rest) > 1.5


class TestBothSides:
    @pytest.mark.parametrize("contributors", [1, 2, 9])
    def test_holder_and_coordinator_reckon_with_the_same_mechanism(self, contributors):
        held = training()
        assert held.counts_mechanism(COUNTS, contributors) == counts_mechanism(STUDY, GRID, contributors)
        gradient = gradient_mechanism(STUDY, GRID, 9, contributors)
        assert held.gradient_mechanism(GRADIENT, contributors) == gradient
        assert (held.counts_sensitivity, held.gradient_sensitivity) == (
            math.sqrt(FEATURES),
            math.sqrt(FEATURES + 1),
        )

    def test_released_integers_are_the_sum_on_the_grid(self, no_noise):
        held, theta = training(), np.linspace(-1, 1, GRID.size + 1)
        units = held.gradient(theta, GRADIENT, [GRADIENT], 1)
        unit = gradient_mechanism(STUDY, GRID, 9).unit
        assert units.dtype == np.int64
        assert np.abs(units * unit - held._gradients(theta)).max() <= unit / 2
        counts = held.counts(COUNTS, [COUNTS], 4) * counts_mechanism(STUDY, GRID).unit
        assert counts.sum() == pytest.approx(600 * FEATURES, rel=1e-4)

    def test_a_share_costs_the_ledger_what_the_whole_noise_costs(self):
        """Ten rounds were charged as such; an eleventh is beyond the promise, however many holders share."""
        held, theta = training(), np.zeros(GRID.size + 1)
        for contributors in (1, 5):
            held.gradient(theta, GRADIENT, [COUNTS] + [GRADIENT] * 9, contributors)
            with pytest.raises(AssayError, match="counts more than the study promises"):
                held.gradient(theta, GRADIENT, [COUNTS] + [GRADIENT] * 10, contributors)

    def test_no_contributors_are_refused(self):
        with pytest.raises(BadInput, match="contributors"):
            training().counts(COUNTS, [COUNTS], 0)
