"""What is counted after the gradients: every person once, in its own cells, and never longer than stated."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proof_support import study_text
from scipy.special import expit
from toy_study import FEATURES, GRID, STUDY, TEXT, records

from assay.models import tally
from assay.models.encoding import Grid
from assay.models.scorecard import Scorecard
from assay.models.study import parse_study
from assay.models.tally import AuditTally, CalibrationTally, ClippedTally, log_odds, tally_of
from assay.privacy.errors import BadInput

AUDIT, CALIBRATION = AuditTally(study=STUDY, grid=GRID), CalibrationTally(grid=GRID)
DATA = records(500)
ENCODED = GRID.encode(DATA.columns)
RANDOM = np.random.default_rng(5).normal(0, 0.5, GRID.width)
TWO_COLUMNS = parse_study(
    TEXT.replace('columns = ["SEX"]', 'columns = ["SEX", "AGE"]').replace(
        'SEX = ["f", "m"]', 'SEX = ["f", "m"], AGE = [30, 50]'
    )
)


def card_of(theta=RANDOM):
    return Scorecard.from_theta(STUDY, GRID, theta)


def summed(layout, theta=RANDOM, data=DATA, persons=None, groups=None):
    own = data.groups if groups is None else groups
    return ClippedTally(layout, GRID.encode(data.columns), data.labels, persons, own)(theta)


class TestCalibration:
    def test_it_is_the_histogram_of_log_odds_by_outcome(self):
        z = log_odds(RANDOM, ENCODED, GRID)
        edges = np.linspace(-6, 4, 41)
        for outcome in (0, 1):
            expected, _ = np.histogram(z[DATA.labels == outcome], edges)
            assert summed(CALIBRATION)[outcome::2] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize(("shift", "cell"), [(-50.0, 0), (50.0, 39), (-5e5, 0), (5e5, 39)])
    def test_what_lies_beyond_the_bins_is_in_the_last_one(self, shift, cell):
        theta = np.zeros(GRID.width)
        theta[-1] = shift
        found = summed(CALIBRATION, theta)
        assert found[2 * cell : 2 * cell + 2].sum() == pytest.approx(500, rel=1e-5)
        assert np.count_nonzero(found) == 2

    def test_the_middles_are_those_of_the_bins(self):
        assert CALIBRATION.middles()[[0, 39]] == pytest.approx([-5.875, 3.875])

    def test_log_odds_are_those_of_the_cells_and_of_the_pattern(self):
        columns = {"INCOME": np.array([3.3, np.nan]), "BALANCE": np.array([10.0, 20.0])}
        patterns = np.array([0b010, 0b010], dtype=np.int32)
        encoded = GRID.encode(columns, patterns)
        income = GRID.features[0]
        place = 3.3 / 10 * 7
        low, share = income.offset + int(place), round((place - int(place)) * 1024) / 1024
        first = (1 - share) * RANDOM[low] + share * RANDOM[low + 1]
        balance = [
            (1 - float(u)) * RANDOM[cell] + float(u) * RANDOM[cell + 1]
            for cell, u in zip(encoded.low[:, 2], encoded.upper[:, 2], strict=True)
        ]
        both = RANDOM[GRID.size + 0b010 - 1]
        expected = [first + balance[0] + both, RANDOM[income.missing] + balance[1] + both]
        assert log_odds(RANDOM, encoded, GRID) == pytest.approx(expected, abs=1e-12)

    def test_an_absent_component_counts_nothing(self):
        """Whatever its cells say: with two rows that differ in nothing else, nothing else changes."""
        patterns = np.full(500, 0b011, dtype=np.int32)
        encoded = GRID.encode(DATA.columns, patterns)
        other = RANDOM.copy()
        delay = GRID.features[1]
        other[delay.offset : delay.offset + delay.cells] = 100.0
        assert np.array_equal(log_odds(RANDOM, encoded, GRID), log_odds(other, encoded, GRID))


class TestAudit:
    def test_the_scores_are_counted_by_outcome(self):
        scores, found = card_of().score(ENCODED).score, summed(AUDIT)[AUDIT.scores]
        bins = np.minimum((scores - 350) * 20 // 601, 19)
        for outcome in (0, 1):
            expected = np.bincount(bins[DATA.labels == outcome], minlength=20)
            assert found[outcome::2] == pytest.approx(expected, rel=1e-5)

    def test_the_bins_hold_all_scores_with_both_ends(self):
        edges = AUDIT.edges()
        assert (len(edges), edges[0], edges[-1]) == (21, 350, 951)
        for end, cell in ((350, 0), (950, 19)):
            theta = np.zeros(GRID.width)
            theta[-1] = 30.0 if end == 350 else -30.0
            found = summed(AUDIT, theta)[AUDIT.scores]
            assert found[2 * cell : 2 * cell + 2].sum() == pytest.approx(500, rel=1e-5)

    def test_groups_are_counted_by_decision_and_outcome_with_their_chances(self):
        scores = card_of().score(ENCODED)
        found = summed(AUDIT)[AUDIT.groups(0)].reshape(4, 5)
        approved = scores.score >= STUDY.scale.threshold
        for group in range(4):
            own = DATA.groups["SEX"] == group
            counts = [(own & (approved == a) & (DATA.labels == y)).sum() for a in (0, 1) for y in (0, 1)]
            assert found[group, :4] == pytest.approx(counts, rel=1e-5)
            assert found[group, 4] == pytest.approx(scores.probability[own].sum(), rel=1e-5)

    def test_who_is_exactly_at_the_cut_off_is_approved_and_near(self):
        for score, approved, near in ((599, 0, 0), (600, 500, 500), (639, 500, 500), (640, 500, 0)):
            theta = np.zeros(GRID.width)
            theta[-1] = (STUDY.scale.offset - score) / STUDY.scale.factor
            assert (card_of(theta).score(ENCODED).score == score).all()
            found = summed(AUDIT, theta)
            by_group = found[AUDIT.groups(0)].reshape(4, 5)
            assert by_group[:, 2:4].sum() == pytest.approx(approved, rel=1e-5)
            assert found[AUDIT.near][-1] == pytest.approx(near, rel=1e-5)

    def test_points_near_the_cut_off_are_added_up_over_their_largest(self):
        theta = RANDOM.copy()
        theta[-1] -= 1.5
        card = card_of(theta)
        scores = card.score(ENCODED)
        near = (scores.score >= 600) & (scores.score < 640)
        parts = scores.points[near] / AUDIT.largest(card)
        assert near.sum() > 20
        assert (np.linalg.norm(parts, axis=1) < 2).all()  # nobody is scaled down here
        found = summed(AUDIT, theta)[AUDIT.near]
        assert found[:-1] == pytest.approx(parts.sum(axis=0), abs=1e-3)
        assert found[-1] == pytest.approx(near.sum(), rel=1e-5)

    def test_a_column_that_is_not_there_counts_in_no_group_and_changes_nothing_else(self):
        without = summed(AUDIT, groups={})
        assert not without[AUDIT.groups(0)].any()
        whole = summed(AUDIT)
        whole[AUDIT.groups(0)] = 0
        assert without == pytest.approx(whole, abs=1e-9)

    def test_a_feature_without_points_is_divided_by_one(self):
        assert AUDIT.largest(card_of(np.zeros(GRID.width))).tolist() == [1.0] * FEATURES


class TestSensitivity:
    """No row is longer than what is stated, whatever the model; a person's rows are clipped together."""

    def longest(self, layout, theta, encoded, labels, groups):
        rows = layout.rows(theta, encoded, labels, groups)
        return float(np.sqrt(rows.multiply(rows).sum(axis=1)).max())

    @given(seed=st.integers(0, 2**32 - 1), size=st.floats(1e-3, 1e4), shift=st.floats(-20, 20))
    @settings(max_examples=150, deadline=None)
    @pytest.mark.parametrize("study", [STUDY, TWO_COLUMNS], ids=["one column", "two columns"])
    def test_no_row_is_longer_than_the_sensitivity(self, study, seed, size, shift):
        rng, grid = np.random.default_rng(seed), Grid.of(study)
        theta = rng.choice([-size, 0.0, size, size / 3], grid.width)
        # Scores near the cut-off are where every block counts.
        theta[grid.size :] = (650 - 600 + 4 * rng.integers(0, 10)) / study.scale.factor + shift * 0.01
        groups = {"SEX": rng.integers(0, 4, 500), "AGE": rng.integers(0, 4, 500)}
        for layout in (CalibrationTally(grid=grid), AuditTally(study=study, grid=grid)):
            assert self.longest(layout, theta, ENCODED, DATA.labels, groups) <= layout.sensitivity * (
                1 + 1e-12
            )

    def test_some_row_uses_the_bound_up(self):
        """Everybody at the cut-off by the largest points of every feature, with a chance of bad near 1."""
        text = TEXT.replace("[fairness]", "[scale]\ncut_off = 360\n\n[fairness]")
        study = parse_study(text)
        theta = np.full(GRID.width, -50 / study.scale.factor)
        theta[-1] = (study.scale.offset - 360 + 50 * FEATURES) / study.scale.factor
        layout = AuditTally(study=study, grid=GRID)
        assert self.longest(layout, theta, ENCODED, DATA.labels, DATA.groups) > 0.98 * layout.sensitivity

    def test_points_of_many_features_near_the_cut_off_are_cut_to_a_length_of_two(self):
        """Nine features at their largest points have length 3; the other blocks are full, too."""
        study = parse_study(study_text(features=9, values=2, groups=2))
        grid = Grid.of(study)
        theta = np.full(grid.width, -10 / study.scale.factor)
        theta[-1] = (study.scale.offset - study.scale.threshold + 90) / study.scale.factor
        encoded = grid.encode({f"F{i}": np.array([0.0, 1.0]) for i in range(9)})
        layout = AuditTally(study=study, grid=grid)
        rows = layout.rows(theta, encoded, np.zeros(2), {"GROUP": np.array([0, 1])}).toarray()
        assert np.linalg.norm(rows[:, layout.near], axis=1) == pytest.approx(math.sqrt(5))
        assert rows[:, layout.near.stop - 1].tolist() == [1.0, 1.0]
        assert (np.linalg.norm(rows, axis=1) <= layout.sensitivity).all()

    @pytest.mark.parametrize("columns", [1, 2])
    def test_the_stated_bound_is_the_one_of_the_blocks(self, columns):
        study = STUDY if columns == 1 else TWO_COLUMNS
        stated = AuditTally(study=study, grid=Grid.of(study)).sensitivity
        assert stated == math.sqrt(1 + 2 * columns + 2**2 + 1)
        assert CALIBRATION.sensitivity == 1

    @pytest.mark.parametrize("layout", [CALIBRATION, AUDIT], ids=["calibration", "audit"])
    def test_many_rows_of_one_person_are_clipped_together(self, layout):
        one = np.zeros(500, dtype=np.int64)
        found = np.linalg.norm(summed(layout, persons=one))
        assert 0.9 * layout.sensitivity < found <= layout.sensitivity
        assert np.linalg.norm(summed(layout)) > 50 * layout.sensitivity  # control: as persons of their own

    def test_persons_of_one_row_are_never_scaled_down(self):
        for layout in (CALIBRATION, AUDIT):
            exact = layout.rows(RANDOM, ENCODED, DATA.labels, DATA.groups).sum(axis=0)
            assert summed(layout) == pytest.approx(np.asarray(exact).ravel(), rel=2e-6)


