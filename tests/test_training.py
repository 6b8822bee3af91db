"""T1 and T2 on the path of every release: the noise that is really added, and what one person can change."""

import math

import numpy as np
import pytest
from scipy import stats
from toy_study import FEATURES, GRID, ROUNDS, STUDY, records

from assay.client.training import LocalTraining
from assay.models import additive, tally
from assay.models.label import mechanism_of, privacy_target
from assay.models.tally import AuditTally, CalibrationTally
from assay.privacy import mechanism, noise
from assay.privacy.accounting import RunCost
from assay.privacy.errors import AssayError, BadInput

COST = RunCost.of(privacy_target(STUDY))
T = 9
# Statistical tests here fail on healthy noise once in 1,000,000 runs each; the planted fault beside each is
# noticed in all but one of 10,000.
FALSE_ALARM = 1e-6
EXTREME = np.concatenate([np.tile([20.0, -20.0], GRID.size)[: GRID.size], np.full(GRID.patterns, 20.0)])
KINDS = {"counts": 0, "gradient": 1, "calibration": T + 1, "audit": T + 2}


def training(data=None):
    return LocalTraining(STUDY, records() if data is None else data)


def released(held, number, theta=None, *, rounds=T, contributors=1):
    """One release of a holder, the first one of its run."""
    promised = mechanism_of(STUDY, GRID, number=number, rounds=rounds, contributors=contributors)
    return held.noisy(
        number=number,
        rounds=rounds,
        theta=np.zeros(GRID.width) if theta is None else theta,
        mechanism=promised,
        charged=[COST.event(number, rounds)],
    )


def null_noise(contributors=1, number=1, rounds=60):
    """T1: what ``contributors`` holders add up to where all sums are zero, as often as a run has rounds."""
    promised = mechanism_of(STUDY, GRID, number=number, rounds=rounds, contributors=contributors)
    holders = [training() for _ in range(contributors)]
    total = np.zeros((rounds, promised.size))
    for held in holders:
        for time in range(rounds):
            total[time] += released(held, number, rounds=rounds, contributors=contributors)
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
def zero_sums(monkeypatch):
    for kind in (additive.AdditiveClippedSum, additive.ClippedCounts, tally.ClippedTally):
        monkeypatch.setattr(kind, "__call__", lambda self, theta: np.zeros(self.width))


LATER = pytest.mark.parametrize("after", [None, 1, 2], ids=["gradient", "calibration", "audit"])


def number_of(after, rounds=60):
    return 1 if after is None else rounds + after


@pytest.mark.usefixtures("zero_sums")
class TestNullNoise:
    @LATER
    @pytest.mark.parametrize("contributors", [1, 3])
    def test_noise_alone_has_the_promised_variance_and_no_memory(self, contributors, after):
        assert looks_right(null_noise(contributors, number_of(after)))

    @LATER
    def test_control_no_noise_is_noticed(self, no_noise, after):
        assert not looks_right(null_noise(1, number_of(after)))

    @LATER
    @pytest.mark.parametrize("part", [0.5, 0.85])
    def test_control_less_noise_is_noticed(self, monkeypatch, part, after):
        real = noise.discrete_gaussian
        monkeypatch.setattr(
            mechanism, "discrete_gaussian", lambda size, variance, _: real(size, int(variance * part**2))
        )
        assert not looks_right(null_noise(1, number_of(after)))

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
        groups={name: codes[keep] for name, codes in data.groups.items()},
    )


NEIGHBOURS = [pytest.param(data, rest, id=name) for name, data, rest in neighbours()]


THETAS = {"0": np.zeros(GRID.width), "+": EXTREME, "-": -EXTREME}


@pytest.mark.parametrize("number", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("data", "rest"), NEIGHBOURS)
class TestSensitivity:
    """T2: with the noise off, nobody changes the released integers by more than the noise is made for."""

    @pytest.mark.parametrize("contributors", [1, 3])
    @pytest.mark.parametrize("theta", THETAS.values(), ids=THETAS)
    def test_one_person_changes_a_release_within_the_bound(
        self, no_noise, data, rest, theta, contributors, number
    ):
        with_person, without = (
            released(training(d), number, theta, contributors=contributors) for d in (data, rest)
        )
        promised = mechanism_of(STUDY, GRID, number=number, rounds=T, contributors=contributors)
        assert np.linalg.norm((with_person - without).astype(float)) <= promised.sensitivity_units


