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
    return Scorecard.of(study, grid, theta, rng.uniform(-5, 100, grid.width)), theta


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
        card = Scorecard.of(STUDY, grid, theta, counts)
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
    card = Scorecard.of(STUDY, grid, np.zeros(grid.width), np.ones(grid.width))
    assert (card.score(ENCODED).reasons == np.arange(4)).all()


def test_a_study_with_two_features_has_two_reasons():
    study = study_of(FEATURES[:2])
    card, _ = card_of(study)
    assert card.score(card.grid.encode(COLUMNS)).reasons.shape == (3000, 2)


def test_the_average_is_that_of_the_noisy_counts():
    grid = CARD.grid
    counts = np.zeros(grid.width)
    counts[grid.offsets[:-1] + 1] = 10.0
    counts[grid.offsets[:-1]] = -1000.0
    card = Scorecard.of(STUDY, grid, THETA, counts)
    # Everybody lies in the second cell, a negative count counts as none: that cell is the average.
    assert (card.points[grid.offsets[:-1] + 1] == 0).all()
    assert np.abs(card.means).max() == 0


def test_counts_that_are_all_noise_still_give_a_card():
    grid = CARD.grid
    card = Scorecard.of(STUDY, grid, THETA, np.full(grid.width, -1.0))
    assert np.isfinite(card.means).all()


def test_bands_follow_the_score_and_meet_at_their_cuts():
    cuts = {700: "very low risk", 699: "low risk", 650: "low risk", 649: "medium risk", 600: "medium risk",
            599: "high risk", 550: "high risk", 549: "very high risk"}  # fmt: skip
    study = study_of(FEATURES[:1])
    grid = Grid.of(study)
    zero = Scorecard.of(study, grid, np.zeros(grid.width), np.ones(grid.width))
    for score, words in cuts.items():
        scored = replace(zero, bases=np.array([score])).score(grid.encode({"AMOUNT": np.array([1.0])}))
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
        lambda v: v["bases"].pop(),
        lambda v: v["bases"][0].update(points=0.5),
        lambda v: v["bases"][0].update(points=10**12),
        lambda v: v["bases"][0].update(components=["identity"]),
        lambda v: v["features"][0].update(near_points=1.0),
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
        Scorecard.of(STUDY, CARD.grid, theta, np.ones(CARD.grid.width))


def test_counts_that_are_not_finite_are_refused():
    counts = np.ones(CARD.grid.width)
    counts[0] = np.nan
    with pytest.raises(BadInput, match="counts"):
        Scorecard.of(STUDY, CARD.grid, THETA, counts)


def test_arrays_of_another_grid_are_refused():
    with pytest.raises(BadInput):
        Scorecard.of(STUDY, CARD.grid, THETA[:-1], np.ones(CARD.grid.width))
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


# --- components that live in different places


SPLIT = study_of(
    (
        feature("amount", domain=(0, 700), changeable=True),
        feature("status", kind="integer", domain=(-2, 8), component="payment_history"),
        feature("kind", kind="categorical", levels=("a", "b"), component="identity", changeable=True),
        feature("income", domain=(0, 1000), transform="log", component="identity"),
        feature("other", kind="integer", domain=(0, 3), component="third_party"),
    )
)


def split_card(seed=0):
    rng = np.random.default_rng(seed)
    grid = Grid.of(SPLIT)
    theta = np.append(rng.normal(size=grid.size) * 0.3, rng.normal(-3, 0.5, grid.patterns))
    return Scorecard.of(SPLIT, grid, theta, rng.uniform(1, 100, grid.width)), theta


