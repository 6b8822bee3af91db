"""The coordinator's half of training: learns from clean sums, survives noise, resumes exactly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from assay.models.encoding import Grid
from assay.models.fitting import (
    LARGEST_LOG_ODDS,
    Fit,
    default_rounds,
    estimate_component_persons,
    estimate_persons,
)
from assay.models.study import parse_study
from assay.privacy.errors import BadInput

HEAD = """
[study]
name = "fit"
purpose = "consumer_credit"
contexts = ["card"]
[outcome]
column = "bad"
meaning = "missed a payment"
[privacy]
epsilon = 1.0
delta = 1e-6
"""
NUMERIC = """
[[features]]
name = "{name}"
column = "{name}"
component = "{component}"
kind = "numeric"
domain = [0, 1]
label = "Amount"
{more}
"""
GRADE = """
[[features]]
name = "grade"
column = "grade"
component = "third_party"
kind = "categorical"
levels = ["a", "b"]
label = "Grade"
"""
AMOUNT = NUMERIC.format(name="amount", component="spending", more='risk_trend = "rises"')
# Patterns of the study's components (spending, third_party).
SPENDING, GRADES, BOTH = 1, 2, 3


@pytest.fixture(scope="module")
def study():
    return parse_study(HEAD + AMOUNT + GRADE)


@pytest.fixture(scope="module")
def grid(study):
    return Grid.of(study)


def design_of(grid, encoded):
    """The rows as a dense matrix: weights on the cells, and a 1 on the intercept of the row's pattern."""
    design = np.zeros((len(encoded), grid.width))
    rows = np.arange(len(encoded))
    for low, upper in zip(encoded.low.T, encoded.upper.T, strict=True):
        there = low >= 0
        design[rows[there], low[there]] += 1 - upper[there]
        design[rows[there], low[there] + 1] += upper[there]
    design[rows, grid.size + encoded.pattern - 1] = 1.0
    return design


class People:
    """Rows with outcomes, and the exact sums behind the holders' noise."""

    def __init__(self, grid, columns, risk, *, patterns=None, seed=5):
        y = np.random.default_rng([seed, 1]).random(len(risk)) < 1 / (1 + np.exp(-risk))
        self.true, self.y = risk, y.astype(float)
        self.design = design_of(grid, grid.encode(columns, patterns))

    @property
    def counts(self):
        return self.design.sum(axis=0)

    def logits(self, theta):
        return self.design @ theta

    def gradient(self, theta):
        return self.design.T @ (1 / (1 + np.exp(-self.logits(theta))) - self.y)

    def loss(self, theta):
        """Mean cross-entropy."""
        logits = self.logits(theta)
        return float(np.mean(np.logaddexp(0, logits) - self.y * logits))


def population(grid, *, rows=20_000, seed=5, slope=3.0, together=0.0, patterns=None):
    """Two features with a known logistic risk; ``together`` is how far the grade goes with the amount."""
    rng = np.random.default_rng(seed)
    amount = rng.random(rows)
    grade = np.where(rng.random(rows) < 0.5 + together * (amount - 0.5), "b", "a")
    risk = slope * amount - 2.0 + np.where(grade == "b", 1.2, 0.0)
    return People(grid, {"amount": amount, "grade": grade.astype(object)}, risk, patterns=patterns, seed=seed)


@pytest.fixture(scope="module")
def people(grid):
    return population(grid)


def begun(grid, people, *, noise_std=0.0, rounds=60, patterns=(BOTH,)):
    return Fit(grid, counts=people.counts, gradient_noise_std=noise_std, rounds=rounds, patterns=patterns)


def fitted(grid, people, *, noise_std=0.0, rounds=60, seed=0, patterns=(BOTH,)):
    rng = np.random.default_rng(seed)
    fit = begun(grid, people, noise_std=noise_std, rounds=rounds, patterns=patterns)
    while fit.done < rounds:
        fit.update(people.gradient(fit.theta) + noise_std * rng.normal(size=grid.width))
    return fit


def auroc(y, scores):
    ranks = np.argsort(np.argsort(scores))
    bad = y == 1
    return (ranks[bad].sum() - bad.sum() * (bad.sum() - 1) / 2) / (bad.sum() * (~bad).sum())


def test_clean_sums_recover_the_true_log_odds(study, grid, people):
    theta = fitted(grid, people).result(study)
    error = people.logits(theta) - people.true
    assert np.sqrt(np.mean(error**2)) < 0.12


def test_without_noise_the_fit_reaches_the_best_that_the_cells_allow(study, grid, people):
    theta = fitted(grid, people, rounds=200).result(study)
    start = np.zeros(grid.width)
    best = minimize(people.loss, start, jac=lambda t: people.gradient(t) / len(people.y), method="L-BFGS-B")
    assert best.success
    assert people.loss(theta) < best.fun + 1e-4


