"""Noise is not taken for drift, and drift is found through noise.

Random numbers here are seeded: a test that passes once passes always.
"""

import math
from collections import Counter

import numpy as np
import pytest
from monitor_support import noise_of, people, read_card, write_card

from assay.models import metrics
from assay.models.bundle import read_bundle
from assay.models.drift import (
    Baseline,
    Population,
    counted,
    drift_in_words,
    drift_of,
    score_bins,
    score_edges,
)
from assay.models.stability import LOOK, MOVED, Histogram, Stability, merged_cells, stability
from assay.models.tally import SCORE_BINS, AuditTally
from assay.privacy.errors import BadInput

FLAGGED = ("look", "moved")


def exact(*counts):
    return Histogram(counts=np.array(counts, dtype=float))


def drawn(rng, shares, rows, std):
    counts = rng.multinomial(rows, shares).astype(float)
    return Histogram(counts=counts + (rng.normal(0, std, len(shares)) if std else 0), noise_std=std)


def geometric(cells, smallest):
    shares = np.geomspace(1, smallest, cells)
    return shares / shares.sum()


class TestMerging:
    def test_cells_above_the_noise_stand_alone(self):
        assert merged_cells(np.array([50.0, 60, 70]), 10.0, 3) == (((0,), (1,), (2,)), (True, True, True))

    def test_small_neighbours_are_added_until_they_hold_more_than_noise(self):
        cells, sure = merged_cells(np.array([30.0, 35, 90, 30, 35]), 10.0, 5)
        assert cells == ((0, 1), (2,), (3, 4))
        assert all(sure)

    def test_empty_neighbours_of_a_full_cell_are_left_over_and_not_hidden_in_it(self):
        cells, sure = merged_cells(np.array([1.0, 500, 400, -3, 2]), 10.0, 5)
        assert cells == ((1,), (2,), (0, 3, 4))
        assert sure == (True, True, False)

    def test_levels_without_an_order_go_into_one_rest(self):
        cells, sure = merged_cells(np.array([500.0, 35, 400, 36, 5]), 10.0, 0)
        assert cells == ((0,), (2,), (1, 3, 4))
        assert sure == (True, True, True)  # together they are more than noise

    def test_the_noise_of_k_cells_is_the_root_of_k_times_that_of_one(self):
        """45 is more than four times 10 and less than four times 10 sqrt(2)."""
        assert merged_cells(np.array([45.0, 100]), 10.0, 2)[0] == ((0,), (1,))
        assert merged_cells(np.array([20.0, 25, 100]), 10.0, 3) == (((2,), (0, 1)), (True, False))

    def test_every_cell_is_in_exactly_one_merged_cell(self):
        rng = np.random.default_rng(1)
        for ordered in (0, 5, 11, 12):
            for _ in range(50):
                cells, _ = merged_cells(rng.normal(20, 40, 12), 10.0, ordered)
                assert sorted(cell for each in cells for cell in each) == list(range(12))