def test_absent_components_score_no_points_and_their_pattern_has_its_base():
    card, _ = split_card()
    known = {"AMOUNT": COLUMNS["AMOUNT"], "STATUS": COLUMNS["STATUS"]}
    encoded = card.grid.encode(known)
    scores, pattern = card.score(encoded), card.grid.pattern_of(known)
    assert (scores.points[:, 2:] == 0).all()
    assert (scores.base == card.bases[pattern - 1]).all()
    assert (scores.base + scores.points.sum(axis=1) + scores.capped == scores.score).all()
    # No reason is ever given that was not scored.
    assert set(np.unique(scores.reasons)) <= {-1, 0, 1}
    assert (scores.reasons[:, :2] >= 0).all()


def test_the_card_as_a_model_is_the_model_to_half_a_point():
    card, theta = split_card()
    cells = slice(0, card.grid.size)
    there = np.arange(1, card.grid.patterns + 1)[:, None] >> card.grid.members & 1
    shift = (card.theta - theta)[cells]
    # A feature may be moved as a whole: its intercepts take it up.
    for j, (low, high) in enumerate(zip(card.grid.offsets[:-1], card.grid.offsets[1:], strict=True)):
        moved = shift[low:high] - shift[low]
        assert np.abs(moved).max() <= 1 / SPLIT.scale.factor
        assert there[:, j].any()
    encoded = card.grid.encode(COLUMNS)
    logit = card.theta[encoded.low] * (1 - encoded.upper)
    logit += np.append(card.theta, 0)[encoded.low + 1] * encoded.upper
    exact = logit.sum(axis=1) + card.theta[card.grid.size + encoded.pattern - 1]
    scores = card.score(encoded)
    total = scores.base + scores.points.sum(axis=1)
    points = SPLIT.scale.offset - SPLIT.scale.factor * exact
    assert np.abs(points - total).max() <= 0.5 * 2 + 1e-6  # two features lie between knots


def test_an_explanation_says_what_is_not_known_and_adds_up():
    card, _ = split_card()
    told = explain(card, {"AMOUNT": 100.0, "KIND": "b"})
    assert told["missing_components"] == ["payment_history", "third_party"]
    values = {f["name"]: (f["value"], f["points"]) for f in told["features"]}
    assert values["status"] == values["other"] == ("not known", 0)
    assert values["income"][0] == "missing"
    assert told["base_points"] + sum(f["points"] for f in told["features"]) + told["capped"] == told["score"]
    assert {r["feature"] for r in told["reasons"]} == {"amount", "kind", "income"}
    assert "counted neither for nor against: payment history, third party" in explanation_in_words(told)


def test_reasons_near_the_cut_off_need_their_own_baseline():
    record = {"AMOUNT": 100.0, "STATUS": 3, "KIND": "b", "INCOME": 10.0, "OTHER": 1}
    assert explain(CARD, record)["reasons_near_cut_off"] is None
    near = replace(CARD, near=np.array([500.0, -500.0, 100.0, 0.0, 200.0]))
    told = explain(near, record)["reasons_near_cut_off"]
    assert [reason["feature"] for reason in told] == ["amount", "other", "kind", "income"]
    assert told[0]["words"].endswith("fewer than those who just pass")
    assert json.loads(json.dumps(near.to_json())) == near.to_json()
    again = Scorecard.from_json(near.to_json(), STUDY)
    assert (again.near == near.near).all()


def test_a_record_without_a_column_of_the_study_is_refused():
    with pytest.raises(BadInput, match="columns"):
        explain(CARD, {"X": 1})


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 1024))
def test_points_between_two_knots_follow_the_rule_that_exports_use(low, high, step):
    study = study_of((feature("amount", domain=(0, 7)),))
    grid = Grid.of(study)
    points = np.zeros(grid.size, dtype=np.int64)
    points[2:4] = low, high
    card = Scorecard(study=study, grid=grid, points=points, bases=np.zeros(1, int), means=np.zeros(1))
    value = np.array([2 + step / 1024])
    wanted = (low * (1024 - step) + high * step + 512) // 1024
    assert card.score(grid.encode({"AMOUNT": value})).points[0, 0] == wanted
