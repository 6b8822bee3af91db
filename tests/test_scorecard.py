"""Points add up, agree with the probability, and are the same for one row as for a million."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.models.encoding import Grid
from assay.models.explain import explain, explanation_in_words, reason_words
from assay.models.schema import Feature, Outcome, Privacy, Scale, Study
from assay.models.scorecard import BANDS, Scorecard
from assay.privacy.errors import BadData, BadInput


def feature(name, **given_):
    made = {"column": name.upper(), "component": "spending", "kind": "numeric", "label": name.capitalize()}
    return Feature(**{"name": name, **made, **given_})


FEATURES = (
    feature("amount", domain=(0, 700), changeable=True),
    feature("status", kind="integer", domain=(-2, 8), changeable=True),
    feature("kind", kind="categorical", levels=("a", "b"), changeable=True),
    feature("income", domain=(0, 1000), transform="log"),
    feature("other", kind="integer", domain=(0, 3)),
)


def study_of(features=FEATURES, **given_):
    return Study(
        name="s",
        purpose="consumer_credit",
        contexts=("here",),
        outcome=Outcome(column="y", meaning="bad"),
        features=features,
        privacy=Privacy(epsilon=1.0),
        text=f"made in a test {len(features)} {given_}",
        **given_,
    )


STUDY = study_of()


def card_of(study=STUDY, seed=0, spread=0.3, bias=-3.0):
    rng = np.random.default_rng(seed)
    grid = Grid.of(study)
    theta = np.append(rng.normal(size=grid.size) * spread, bias)
    return Scorecard.of(study, grid, theta, rng.uniform(-5, 100, grid.size)), theta


def random_columns(rows, seed=1):
    rng = np.random.default_rng(seed)
    columns = {
        "AMOUNT": rng.uniform(-100, 900, rows),
        "STATUS": rng.integers(-4, 10, rows).astype(float),
        "KIND": rng.choice(np.array(["a", "b", "z", None], dtype=object), rows),
        "INCOME": rng.uniform(0, 2000, rows),
        "OTHER": rng.integers(0, 4, rows).astype(float),
    }
    for column in columns.values():
        column[rng.random(rows) < 0.1] = None if column.dtype == object else np.nan
    return columns


CARD, THETA = card_of()
COLUMNS = random_columns(3000)
ENCODED = CARD.grid.encode(COLUMNS)
SCORES = CARD.score(ENCODED)


def test_base_points_and_capped_add_up_to_the_score():
    total = CARD.base_points + SCORES.points.sum(axis=1)
    assert (total + SCORES.capped == SCORES.score).all()
    scale = STUDY.scale
    assert ((SCORES.score >= scale.low) & (SCORES.score <= scale.high)).all()
    inside = (total >= scale.low) & (total <= scale.high)
    assert (SCORES.capped[inside] == 0).all()


@pytest.mark.parametrize(("bias", "end"), [(-40.0, 950), (40.0, 350)])
def test_what_clipping_removes_is_its_own_line(bias, end):
    card, _ = card_of(bias=bias)
    scores = card.score(ENCODED)
    assert (scores.score == end).all()
    assert (scores.capped != 0).all()
    assert (card.base_points + scores.points.sum(axis=1) + scores.capped == end).all()
    assert (scores.probability < 1e-9).all() if bias < 0 else (scores.probability > 1 - 1e-9).all()


def test_the_probability_is_that_of_the_points_before_clipping():
    scale = STUDY.scale
    for total, odds in ((650, 30.0), (690, 60.0), (610, 15.0)):
        chance = CARD.probability_of(np.array([total]))[0]
        assert chance == pytest.approx(1 / (1 + odds))
    assert scale.offset == pytest.approx(650 - 40 * math.log2(30))


def test_points_agree_with_the_model_to_half_a_point_per_feature():
    logits = np.full(len(ENCODED), THETA[-1])
    following = np.minimum(ENCODED.low + 1, CARD.grid.size - 1)
    logits += (THETA[ENCODED.low] * (1 - ENCODED.upper) + THETA[following] * ENCODED.upper).sum(axis=1)
    exact = STUDY.scale.offset - STUDY.scale.factor * logits
    total = CARD.base_points + SCORES.points.sum(axis=1)
    # Each cell is rounded, then the point between two cells; the base is rounded once.
    assert np.abs(total - exact).max() <= len(FEATURES) + 0.5


def test_rounding_does_not_move_the_mean_score_of_the_population():
    grid = CARD.grid
    counts = np.zeros(grid.size + 1)
    np.add.at(counts, ENCODED.low, 1 - ENCODED.upper)
    np.add.at(counts, ENCODED.low + 1, ENCODED.upper)
    for seed in range(5):
        _, theta = card_of(seed=seed)
        card = Scorecard.of(STUDY, grid, theta, counts[:-1])
        total = card.base_points + card.score(ENCODED).points.sum(axis=1)
        cells = counts[:-1] @ theta[:-1] / len(ENCODED)
        assert total.mean() == pytest.approx(
            STUDY.scale.offset - STUDY.scale.factor * (cells + theta[-1]), abs=0.6
        )


def test_a_lower_chance_of_bad_never_has_a_lower_total():
    total = CARD.base_points + SCORES.points.sum(axis=1)
    order = np.argsort(total)
    assert (np.diff(SCORES.probability[order]) <= 0).all()


def test_one_row_scores_as_it_does_among_many():
    for row in (0, 17, 2999):
        alone = CARD.score(ENCODED.rows(slice(row, row + 1)))
        assert alone.score[0] == SCORES.score[row]
        assert alone.probability[0] == SCORES.probability[row]
        assert (alone.points[0] == SCORES.points[row]).all()
        assert (alone.reasons[0] == SCORES.reasons[row]).all()


def test_many_rows_score_as_few_do():
    rows = np.tile(np.arange(3000), 12)
    many = CARD.score(ENCODED.rows(rows))
    assert (many.score == SCORES.score[rows]).all()
    assert (many.reasons == SCORES.reasons[rows]).all()


def test_reasons_are_the_features_furthest_below_the_average_in_order():
    for row in range(0, 3000, 100):
        lost = SCORES.points[row] - CARD.means
        assert (np.diff(lost[SCORES.reasons[row]]) >= -2 / 1024).all()
        rest = np.setdiff1d(np.arange(len(FEATURES)), SCORES.reasons[row])
        assert lost[rest].min() >= lost[SCORES.reasons[row]].max() - 2 / 1024
        assert len(set(SCORES.reasons[row].tolist())) == 4


def test_ties_between_reasons_go_in_study_order():
    grid = Grid.of(STUDY)
    card = Scorecard.of(STUDY, grid, np.zeros(grid.size + 1), np.ones(grid.size))
    assert (card.score(ENCODED).reasons == np.arange(4)).all()


def test_a_study_with_two_features_has_two_reasons():
    study = study_of(FEATURES[:2])
    card, _ = card_of(study)
    assert card.score(card.grid.encode(COLUMNS)).reasons.shape == (3000, 2)


def test_the_average_is_that_of_the_noisy_counts():
    grid = CARD.grid
    counts = np.zeros(grid.size)
    counts[grid.offsets[:-1] + 1] = 10.0
    counts[grid.offsets[:-1]] = -1000.0
    card = Scorecard.of(STUDY, grid, THETA, counts)
    # Everybody lies in the second cell, a negative count counts as none: that cell is the average.
    assert (card.points[grid.offsets[:-1] + 1] == 0).all()
    assert np.abs(card.means).max() == 0


def test_counts_that_are_all_noise_still_give_a_card():
    grid = CARD.grid
    card = Scorecard.of(STUDY, grid, THETA, np.full(grid.size, -1.0))
    assert np.isfinite(card.means).all()


def test_bands_follow_the_score_and_meet_at_their_cuts():
    cuts = {700: "very low risk", 699: "low risk", 650: "low risk", 649: "medium risk", 600: "medium risk",
            599: "high risk", 550: "high risk", 549: "very high risk"}  # fmt: skip
    study = study_of(FEATURES[:1])
    grid = Grid.of(study)
    zero = Scorecard.of(study, grid, np.zeros(grid.size + 1), np.ones(grid.size))
    for score, words in cuts.items():
        scored = replace(zero, base_points=score).score(grid.encode({"AMOUNT": np.array([1.0])}))
        assert BANDS[scored.band[0]][0] == words


def test_a_saved_card_scores_like_the_one_that_was_saved():
    text = json.dumps(CARD.to_json())
    again = Scorecard.from_json(json.loads(text), STUDY)
    scores = again.score(ENCODED)
    assert (scores.score == SCORES.score).all()
    assert (scores.probability == SCORES.probability).all()
    assert (scores.reasons == SCORES.reasons).all()
    assert json.dumps(again.to_json()) == text


def broken(change):
    value = json.loads(json.dumps(CARD.to_json()))
    change(value)
    return value


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(version=2),
        lambda v: v.update(study="0" * 64),
        lambda v: v.update(knots=5),
        lambda v: v.update(knots="8"),
        lambda v: v.pop("base_points"),
        lambda v: v.update(base_points=1.5),
        lambda v: v.update(base_points=10**12),
        lambda v: v["features"].pop(),
        lambda v: v["features"].reverse(),
        lambda v: v["features"][0]["cells"].pop(),
        lambda v: v["features"][0]["cells"][0].update(points=0.5),
        lambda v: v["features"][0]["cells"][0].update(points=True),
        lambda v: v["features"][0]["cells"][0].update(points=10**9),
        lambda v: v["features"][0].update(mean_points=float("nan")),
        lambda v: v["features"][0].update(mean_points="1"),
        lambda v: v.update(features=3),
    ],
)
def test_what_is_no_card_of_this_study_is_refused(change):
    with pytest.raises(BadInput):
        Scorecard.from_json(broken(change), STUDY)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_a_model_without_finite_points_is_refused(value):
    theta = THETA.copy()
    theta[2] = value
    with pytest.raises(BadInput, match="theta"):
        Scorecard.of(STUDY, CARD.grid, theta, np.ones(CARD.grid.size))


def test_counts_that_are_not_finite_are_refused():
    counts = np.ones(CARD.grid.size)
    counts[0] = np.nan
    with pytest.raises(BadInput, match="counts"):
        Scorecard.of(STUDY, CARD.grid, THETA, counts)


def test_arrays_of_another_grid_are_refused():
    with pytest.raises(BadInput):
        Scorecard.of(STUDY, CARD.grid, THETA[:-1], np.ones(CARD.grid.size))
    with pytest.raises(BadInput):
        CARD.score(Grid.of(study_of(FEATURES[:2])).encode(COLUMNS))


def test_a_scale_of_other_units_keeps_its_anchor():
    study = study_of(scale=Scale(low=0, high=1000, anchor_score=500, anchor_odds=1, pdo=20))
    card, _ = card_of(study)
    assert card.probability_of(np.array([500, 520]))[1] == pytest.approx(1 / 3)
    again = Scorecard.from_json(card.to_json(), study)
    assert again.probability_of(np.array([520]))[0] == pytest.approx(1 / 3)


@given(
    st.floats(-1e6, 1e6), st.one_of(st.none(), st.integers(-10, 20)), st.sampled_from(["a", "b", "q", None])
)
def test_an_explanation_adds_up_and_is_the_score_that_is_given(amount, status, kind):
    record = {"AMOUNT": amount, "STATUS": status, "KIND": kind}
    explained = explain(CARD, record)
    total = explained["base_points"] + sum(f["points"] for f in explained["features"])
    assert total + explained["capped"] == explained["score"]
    words = explanation_in_words(explained)
    assert f"Score {explained['score']}" in words
    assert all(f["label"] in words for f in explained["features"])
    assert len(explained["reasons"]) == 4


@given(st.floats(-50, 800), st.integers(-4, 10), st.sampled_from(["a", "b", "q", None]))
def test_a_what_if_keeps_its_word(amount, status, kind):
    record = {"AMOUNT": amount, "STATUS": status, "KIND": kind, "INCOME": 10.0, "OTHER": 1}
    before = explain(CARD, record)
    names = {f.name: f.column for f in FEATURES}
    for change in before["what_if"]:
        assert change["feature"] in ("amount", "status", "kind")
        value = change["value"].split(" or ")[0].replace(",", "")
        changed = record | {names[change["feature"]]: value if change["feature"] == "kind" else float(value)}
        after = explain(CARD, changed)
        assert after["score"] == pytest.approx(change["score"], abs=1)
        assert change["points_gained"] > 0


def test_a_what_if_is_the_best_change_there_is():
    record = {"AMOUNT": 100.0, "STATUS": 8, "KIND": "b", "INCOME": 10.0, "OTHER": 1}
    found = {change["feature"]: change["score"] for change in explain(CARD, record)["what_if"]}
    best = max(explain(CARD, record | {"STATUS": value})["score"] for value in range(-2, 9))
    assert found.get("status", explain(CARD, record)["score"]) == best


def test_values_are_told_in_words():
    told = {
        f["name"]: f["value"]
        for f in explain(CARD, {"AMOUNT": 1234.5, "STATUS": None, "KIND": "z", "INCOME": 20})["features"]
    }
    assert told == {
        "amount": "1,234.5 (counted as 700)",
        "status": "missing",
        "kind": "z (counted as other)",
        "income": "20",
        "other": "missing",
    }


def test_reason_words_agree_with_the_sign():
    assert reason_words("Bill", -3) == "Bill: 3 points fewer than average"
    assert reason_words("Bill", 1) == "Bill: 1 point more than average"
    assert reason_words("Bill", 0) == "Bill: as many points as average"


def test_a_value_that_is_not_what_the_study_says_is_refused():
    with pytest.raises(BadData):
        explain(CARD, {"AMOUNT": math.inf})
    with pytest.raises(BadData):
        explain(CARD, {"STATUS": 0.5})