class TestIndex:
    def test_without_noise_it_is_the_index_of_the_metrics(self):
        then, now = (3000, 4000, 2000, 1000), (2500, 4200, 2100, 1200)
        found = stability(exact(*then), exact(*now), ordered=4)
        assert found.psi == pytest.approx(metrics.psi(then, now))
        assert found.verdict == "stable"

    def test_by_hand(self):
        found = stability(exact(5000, 5000), exact(8000, 2000), ordered=2)
        assert found.psi == pytest.approx(0.3 * math.log(1.6) - 0.3 * math.log(0.4))
        assert found.verdict == "moved"

    @pytest.mark.parametrize(
        ("moved", "verdict"), [(0.14, "stable"), (0.16, "look"), (0.23, "look"), (0.25, "moved")]
    )
    def test_thresholds(self, moved, verdict):
        """Two cells of one half of whom a share moves over: 0.081, 0.107, 0.229 and 0.275."""
        n = 10_000_000
        found = stability(exact(n / 2, n / 2), exact(n * (0.5 + moved), n * (0.5 - moved)), ordered=2)
        assert found.psi == pytest.approx(2 * moved * math.atanh(2 * moved))
        assert found.verdict == verdict
        assert (found.psi >= LOOK, found.psi >= MOVED) == (verdict != "stable", verdict == "moved")

    def test_what_noise_and_chance_add_is_taken_off(self):
        """Mean over 2,000 draws of an unchanged population; standard error of the mean about 2e-5."""
        rng = np.random.default_rng(2)
        shares, raw, net = np.full(8, 1 / 8), [], []
        for _ in range(2000):
            found = stability(drawn(rng, shares, 30_000, 65), drawn(rng, shares, 10_000, 40), ordered=8)
            raw.append(found.psi)
            net.append(found.corrected)
        # Cut off at 0, the corrected index of an unchanged population is about half its own spread.
        assert np.mean(raw) > 0.001
        assert np.mean(net) < 0.3 * np.mean(raw)
        assert 0.3 < np.mean(np.array(net) == 0) < 0.7

    def test_the_standard_error_is_that_of_repeated_draws(self):
        rng = np.random.default_rng(3)
        then, now = np.array([0.3, 0.3, 0.2, 0.2]), np.array([0.2, 0.25, 0.25, 0.3])
        found = [
            stability(drawn(rng, then, 20_000, 65), drawn(rng, now, 10_000, 100), ordered=4)
            for _ in range(1000)
        ]
        spread = np.std([each.corrected for each in found])
        assert np.mean([each.std_error for each in found]) == pytest.approx(spread, rel=0.15)

    def test_a_share_that_was_nothing_and_is_not_now_is_drift(self):
        """Nobody was missing at training; a third is now."""
        then = Histogram(counts=np.array([5000.0, 5000, 12]), noise_std=65)
        assert stability(then, exact(2000, 2000, 2000), ordered=2).verdict == "moved"

    def test_people_who_move_to_where_nobody_was_are_drift(self):
        then = Histogram(counts=np.array([9000.0, 40, -30, 50]), noise_std=65)
        found = stability(then, exact(3000, 0, 0, 3000), ordered=4)
        assert found.verdict == "moved"
        assert found.cells == ((0,), (1, 2, 3))

    def test_an_empty_rest_is_no_drift_whatever_its_noise(self):
        for noise in (-200.0, 0.0, 200.0):
            then = Histogram(counts=np.array([5000.0, 5000, noise]), noise_std=65)
            assert stability(then, exact(3000, 3000, 0), ordered=2).verdict == "stable"


class TestTooNoisy:
    @pytest.mark.parametrize(
        ("then", "now"),
        [
            (Histogram(counts=np.array([10.0, -20, 5]), noise_std=65), exact(100, 100, 100)),
            (exact(100, 100, 100), Histogram(counts=np.array([10.0, 90, 5]), noise_std=65)),
            (exact(0, 0, 0), exact(1, 1, 1)),
            (exact(1000, 1000, 1000), exact(0, 0, 0)),
        ],
        ids=["then is noise", "now is noise", "nobody then", "nobody now"],
    )
    def test_nothing_is_said_of_noise(self, then, now):
        found = stability(then, now, ordered=3)
        assert found == Stability(
            verdict="too noisy to say", psi=None, corrected=None, std_error=None, noise_limit=None,
            cells=found.cells, then=found.then, now=found.now,
        )  # fmt: skip
        assert found.cells == ()

    def test_a_small_index_says_nothing_where_noise_alone_reaches_the_threshold(self):
        rng = np.random.default_rng(4)
        shares = np.full(8, 1 / 8)
        found = [
            stability(drawn(rng, shares, 30_000, 100), drawn(rng, shares, 3000, 90), ordered=8)
            for _ in range(200)
        ]
        assert all(each.noise_limit > LOOK for each in found)
        assert {each.verdict for each in found} == {"too noisy to say"}

    def test_what_is_beyond_doubt_is_said_all_the_same(self):
        rng = np.random.default_rng(5)
        found = stability(
            drawn(rng, np.full(8, 1 / 8), 30_000, 100),
            drawn(rng, np.array([0.65, *[0.05] * 7]), 3000, 90),
            ordered=8,
        )
        assert found.noise_limit > LOOK
        assert (math.sqrt(found.psi) - math.sqrt(found.noise_limit)) ** 2 > MOVED
        assert found.verdict == "moved"

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_not_a_number_is_refused(self, bad):
        with pytest.raises(BadInput):
            Histogram(counts=np.array([1.0, bad]))
        with pytest.raises(BadInput):
            Histogram(counts=np.array([1.0]), noise_std=bad)

    def test_two_lengths_are_refused(self):
        with pytest.raises(BadInput, match="one length"):
            stability(exact(1, 2), exact(1, 2, 3), ordered=2)