class TestControlSensitivity:
    """The same measurement, on code that is wrong."""

    def changed(self, data, rest, number):
        one, other = (released(training(d), number, EXTREME) for d in (data, rest))
        units = mechanism_of(STUDY, GRID, number=number, rounds=T).sensitivity_units
        return np.linalg.norm((one - other).astype(float)) / units

    def test_a_person_of_fifty_rows_that_is_not_clipped_is_noticed(self, no_noise, monkeypatch):
        _, data, rest = list(neighbours())[2]
        assert 0.9 < self.changed(data, rest, 1) <= 1
        monkeypatch.setattr(
            additive.AdditiveClippedSum, "_scales", lambda self, block, residuals: np.ones(len(residuals))
        )
        assert self.changed(data, rest, 1) > 10

    @pytest.mark.parametrize("number", [T + 1, T + 2], ids=["calibration", "audit"])
    def test_a_tally_that_is_not_clipped_is_noticed(self, no_noise, monkeypatch, number):
        _, data, rest = list(neighbours())[2]
        assert 0.9 < self.changed(data, rest, number) <= 1
        monkeypatch.setattr(tally, "person_norms", lambda vectors, starts, ones: np.zeros(len(starts) - 1))
        assert self.changed(data, rest, number) > 10

    def test_a_record_that_is_counted_twice_is_noticed(self, no_noise, monkeypatch):
        _, data, rest = list(neighbours())[2]
        for kind, number in ((additive.AdditiveClippedSum, 1), (tally.ClippedTally, T + 2)):
            real = kind.__call__
            monkeypatch.setattr(kind, "__call__", lambda self, theta, real=real: 2 * real(self, theta))
            assert self.changed(data, rest, number) > 1.5


class TestBothSides:
    @pytest.mark.parametrize("number", KINDS.values(), ids=KINDS)
    def test_holder_and_coordinator_reckon_with_the_same_sum(self, number):
        one_column = math.sqrt(1 + 2 + 5)
        sensitivities = [math.sqrt(FEATURES + 1), 0.75 * math.sqrt(FEATURES + 1), 1.0, one_column]
        summed = training().summed(number, T)
        promised = mechanism_of(STUDY, GRID, number=number, rounds=T)
        assert summed.l2_clip_norm == promised.l2_clip_norm == sensitivities[[*KINDS.values()].index(number)]
        assert summed(EXTREME).shape == (promised.size,)

    def test_noise_for_another_sensitivity_releases_nothing(self):
        """The counts' noise for the calibration's sum, which is shorter, and the other way round."""
        for number, other in ((T + 1, 0), (0, T + 1), (T + 2, T + 1)):
            with pytest.raises(AssayError, match="another sensitivity"):
                training().noisy(
                    number=number,
                    rounds=T,
                    theta=EXTREME,
                    mechanism=mechanism_of(STUDY, GRID, number=other, rounds=T),
                    charged=[COST.event(other, T)],
                )

    def test_released_integers_are_the_sum_on_the_grid(self, no_noise):
        held, theta = training(), np.linspace(-1, 1, GRID.width)
        for number in KINDS.values():
            units = released(held, number, theta)
            unit = mechanism_of(STUDY, GRID, number=number, rounds=T).unit
            assert units.dtype == np.int64
            assert np.abs(units * unit - held.summed(number, T)(theta)).max() <= unit / 2 * (1 + 1e-9)
        counts = released(held, 0, contributors=4)
        counts = counts * mechanism_of(STUDY, GRID, number=0, rounds=0, contributors=4).unit
        assert counts.sum() == pytest.approx(600 * (FEATURES + 1), rel=1e-4)

    def test_everybody_is_in_each_tally_once(self, no_noise):
        held, theta = training(), np.linspace(-0.2, 0.2, GRID.width)
        units = {number: mechanism_of(STUDY, GRID, number=number, rounds=T).unit for number in (T + 1, T + 2)}
        calibration, audit = (released(held, number, theta) * unit for number, unit in units.items())
        layout = AuditTally(study=STUDY, grid=GRID)
        assert calibration.size == CalibrationTally(grid=GRID).size
        assert calibration.sum() == pytest.approx(600, rel=1e-4)
        assert audit[layout.scores].sum() == pytest.approx(600, rel=1e-4)
        by_group = audit[layout.groups(0)].reshape(-1, 5)[:, :4].sum(axis=1)
        assert by_group == pytest.approx(np.bincount(records().groups["SEX"], minlength=4), rel=1e-3)

    def test_a_holder_without_the_audited_column_is_in_the_scores_and_in_no_group(self, no_noise):
        full = records()
        without = training(type(full)(columns=full.columns, labels=full.labels))
        audit = released(without, T + 2) * mechanism_of(STUDY, GRID, number=T + 2, rounds=T).unit
        layout = AuditTally(study=STUDY, grid=GRID)
        assert audit[layout.scores].sum() == pytest.approx(600, rel=1e-4)
        assert not audit[layout.groups(0)].any()

    def test_a_share_costs_the_ledger_what_the_whole_noise_costs(self):
        """A whole run was charged; one round more is beyond the promise, however many holders share."""
        held, whole = training(), list(COST.total(T))
        for contributors in (1, 5):
            for number in KINDS.values():
                asked = {
                    "number": number,
                    "rounds": T,
                    "theta": np.zeros(GRID.width),
                    "mechanism": mechanism_of(
                        STUDY, GRID, number=number, rounds=T, contributors=contributors
                    ),
                }
                event = COST.event(number, T)
                rest = [COST.counts, *[COST.gradient(T)] * T, *whole[2:]]
                held.noisy(**asked, charged=rest)
                with pytest.raises(AssayError, match="counts more than the study promises"):
                    held.noisy(**asked, charged=[*rest, event])

    def test_no_contributors_are_refused(self):
        with pytest.raises(BadInput, match="contributors"):
            mechanism_of(STUDY, GRID, number=ROUNDS + 1, rounds=ROUNDS, contributors=0)
