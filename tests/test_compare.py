"""Champion and challenger: every number against an independent one; what may not be compared is refused."""

import math

import numpy as np
import pytest
from federation_support import LOCAL, assay, assay_json
from monitor_support import card_of, people, write_card, write_csv

from assay.models import metrics
from assay.models.bundle import read_bundle
from assay.models.compare import Judged, compare, difference, score_labelled
from assay.privacy.errors import BadInput


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    root = tmp_path_factory.mktemp("cards")
    return write_card(root / "old.bundle"), write_card(root / "new.bundle", late=0.1)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    columns, labels = people(3000, seed=11)
    return write_csv(tmp_path_factory.mktemp("data") / "outcomes.csv", columns, labels)


def scored(rows, seed, **slopes):
    columns, labels = people(rows, seed)
    return Judged.of(card_of(**slopes)[0], columns), labels


def two_scores(rng, rows, *, better=0.0):
    labels = (rng.random(rows) < 0.3).astype(float)
    shared = rng.normal(0, 1, rows) + labels
    first, second = shared + rng.normal(0, 1, rows), shared + rng.normal(0, 1, rows) + better * labels
    return np.round(first, 1), np.round(second, 1), labels  # with ties


class TestDifference:
    def test_it_is_the_difference_of_the_areas(self):
        first, second, labels = two_scores(np.random.default_rng(1), 500)
        found = difference(first, second, labels)
        assert found["value"] == pytest.approx(metrics.auroc(labels, second) - metrics.auroc(labels, first))

    def test_its_standard_error_is_delongs(self):
        """By the definition: structural components of every pair, ties counting half."""
        first, second, labels = two_scores(np.random.default_rng(2), 300)
        bad, good = labels == 1, labels == 0
        components = []
        for scores in (first, second):
            pairs = np.sign(scores[bad][:, None] - scores[good][None, :]) / 2 + 0.5
            components.append((pairs.mean(axis=1), pairs.mean(axis=0)))
        s10, s01 = (np.cov(components[0][side], components[1][side]) for side in (0, 1))
        variance = sum(
            (s[0, 0] + s[1, 1] - 2 * s[0, 1]) / n for s, n in ((s10, bad.sum()), (s01, good.sum()))
        )
        assert difference(first, second, labels)["std_error"] == pytest.approx(math.sqrt(variance), rel=0.01)

    def test_it_agrees_with_a_paired_bootstrap(self):
        rng = np.random.default_rng(3)
        first, second, labels = two_scores(rng, 400)
        drawn = []
        for _ in range(400):
            rows = rng.integers(0, 400, 400)
            drawn.append(metrics.auroc(labels[rows], second[rows]) - metrics.auroc(labels[rows], first[rows]))
        assert difference(first, second, labels)["std_error"] == pytest.approx(np.std(drawn), rel=0.15)

    def test_rows_of_one_person_are_no_new_evidence(self):
        """Every row three times over says no more than once; taken as three persons it would seem to."""
        first, second, labels = two_scores(np.random.default_rng(4), 400)
        once = difference(first, second, labels)["std_error"]
        many = [np.repeat(each, 3) for each in (first, second, labels)]
        assert difference(*many, np.repeat(np.arange(400), 3))["std_error"] == pytest.approx(once)
        assert difference(*many)["std_error"] == pytest.approx(once / math.sqrt(3), rel=0.01)

    def test_its_interval_holds_the_truth_nineteen_times_in_twenty(self):
        """False alarm of this test: below 1e-3 (binomial, 400 draws)."""
        rng = np.random.default_rng(5)
        held = sum(not difference(*two_scores(rng, 300))["differs"] for _ in range(400))
        assert 365 <= held <= 395

    def test_a_better_challenger_is_seen(self):
        found = difference(*two_scores(np.random.default_rng(6), 2000, better=0.8))
        assert found["differs"]
        assert found["low"] > 0

    def test_a_model_against_itself_is_exactly_equal(self):
        first, _, labels = two_scores(np.random.default_rng(7), 200)
        found = difference(first, first, labels)
        assert (found["value"], found["std_error"], found["differs"]) == (0.0, 0.0, False)