def test_the_same_sums_give_the_same_bytes(study, grid, people):
    first, second = (fitted(grid, people, noise_std=40.0).result(study) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_a_resumed_fit_is_bit_identical_to_one_that_was_never_stopped(study, grid, people):
    whole = fitted(grid, people, noise_std=40.0)
    rng = np.random.default_rng(0)
    first = begun(grid, people, noise_std=40.0)
    for _ in range(37):
        first.update(people.gradient(first.theta) + 40.0 * rng.normal(size=grid.width))
    second = begun(grid, people, noise_std=40.0)
    second.restore(first.state())
    for _ in range(23):
        second.update(people.gradient(second.theta) + 40.0 * rng.normal(size=grid.width))
    assert (second.result(study) == whole.result(study)).all()


@pytest.mark.parametrize("noise_std", [1e6, 1e12])
@pytest.mark.parametrize("patterns", [(BOTH,), (SPENDING, GRADES, BOTH)])
def test_hopeless_noise_stays_finite_and_bounded(study, grid, people, noise_std, patterns):
    theta = fitted(grid, people, noise_std=noise_std, rounds=15, patterns=patterns).result(study)
    assert np.abs(theta).max() <= LARGEST_LOG_ODDS


def test_nobody_counted_stays_finite_and_bounded(study, grid):
    fit = Fit(grid, counts=-np.ones(grid.width), gradient_noise_std=100.0, rounds=15, patterns=(BOTH,))
    rng = np.random.default_rng(1)
    while fit.done < 15:
        fit.update(100.0 * rng.normal(size=grid.width))
    assert np.abs(fit.result(study)).max() <= LARGEST_LOG_ODDS


@pytest.mark.parametrize("seed", range(5))
def test_a_declared_trend_holds_even_where_the_records_run_against_it(study, grid, seed):
    fit = fitted(grid, population(grid, slope=-3.0), noise_std=100.0, seed=seed)
    cells = slice(0, grid.features[0].ordered)
    assert (np.diff(fit.theta[cells]) < 0).any()  # without the projection the trend is broken
    assert (np.diff(fit.result(study)[cells]) >= 0).all()


def test_noise_shrinks_the_free_cells_toward_a_straight_line(grid, people):
    def bend(noise):
        # The same clean sums; only the announced noise level differs.
        fit = begun(grid, people, noise_std=noise, rounds=30)
        while fit.done < 30:
            fit.update(people.gradient(fit.theta))
        return np.abs(fit.state()["at"][: grid.size]).sum()

    assert bend(2_000.0) < 0.7 * bend(0.0)


def test_every_feature_is_centred_at_the_mean_of_the_population(study, grid, people):
    theta = fitted(grid, people, noise_std=20.0).theta
    shares = people.counts[: grid.size] / len(people.y)
    for feature in grid.features:
        cells = slice(feature.offset, feature.offset + feature.cells)
        assert abs(theta[cells] @ shares[cells]) < 1e-9


@pytest.fixture(scope="module")
def scattered(grid):
    """Of ten holders, three have the amount, three the grade, and four have both."""
    patterns = np.repeat([SPENDING, GRADES, BOTH], [6_000, 6_000, 8_000]).astype(np.int32)
    return population(grid, patterns=patterns, together=0.9)


def test_a_pattern_that_no_holder_has_gets_the_neutral_intercept(study, grid, people):
    theta = fitted(grid, people, noise_std=20.0).result(study)
    intercepts = theta[grid.size :]
    assert (intercepts == intercepts[-1]).all()
    # An average amount and an unknown grade: as good as the average person.
    assert abs(intercepts[SPENDING - 1] - people.true.mean()) < 0.1


def test_a_component_that_no_holder_has_counts_nothing(study, grid):
    patterns = np.full(20_000, GRADES, dtype=np.int32)
    people = population(grid, patterns=patterns)
    theta = fitted(grid, people, noise_std=20.0, patterns=(GRADES,)).result(study)
    assert not theta[: grid.features[0].cells].any()
    assert np.ptp(theta[grid.features[1].offset :][:2]) > 0.5


def test_patterns_that_differ_in_risk_get_intercepts_that_differ(study, grid):
    patterns = np.repeat([SPENDING, BOTH], [10_000, 10_000]).astype(np.int32)
    rng = np.random.default_rng(3)
    columns = {"amount": rng.random(20_000), "grade": rng.choice(["a", "b"], 20_000).astype(object)}
    people = People(grid, columns, np.where(patterns == BOTH, 0.5, -1.5), patterns=patterns)
    theta = fitted(grid, people, noise_std=20.0, patterns=(SPENDING, BOTH)).result(study)
    both, spending, nobody = (theta[grid.size + pattern - 1] for pattern in (BOTH, SPENDING, GRADES))
    assert abs(both - spending - 2.0) < 0.25
    assert spending < nobody < both


def test_scattered_components_beat_the_complete_records_alone(study, grid):
    """On complete records of others; eight draws of the noise; they differ by .04 on average."""
    patterns = np.repeat([SPENDING, GRADES, BOTH], [4_000, 4_000, 400]).astype(np.int32)
    scattered = population(grid, rows=8_400, patterns=patterns, together=0.9)
    complete = population(grid, rows=400, seed=7, together=0.9)
    test = population(grid, seed=8, together=0.9)
    reached, alone = [], []
    for seed in range(8):
        noise = {"noise_std": 300.0, "rounds": 30, "seed": seed}
        split = fitted(grid, scattered, patterns=(SPENDING, GRADES, BOTH), **noise)
        reached.append(auroc(test.y, test.logits(split.result(study))))
        alone.append(auroc(test.y, test.logits(fitted(grid, complete, **noise).result(study))))
    assert np.mean(reached) > np.mean(alone) + 0.01
    assert min(reached) > auroc(test.y, test.true) - 0.01


def test_many_features_that_say_the_same_do_not_make_the_descent_oscillate(study):
    more = "".join(NUMERIC.format(name=f"again_{i}", component="spending", more="") for i in range(150))
    study = parse_study(HEAD + more)
    grid = Grid.of(study)
    rng = np.random.default_rng(2)
    amount = rng.choice([0.1, 0.9], 2_000)
    columns = {f"again_{i}": amount for i in range(150)}
    people = People(grid, columns, 3.0 * amount - 2.5)
    theta = fitted(grid, people, noise_std=10.0, patterns=(1,)).result(study)
    rates = [people.y[amount == value].mean() for value in (0.1, 0.9)]
    best = -np.mean([rate * np.log(rate) + (1 - rate) * np.log(1 - rate) for rate in rates])
    assert people.loss(theta) < best + 0.02


def test_persons_are_estimated_from_noisy_counts(grid, people, scattered):
    noise = np.random.default_rng(2).normal(size=grid.width) * 20
    assert abs(estimate_persons(grid, people.counts + noise, (BOTH,)) - 20_000) < 100
    stated = (SPENDING, GRADES, BOTH)
    assert abs(estimate_persons(grid, scattered.counts + noise, stated) - 20_000) < 150
    each = estimate_component_persons(grid, scattered.counts + noise, stated)
    assert np.abs(each - 14_000).max() < 150
    assert estimate_persons(grid, -people.counts, (BOTH,)) == 1.0
    assert (estimate_component_persons(grid, -people.counts, (BOTH,)) == 1.0).all()


def test_totals_of_all_features_make_the_estimate_of_persons_better(grid, people):
    """Totals of 1, 9 and 4 noisy cells: the best estimate is off by 17.1, the pattern alone by 20 persons."""
    rng = np.random.default_rng(4)
    noisy = [people.counts + 20.0 * rng.normal(size=grid.width) for _ in range(1_000)]
    found = [estimate_persons(grid, counts, (BOTH,)) for counts in noisy]
    assert 15.5 < np.std(found) < 18.7
    assert abs(np.mean(found) - 20_000) < 3


def test_steps_that_overshoot_are_shortened_and_averaged_anew(grid, people):
    """Gradients that turn round in every round are what steps that are too long see."""
    fit = begun(grid, people, noise_std=1.0, rounds=20)
    push = people.gradient(fit.theta)
    for turn in range(18):
        fit.update(push * (-1) ** turn)
    assert fit.state()["rate"][0] < 0.1
    assert fit.state()["averaged"][0] < 3


@pytest.mark.parametrize(
    ("epsilon", "persons", "holders", "rounds"),
    [(0.1, 10_000, 1, 15), (1.0, 24_000, 3, 30), (1.0, 24_000, 100, 15), (1.0, 24_000, 1, 60)],
)
def test_rounds_follow_the_signal(epsilon, persons, holders, rounds):
    assert default_rounds(epsilon=epsilon, persons=persons, holders=holders) == rounds


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_sum_that_is_not_finite_is_refused_and_changes_nothing(grid, people, broken):
    fit = begun(grid, people, noise_std=1.0, rounds=5)
    before = fit.state()
    gradient = people.gradient(fit.theta)
    gradient[3] = broken
    with pytest.raises(BadInput, match="finite"):
        fit.update(gradient)
    assert all((before[key] == value).all() for key, value in fit.state().items())


def test_wrong_shapes_too_many_rounds_and_early_results_are_refused(study, grid, people):
    arguments = {"counts": people.counts, "gradient_noise_std": 1.0, "rounds": 1, "patterns": (BOTH,)}
    for wrong in (
        {"counts": people.counts[:-1]},
        {"gradient_noise_std": float("nan")},
        {"gradient_noise_std": float("inf")},
        {"rounds": 0},
        {"patterns": ()},
        {"patterns": (0,)},
        {"patterns": (BOTH + 1,)},
    ):
        with pytest.raises(BadInput):
            Fit(grid, **{**arguments, **wrong})
    fit = Fit(grid, **arguments)
    with pytest.raises(BadInput):
        fit.update(people.counts[:-1])
    with pytest.raises(BadInput, match="rounds done"):
        fit.result(study)
    fit.update(people.gradient(fit.theta))
    with pytest.raises(BadInput, match="round"):
        fit.update(people.gradient(fit.theta))