SHAPES = {
    "even": (np.full(9, 1 / 9), 8),
    "skewed": (np.array([0.6, 0.2, 0.1, 0.05, 0.02, 0.01, 0.01, 0.005, 0.005]), 8),
    "levels": (np.array([0.6, 0.2, 0.1, 0.05, 0.02, 0.01, 0.01, 0.005, 0.005]), 0),
    "many levels": (geometric(40, 1e-4), 0),
}
SIZES = [(3000, 1000, 65, 0), (30_000, 3000, 65, 0), (9000, 300, 65, 0), (500, 500, 0, 0),
         (30_000, 10_000, 65, 65), (30_000, 10_000, 100, 200), (30_000, 30_000, 65, 400)]  # fmt: skip


class TestFalseAlarms:
    """What the module promises: fewer than 3 in 1,000 unchanged features are flagged."""

    @pytest.mark.parametrize("shape", SHAPES)
    def test_unchanged_features_are_not_flagged(self, shape):
        rng, (shares, ordered) = np.random.default_rng(6), SHAPES[shape]
        verdicts = Counter(
            stability(drawn(rng, shares, a, s), drawn(rng, shares, b, t), ordered=ordered).verdict
            for a, b, s, t in SIZES
            for _ in range(300)
        )
        assert sum(verdicts[each] for each in FLAGGED) <= 3 * 300 * len(SIZES) / 1000

    def test_control_noise_that_nobody_reckons_with_is_flagged(self):
        rng, (shares, ordered) = np.random.default_rng(7), SHAPES["levels"]
        flagged = 0
        for _ in range(100):
            then, now = drawn(rng, shares, 3000, 65), drawn(rng, shares, 1000, 65)
            then = exact(*np.maximum(then.counts, 0))
            flagged += stability(then, exact(*np.maximum(now.counts, 0)), ordered=ordered).verdict in FLAGGED
        assert flagged > 50


