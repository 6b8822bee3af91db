"""Metrics agree with their definitions, and refuse what would give a number without meaning."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from assay.models import metrics
from assay.privacy.errors import BadInput

RECORDS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), min_size=2, max_size=60)


def split(records):
    y, p = (np.array(side, dtype=float) for side in zip(*records, strict=True))
    assume(0 < y.sum() < len(y))
    return y, p / 20


@given(RECORDS)
def test_auroc_is_the_chance_that_a_bad_outranks_a_good(records):
    y, p = split(records)
    pairs = [(1.0 if b > g else 0.5 if b == g else 0.0) for b in p[y == 1] for g in p[y == 0]]
    assert metrics.auroc(y, p) == pytest.approx(np.mean(pairs))
    assert metrics.gini(y, p) == pytest.approx(2 * np.mean(pairs) - 1)


@given(RECORDS)
def test_ks_is_the_largest_gap_between_the_two_distributions(records):
    y, p = split(records)
    gaps = [abs((p[y == 1] > cut).mean() - (p[y == 0] > cut).mean()) for cut in np.r_[p, p.min() - 1]]
    assert metrics.ks(y, p) == pytest.approx(max(gaps))


@given(RECORDS)
def test_the_roc_curve_rises_from_corner_to_corner(records):
    false, true = metrics.roc_curve(*split(records))
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()


@given(RECORDS)
def test_turning_the_score_round_turns_the_auroc_round(records):
    y, p = split(records)
    assert metrics.auroc(y, p) + metrics.auroc(y, -p) == pytest.approx(1)


@given(RECORDS)
def test_calibration_rows_hold_every_record_once(records):
    y, p = split(records)
    table = metrics.calibration(y, p, bins=4)
    assert sum(row["rows"] for row in table) == len(y)
    assert sum(row["rows"] * row["observed"] for row in table) == pytest.approx(y.sum())
    assert sum(row["rows"] * row["predicted"] for row in table) == pytest.approx(p.sum())
    assert [row["predicted"] for row in table] == sorted(row["predicted"] for row in table)


def test_known_values():
    y, p = [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]
    assert metrics.auroc(y, p) == 0.75
    assert metrics.ks(y, p) == 0.5
    assert metrics.brier(y, p) == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4)
    assert metrics.log_loss(y, p) == pytest.approx(
        -np.mean([math.log(0.9), math.log(0.6), math.log(0.35), math.log(0.8)])
    )


def test_perfect_and_constant_scores():
    assert metrics.auroc([0, 1], [0, 1]) == 1
    assert metrics.auroc([0, 1], [1, 0]) == 0
    assert metrics.auroc([0, 1, 1], [0.5, 0.5, 0.5]) == 0.5
    assert metrics.ks([0, 1, 1], [0.5, 0.5, 0.5]) == 0


def test_a_sure_and_wrong_probability_costs_much_but_not_infinitely():
    assert 30 < metrics.log_loss([1], [0.0]) < 40


def test_a_calibrated_score_has_no_calibration_error_and_a_shifted_one_has():
    p = np.repeat([0.25, 0.75], 400)
    y = np.tile(np.r_[np.ones(100), np.zeros(300)], 2)
    y[400:] = np.r_[np.ones(300), np.zeros(100)]
    assert metrics.expected_calibration_error(y, p) == pytest.approx(0)
    assert metrics.expected_calibration_error(y, p + 0.1) == pytest.approx(0.1)


def test_the_stability_index_is_zero_only_without_a_shift():
    assert metrics.psi([10, 20, 30], [1, 2, 3]) == pytest.approx(0)
    expected = (0.75 - 0.5) * math.log(1.5) + (0.25 - 0.5) * math.log(0.5)
    assert metrics.psi([1, 1], [3, 1]) == pytest.approx(expected)
    assert math.isfinite(metrics.psi([1, 0], [1, 1]))


RANKED = [metrics.auroc, metrics.ks, metrics.gini, metrics.roc_curve]
PRICED = [metrics.brier, metrics.log_loss, metrics.calibration, metrics.expected_calibration_error]


@pytest.mark.parametrize("metric", RANKED)
@pytest.mark.parametrize("y", [[0, 0], [1, 1]])
def test_one_class_only_is_refused(metric, y):
    with pytest.raises(BadInput, match="both"):
        metric(y, [0.1, 0.2])


@pytest.mark.parametrize("metric", [*RANKED, *PRICED])
@pytest.mark.parametrize(
    ("y", "p"),
    [
        ([0, 1], [0.1, math.nan]),
        ([0, math.nan], [0.1, 0.2]),
        ([0, 2], [0.1, 0.2]),
        ([0, 1, 1], [0.1, 0.2]),
        ([], []),
        ([[0, 1]], [[0.1, 0.2]]),
    ],
)
def test_what_cannot_be_measured_is_refused(metric, y, p):
    with pytest.raises(BadInput):
        metric(y, p)


@pytest.mark.parametrize("metric", PRICED)
@pytest.mark.parametrize("p", [[0.1, 1.1], [-0.1, 0.5]])
def test_what_is_no_probability_is_refused(metric, p):
    with pytest.raises(BadInput, match="0 to 1"):
        metric([0, 1], p)


@pytest.mark.parametrize(
    ("a", "b"), [([1, 2], [1]), ([0, 0], [1, 1]), ([1, -1], [1, 1]), ([1, math.nan], [1, 1])]
)
def test_counts_that_are_none_are_refused(a, b):
    with pytest.raises(BadInput, match="bin counts"):
        metrics.psi(a, b)