class TestCompare:
    def test_each_side_has_the_numbers_of_the_metrics(self):
        (one, labels), (other, _) = scored(2000, 1), scored(2000, 1, late=0.1)
        result = compare(one, other, labels)
        for name, judged in (("champion", one), ("challenger", other)):
            side = result[name]
            assert side["auroc"] == metrics.auroc(labels, judged.probability)
            assert side["gini"] == metrics.gini(labels, judged.probability)
            assert side["ks"] == metrics.ks(labels, judged.probability)
            assert side["brier"] == metrics.brier(labels, judged.probability)
            assert side["log_loss"] == metrics.log_loss(labels, judged.probability)
            expected = metrics.expected_calibration_error(labels, judged.probability)
            assert side["calibration_error"] == expected
        assert result["rows"] == 2000
        assert result["bad_rate"] == labels.mean()

    def test_bands_and_swaps_hold_every_row_once(self):
        (one, labels), (other, _) = scored(2000, 2), scored(2000, 2, late=0.1, amount=0.5)
        result = compare(one, other, labels)
        for side in ("champion", "challenger"):
            assert sum(band["rows"] for band in result[side]["bands"]) == 2000
        swaps = result["swaps"]
        assert sum(part["rows"] for part in swaps.values()) == 2000
        bad = sum(part["rows"] * (part["bad_rate"] or 0) for part in swaps.values())
        assert bad == pytest.approx(labels.sum())
        approved = swaps["both"]["rows"] + swaps["only_champion"]["rows"]
        assert result["champion"]["cut_off"]["approval_rate"] == approved / 2000

    def test_swap_sets_are_those_whom_only_one_approves(self):
        (one, labels), (other, _) = scored(500, 3), scored(500, 3, late=0.1, amount=0.5)
        only = (one.score >= 600) & (other.score < 600)
        assert only.any()
        part = compare(one, other, labels)["swaps"]["only_champion"]
        assert part == {"rows": int(only.sum()), "bad_rate": labels[only].mean()}

    def test_one_class_only_is_refused(self):
        (one, labels) = scored(100, 4)
        with pytest.raises(BadInput, match="both 0 and 1"):
            compare(one, one, np.zeros_like(labels))

    def test_other_rows_are_refused(self):
        with pytest.raises(BadInput, match="same rows"):
            compare(scored(100, 5)[0], scored(101, 5)[0], np.ones(100))


class TestCommand:
    def test_text_and_json_say_the_same(self, cards, labelled):
        found = assay_json("model", "compare", *cards, "--input", labelled)
        text = assay("model", "compare", *cards, "--input", labelled)
        assert f"{found['champion']['auroc']:.4f}" in text
        assert "the champion ranks better" in text
        assert "nothing of it is sent" in text
        assert found["auroc_difference"]["high"] < 0

    def test_a_large_file_read_in_pieces_gives_what_one_piece_gives(self, cards, labelled, monkeypatch):
        import pyarrow.csv
        import pyarrow.parquet

        from assay.models import tabular

        whole = score_labelled(tuple(map(read_bundle, cards)), labelled)
        small = labelled.with_suffix(".parquet")
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(labelled), small)
        monkeypatch.setattr(tabular, "_BATCH_ROWS", 700)
        pieces = score_labelled(tuple(map(read_bundle, cards)), small)
        for a, b in zip(whole[:2], pieces[:2], strict=True):
            assert np.array_equal(a.score, b.score)
            assert np.array_equal(a.probability, b.probability)
        assert np.array_equal(whole[2], pieces[2])

    @pytest.mark.parametrize(
        ("purpose", "contexts", "code"),
        [("bnpl_limit", "checkout", "D03"), ("fraud_detection", "payment", "D08")],
    )
    def test_another_purpose_is_refused(self, tmp_path, cards, labelled, purpose, contexts, code):
        text = LOCAL.replace("consumer_credit", purpose).replace(
            'contexts = ["card"]', f'contexts = ["{contexts}"]'
        )
        other = write_card(tmp_path / "other.bundle", text=text)
        error = assay("model", "compare", cards[0], other, "--input", labelled, code=3)
        assert f"({code})" in error

    def test_another_outcome_is_refused(self, tmp_path, cards, labelled):
        other = write_card(tmp_path / "other.bundle", text=LOCAL.replace('column = "bad"', 'column = "lost"'))
        error = assay("model", "compare", cards[0], other, "--input", labelled, code=3)
        assert "(D03)" in error
        assert "'lost'" in error

    @pytest.mark.parametrize(
        ("changed", "words"),
        [({"created": 1.0, "expires": 2.0}, "expired"), ({"held": ("fairness: n too small",)}, "held back")],
    )
    def test_a_bundle_that_must_not_be_used_is_refused(self, tmp_path, cards, labelled, changed, words):
        other = write_card(tmp_path / "other.bundle", **changed)
        for pair in ((cards[0], other), (other, cards[0])):
            assert words in assay("model", "compare", *pair, "--input", labelled, code=3)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("amount,late,region\n1,2,north\n", "'bad'"),
            ("amount,late,region,bad\n", "at least one record"),
            ("bad,other\n1,2\n0,1\n", "at least one of study"),
            ("amount,late,region,bad\n1,2,north,1\n1,2,north,1\n", "both 0 and 1"),
            ("amount,late,region,bad\n1,2,north,2\n", "0 or 1"),
        ],
        ids=["no outcome", "no rows", "no features", "one class", "no label"],
    )
    def test_bad_files_are_refused_in_one_line(self, tmp_path, cards, content, words):
        path = tmp_path / "records.csv"
        path.write_text(content)
        error = assay("model", "compare", *cards, "--input", path, code=2)
        assert words in error
        assert len(error.splitlines()) == 1