class TestPopulation:
    """A study at epsilon 1 with the noise that its run has."""

    def test_the_same_population_is_stable_and_a_shifted_one_is_not(self, tmp_path):
        bundle = read_bundle(write_card(tmp_path / "card.bundle", trained=people(6000, seed=1)[0]))
        assert bundle.study.privacy.epsilon == 1.0

        def looked_at(seed, **shift):
            columns = people(3000, seed, **shift)[0]
            now = counted(bundle.scorecard, bundle.scorecard.grid.encode(columns), SCORE_BINS)
            return drift_of(bundle, now, tuple(columns))

        same = looked_at(2)
        assert same["verdict"] == "stable"
        assert {each["verdict"] for each in (same["score"], *same["features"])} == {"stable"}
        for shift, moved in (
            ({"later": 2}, "late"),
            ({"missing": 0.4}, "amount"),
            ({"north": 0.9}, "region"),
        ):
            found = looked_at(3, **shift)
            assert [each["name"] for each in found["features"] if each["verdict"] == "moved"] == [moved]
        assert looked_at(4, later=2)["score"]["verdict"] in FLAGGED
        assert looked_at(4, later=2)["verdict"] == "moved"

    def test_in_150_runs_fewer_than_three_in_a_thousand_are_flagged(self, tmp_path):
        """Baseline and present drawn anew each time, 3,000 persons each: four comparisons a run."""
        card = read_card(tmp_path / "card.bundle").scorecard
        counts_std, scores_std = noise_of(card.study)
        rng, verdicts = np.random.default_rng(8), Counter()
        for seed in range(150):
            then, now = (
                counted(card, card.grid.encode(people(3000, 1000 * part + seed)[0]), SCORE_BINS)
                for part in (1, 2)
            )
            for index, each in enumerate(card.grid.features):
                own = then.term(card.grid, index).counts
                noisy = Histogram(counts=own + rng.normal(0, counts_std, len(own)), noise_std=counts_std)
                found = stability(noisy, now.term(card.grid, index), ordered=each.ordered)
                verdicts[found.verdict] += 1
            scores = Histogram(
                counts=then.scores + rng.normal(0, scores_std, SCORE_BINS), noise_std=scores_std
            )
            verdicts[stability(scores, now.score(), ordered=SCORE_BINS).verdict] += 1
        assert sum(verdicts[each] for each in FLAGGED) <= 1, verdicts
        assert verdicts["stable"] > 400, verdicts

    def test_score_bins_are_those_of_the_audit(self, tmp_path):
        card = read_card(tmp_path / "card.bundle").scorecard
        edges = AuditTally(study=card.study, grid=card.grid).edges()
        assert np.array_equal(score_edges(card.study.scale, SCORE_BINS), edges)
        named = score_bins(card.study.scale, SCORE_BINS)
        assert (len(named), named[0], named[-1]) == (SCORE_BINS, "350-380", "921-950")

    def test_a_feature_that_is_not_here_is_skipped_and_named(self, tmp_path):
        bundle = read_card(tmp_path / "card.bundle")
        columns = {name: values for name, values in people(3000)[0].items() if name != "late"}
        now = counted(bundle.scorecard, bundle.scorecard.grid.encode(columns), SCORE_BINS)
        found = drift_of(bundle, now, tuple(columns))
        assert [each["name"] for each in found["features"]] == ["amount", "region"]
        assert [(each["name"], each["why"]) for each in found["skipped"]] == [
            ("late", "its component is not here")
        ]
        assert "skipped: Late payments (payment_history)" in drift_in_words(found)

    @pytest.mark.parametrize(
        "baseline",
        [
            {},
            {"counts": [1.0], "scores": [1.0] * 20, "counts_noise_std": 1.0, "scores_noise_std": 1.0},
            {"counts": None, "scores": [1.0] * 20, "counts_noise_std": 1.0, "scores_noise_std": 1.0},
            {"counts": [1.0] * 28, "scores": ["x"], "counts_noise_std": 1.0, "scores_noise_std": 1.0},
            {"counts": [1.0] * 28, "scores": [1.0] * 20, "counts_noise_std": -1.0, "scores_noise_std": 1.0},
            {"counts": [1.0] * 28, "scores": [1.0] * 20},
        ],
    )
    def test_a_bundle_without_a_baseline_is_refused(self, tmp_path, baseline):
        bundle = read_bundle(write_card(tmp_path / "card.bundle", baseline=baseline))
        with pytest.raises(BadInput, match="baseline"):
            Baseline.of(bundle)

    def test_words_put_first_what_moved_most(self, tmp_path):
        bundle = read_card(tmp_path / "card.bundle")
        columns = people(3000, 5, later=2, missing=0.2)[0]
        now = counted(bundle.scorecard, bundle.scorecard.grid.encode(columns), SCORE_BINS)
        lines = drift_in_words(drift_of(bundle, now)).splitlines()
        assert [line[:6] for line in lines[1:5]] == ["score ", "Late p", "Amount", "Region"]
        assert any("6 or more" in line for line in lines)

    def test_a_population_keeps_its_noise_beside_its_counts(self):
        population = Population(counts=np.ones(28), scores=np.ones(20), scores_noise_std=2.0)
        assert population.score().noise_std == 2.0
