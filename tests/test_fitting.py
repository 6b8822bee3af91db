"""The coordinator's half of training: learns from clean sums, survives noise, resumes exactly."""

from __future__ import annotations

import numpy as np
import pytest

from assay.models.encoding import Grid
from assay.models.fitting import LARGEST_LOG_ODDS, Fit, default_rounds, estimate_persons
from assay.models.study import parse_study
from assay.privacy.errors import BadInput

STUDY = """
[study]
name = "fit"
purpose = "consumer_credit"
contexts = ["card"]
[outcome]
column = "bad"
meaning = "missed a payment"
[[features]]
name = "amount"
column = "amount"
component = "spending"
kind = "numeric"
domain = [0, 1]
risk_trend = "rises"
label = "Amount"
[[features]]
name = "grade"
column = "grade"
component = "third_party"
kind = "categorical"
levels = ["a", "b"]
label = "Grade"
[privacy]
epsilon = 1.0
delta = 1e-6
"""


@pytest.fixture(scope="module")
def study():
    return parse_study(STUDY)


@pytest.fixture(scope="module")
def grid(study):
    return Grid.of(study)


class Population:
    """Two features with a known logistic risk, and the exact sums behind the holders' noise."""

    def __init__(self, grid, rows=20_000, seed=5, slope=3.0):
        rng = np.random.default_rng(seed)
        amount, grade = rng.random(rows), rng.choice(["a", "b"], rows)
        self.true = slope * amount - 2.0 + np.where(grade == "b", 0.8, 0.0)
        self.y = (rng.random(rows) < 1 / (1 + np.exp(-self.true))).astype(float)
        encoded = grid.encode({"amount": amount, "grade": grade.astype(object)})
        self.design = np.zeros((rows, grid.size + 1))
        rows_index = np.arange(rows)
        for j in range(encoded.low.shape[1]):
            np.add.at(self.design, (rows_index, encoded.low[:, j]), 1 - encoded.upper[:, j])
            following = np.minimum(encoded.low[:, j] + 1, grid.size)
            np.add.at(self.design, (rows_index, following), encoded.upper[:, j])
        self.design[:, -1] = 1.0

    @property
    def counts(self):
        return self.design[:, :-1].sum(axis=0)

    def logits(self, theta):
        return self.design @ theta

    def gradient(self, theta):
        return self.design.T @ (1 / (1 + np.exp(-self.logits(theta))) - self.y)


@pytest.fixture(scope="module")
def people(grid):
    return Population(grid)


def fitted(grid, people, *, noise_std=0.0, rounds=60, seed=0):
    rng = np.random.default_rng(seed)
    fit = Fit(grid, counts=people.counts, gradient_noise_std=noise_std, rounds=rounds)
    while fit.done < rounds:
        fit.update(people.gradient(fit.theta) + noise_std * rng.normal(size=grid.size + 1))
    return fit


def test_clean_sums_recover_the_true_log_odds(study, grid, people):
    theta = fitted(grid, people).result(study)
    error = people.logits(theta) - people.true
    assert np.sqrt(np.mean(error**2)) < 0.12


def test_a_resumed_fit_is_bit_identical_to_one_that_was_never_stopped(study, grid, people):
    whole = fitted(grid, people, noise_std=40.0)
    rng = np.random.default_rng(0)
    first = Fit(grid, counts=people.counts, gradient_noise_std=40.0, rounds=60)
    for _ in range(37):
        first.update(people.gradient(first.theta) + 40.0 * rng.normal(size=grid.size + 1))
    second = Fit(grid, counts=people.counts, gradient_noise_std=40.0, rounds=60)
    second.restore(first.state())
    for _ in range(23):
        second.update(people.gradient(second.theta) + 40.0 * rng.normal(size=grid.size + 1))
    assert (second.result(study) == whole.result(study)).all()


def test_hopeless_noise_stays_finite_and_bounded(study, grid, people):
    theta = fitted(grid, people, noise_std=1e6, rounds=15).result(study)
    assert np.abs(theta).max() <= LARGEST_LOG_ODDS


@pytest.mark.parametrize("seed", range(5))
def test_a_declared_trend_holds_even_where_the_records_run_against_it(study, grid, seed):
    fit = fitted(grid, Population(grid, slope=-3.0), noise_std=100.0, seed=seed)
    cells = slice(0, grid.features[0].ordered)
    assert (np.diff(fit.theta[cells]) < 0).any()  # without the projection the trend is broken
    assert (np.diff(fit.result(study)[cells]) >= 0).all()


def test_noise_shrinks_the_free_cells_toward_a_straight_line(grid, people):
    def bend(noise):
        # The same clean sums; only the announced noise level differs.
        fit = Fit(grid, counts=people.counts, gradient_noise_std=noise, rounds=30)
        while fit.done < 30:
            fit.update(people.gradient(fit.theta))
        return np.abs(fit.state()["free"]).sum()

    assert bend(2_000.0) < 0.7 * bend(0.0)


def test_persons_are_estimated_from_noisy_counts(grid, people):
    noisy = people.counts + np.random.default_rng(2).normal(size=grid.size) * 20
    assert abs(estimate_persons(grid, noisy) - 20_000) < 200
    assert estimate_persons(grid, -people.counts) == 1.0


@pytest.mark.parametrize(
    ("epsilon", "persons", "holders", "rounds"),
    [(0.1, 10_000, 1, 15), (1.0, 24_000, 3, 30), (1.0, 24_000, 100, 15), (1.0, 24_000, 1, 60)],
)
def test_rounds_follow_the_signal(epsilon, persons, holders, rounds):
    assert default_rounds(epsilon=epsilon, persons=persons, holders=holders) == rounds


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_sum_that_is_not_finite_is_refused_and_changes_nothing(grid, people, broken):
    fit = Fit(grid, counts=people.counts, gradient_noise_std=1.0, rounds=5)
    gradient = people.gradient(fit.theta)
    gradient[3] = broken
    with pytest.raises(BadInput, match="finite"):
        fit.update(gradient)
    assert fit.done == 0
    assert not fit.theta.any()


def test_wrong_shapes_too_many_rounds_and_early_results_are_refused(study, grid, people):
    with pytest.raises(BadInput):
        Fit(grid, counts=people.counts[:-1], gradient_noise_std=1.0, rounds=5)
    with pytest.raises(BadInput):
        Fit(grid, counts=people.counts, gradient_noise_std=float("nan"), rounds=5)
    fit = Fit(grid, counts=people.counts, gradient_noise_std=1.0, rounds=1)
    with pytest.raises(BadInput):
        fit.update(people.counts)
    with pytest.raises(BadInput, match="rounds done"):
        fit.result(study)
    fit.update(people.gradient(fit.theta))
    with pytest.raises(BadInput, match="round"):
        fit.update(people.gradient(fit.theta))