class TestPersons:
    @pytest.mark.parametrize("layout", [CALIBRATION, AUDIT], ids=["calibration", "audit"])
    def test_parts_that_are_computed_at_a_time_make_no_difference(self, layout, monkeypatch):
        persons = np.r_[np.arange(200), np.repeat(np.arange(200, 220), 15)]
        whole = summed(layout, persons=persons)
        for size in (1, 7, 100):
            monkeypatch.setattr(tally, "_CHUNK", size)
            assert summed(layout, persons=persons) == pytest.approx(whole, abs=1e-9)

    def test_the_order_of_rows_makes_no_difference(self):
        persons = np.arange(500) // 3
        order = np.random.default_rng(0).permutation(500)
        mixed = ClippedTally(
            AUDIT, ENCODED.rows(order), DATA.labels[order], persons[order], {"SEX": DATA.groups["SEX"][order]}
        )
        assert mixed(RANDOM) == pytest.approx(summed(AUDIT, persons=persons), abs=1e-9)

    def test_the_same_sum_is_the_same_bytes(self):
        again = ClippedTally(AUDIT, ENCODED, DATA.labels, None, DATA.groups)
        assert again(RANDOM).tobytes() == again(RANDOM).tobytes()


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": np.full(500, 0.5)},
        {"labels": np.zeros(499)},
        {"persons": np.zeros(499, dtype=np.int64)},
        {"persons": np.zeros(500)},
        {"groups": {"SEX": np.zeros(499, dtype=np.int64)}},
    ],
    ids=[
        "a label of one half",
        "too few labels",
        "too few persons",
        "persons that are no codes",
        "too few groups",
    ],
)
def test_records_that_do_not_fit_are_refused(changed):
    arguments = {"labels": DATA.labels, "persons": None, "groups": DATA.groups} | changed
    with pytest.raises(BadInput):
        ClippedTally(AUDIT, ENCODED, **arguments)


def test_two_rounds_follow_the_gradients_and_no_third():
    assert tally_of(STUDY, GRID, 1) == CALIBRATION
    assert tally_of(STUDY, GRID, 2) == AUDIT
    for number in (0, 3, -1):
        with pytest.raises(BadInput, match="tally"):
            tally_of(STUDY, GRID, number)


def test_chances_are_those_of_the_points():
    """The sum of chances a group has is that of its card, not of the model before its points were rounded."""
    scores = card_of().score(ENCODED)
    totals = scores.points.sum(axis=1) + scores.base
    scale = STUDY.scale
    assert scores.probability == pytest.approx(expit((scale.offset - totals) / scale.factor), abs=1e-12)
