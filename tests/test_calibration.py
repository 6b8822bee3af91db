"""A Platt step is taken where outcomes contradict the model, and hardly ever where they do not."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from toy_study import GRID

from assay.models import calibration
from assay.models.calibration import NEEDLESS_STEPS, Platt, platt_step
from assay.models.tally import CalibrationTally
from assay.privacy.errors import BadInput

TALLY = CalibrationTally(grid=GRID)
REPEATS = 400


def histogram(rng, persons, *, intercept=0.0, slope=1.0, mean=-1.5, spread=1.0):
    """Persons whose true log-odds are ``intercept + slope * z``, counted at the ``z`` that a model states."""
    z = rng.normal(mean, spread, persons)
    bad = rng.random(persons) < expit(intercept + slope * z)
    bins = np.clip(np.floor((z + 6) * 4), 0, 39).astype(np.int64)
    return np.bincount(2 * bins + bad, minlength=80).astype(np.float64)


def steps(persons, noise, *, seed=0, repeats=REPEATS, **truth):
    rng = np.random.default_rng(seed)
    return [
        platt_step(TALLY, histogram(rng, persons, **truth) + rng.normal(0, noise, 80), noise)
        for _ in range(repeats)
    ]


class TestFalseAlarms:
    """A model that is right is left alone but for one histogram in a hundred, with any noise.

    Over 400 histograms; a step that keeps 1.5 % (what normal approximations leave) fails in one of a million
    runs (binomial).
    """

    MOST = stats.binom.isf(1e-6, REPEATS, 1.5 * NEEDLESS_STEPS)

    @pytest.mark.parametrize(
        ("persons", "noise"),
        [
            (1_000, 0.0),
            (1_000, 5.0),
            (1_000, 20.0),
            (10_000, 20.0),
            (10_000, 60.0),
            (100_000, 0.0),
            (100_000, 60.0),
        ],
    )
    def test_a_model_that_is_right_is_hardly_ever_corrected(self, persons, noise):
        assert sum(step.applied for step in steps(persons, noise)) <= self.MOST

    def test_a_million_persons_do_not_make_the_width_of_bins_a_contradiction(self):
        assert not any(step.applied for step in steps(1_000_000, 60.0, repeats=40))

    def test_control_a_lower_threshold_is_noticed(self, monkeypatch):
        monkeypatch.setattr(calibration, "_CRITICAL", 3.22)  # one in five
        assert sum(step.applied for step in steps(10_000, 20.0)) > self.MOST

    def test_control_a_test_that_knows_nothing_of_the_noise_is_noticed(self):
        found = [calibration._contradicted(*self.bins(each), 0.0) for each in self.noisy(10_000, 20.0)]
        assert sum(found) > self.MOST

    def noisy(self, persons, noise):
        rng = np.random.default_rng(1)
        return [histogram(rng, persons) + rng.normal(0, noise, 80) for _ in range(REPEATS)]

    def bins(self, noisy):
        inside = slice(4, 32)
        good, bad = noisy[0::2][inside], noisy[1::2][inside]
        return np.stack([np.ones(28), TALLY.middles()[inside]], axis=1), good + bad, bad


class TestRepair:
    @pytest.mark.parametrize(("persons", "noise"), [(20_000, 0.0), (20_000, 20.0), (100_000, 60.0)])
    @pytest.mark.parametrize(
        ("intercept", "slope"), [(0.5, 1.0), (-0.5, 1.0), (0.0, 0.6), (0.0, 1.6), (0.4, 0.7)]
    )
    def test_a_wrong_level_and_a_wrong_slope_are_found_and_repaired(self, persons, noise, intercept, slope):
        found = steps(persons, noise, repeats=25, intercept=intercept, slope=slope)
        assert all(step.applied for step in found)
        assert np.mean([step.intercept for step in found]) == pytest.approx(intercept, abs=0.1)
        assert np.mean([step.slope for step in found]) == pytest.approx(slope, abs=0.08)

    def test_what_is_repaired_is_right_afterwards(self):
        """A second histogram, of the corrected model, gives no second step."""
        rng = np.random.default_rng(3)
        step = platt_step(TALLY, histogram(rng, 200_000, intercept=0.4, slope=0.7), 0.0)
        theta = step.theta(np.r_[np.zeros(GRID.size), np.full(GRID.patterns, -2.0)], GRID)
        assert theta[-1] == pytest.approx(0.4 - 0.7 * 2, abs=0.03)
        # What the corrected model states as z is the truth.
        again = platt_step(
            TALLY, histogram(rng, 200_000, mean=step.intercept - 1.5 * step.slope, spread=0.7), 0.0
        )
        assert not again.applied

    def test_a_step_moves_every_pattern_alike_and_keeps_the_model_additive(self):
        theta = np.random.default_rng(0).normal(size=GRID.width)
        found = Platt(intercept=0.3, slope=0.8, applied=True).theta(theta, GRID)
        assert found[: GRID.size] == pytest.approx(0.8 * theta[: GRID.size])
        assert found[GRID.size :] == pytest.approx(0.3 + 0.8 * theta[GRID.size :])

    def test_no_step_changes_nothing(self):
        theta = np.random.default_rng(0).normal(size=GRID.width)
        assert Platt().theta(theta, GRID).tobytes() == theta.tobytes()
        assert Platt().to_json() == {"applied": False, "intercept": 0.0, "slope": 1.0}


class TestNothingToSee:
    @pytest.mark.parametrize("noise", [5.0, 60.0])
    def test_a_histogram_of_noise_alone_gives_no_step(self, noise):
        rng = np.random.default_rng(2)
        assert not any(platt_step(TALLY, rng.normal(0, noise, 80), noise).applied for _ in range(500))

    @pytest.mark.parametrize(
        "noisy",
        [np.zeros(80), np.full(80, -5.0), np.r_[np.zeros(40), 1000.0, np.zeros(39)]],
        ids=["empty", "negative", "everybody in one cell"],
    )
    def test_a_histogram_that_says_nothing_gives_no_step(self, noisy):
        assert platt_step(TALLY, noisy, 0.0) == Platt()

    @pytest.mark.parametrize("outcome", [0, 1])
    def test_one_outcome_alone_is_no_slope(self, outcome):
        """Everybody good or everybody bad: no finite step fits, and none is taken."""
        noisy = np.zeros(80)
        noisy[outcome::2] = 500.0
        assert platt_step(TALLY, noisy, 0.0) == Platt()

    def test_a_step_beyond_all_reason_is_not_taken(self):
        """Odds that fall where the model says that they rise: the histogram is wrong, or everything is."""
        noisy = histogram(np.random.default_rng(0), 50_000, slope=-1.0)
        assert platt_step(TALLY, noisy, 0.0) == Platt()


@pytest.mark.parametrize(
    ("noisy", "noise"),
    [
        (np.zeros(79), 1.0),
        (np.zeros(81), 1.0),
        (np.full(80, np.nan), 1.0),
        (np.full(80, np.inf), 1.0),
        (np.zeros(80), -1.0),
        (np.zeros(80), np.nan),
    ],
)
def test_what_is_no_histogram_is_refused(noisy, noise):
    with pytest.raises(BadInput, match="histogram"):
        platt_step(TALLY, noisy, noise)
