"""What scoring engineers complain about in other tools, each complaint one test."""

import re
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from toy_study import RUN, STUDY, SUMMED, TEXT, holder, records

from assay.client.holder import decline_code
from assay.models.additive import AdditiveClippedSum, ClippedCounts
from assay.models.audit import audit_of
from assay.models.bundle import read_bundle
from assay.models.encoding import Grid
from assay.models.explain import explain
from assay.models.scoring import score_file
from assay.models.study import parse_study
from assay.models.tally import AuditTally, ClippedTally, log_odds
from assay.privacy.errors import Refused
from assay.privacy.messages import MODEL_VERSION, Offer, Release
from assay.server.publish import publish
from assay.simulations.engine import federate, with_epsilon


@pytest.fixture(scope="module")
def trained():
    """A run over three holders at a large epsilon, through coordinator, holders and ledgers."""
    steps = []
    holders = {name: records(900, seed=seed) for seed, name in enumerate("abc")}
    done = federate(with_epsilon(SUMMED, 8.0), holders, report=steps.append)
    return done, steps


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    done, _ = trained
    path = tmp_path_factory.mktemp("complaints") / "toy.bundle"
    publish(path, study=done.study, trained=done.trained, identity=done.identity, created=time.time())
    return read_bundle(path)


def table_of(data):
    return pa.table(
        {name: pa.array(values.tolist(), from_pandas=True) for name, values in data.columns.items()}
    )


def test_missing_and_other_lie_in_the_same_cell_when_fitted_in_the_table_and_when_scored(bundle):
    card, grid = bundle.scorecard, bundle.scorecard.grid
    columns = {
        "INCOME": np.array([np.nan, 5.0]),
        "DELAY": np.array([np.nan, 2.0]),
        "BALANCE": np.array([np.nan, 0.0]),
        "HOUSE": np.array([None, "boat"], dtype=object),
    }
    encoded = grid.encode(columns)
    # Fitted: the gradient of a missing row touches exactly the "missing" cells of the table.
    fitted = AdditiveClippedSum(
        encoded.rows(slice(0, 1)), [1], size=grid.size, patterns=grid.patterns, l2_clip_norm=9.0
    )(np.zeros(grid.width))
    labels = [label for feature in grid.features for label in feature.labels]
    assert {labels[cell] for cell in np.flatnonzero(fitted[: grid.size])} == {"missing"}
    # Table and score: the points of those cells are the points that are scored.
    shown = {f["name"]: {c["value"]: c["points"] for c in f["cells"]} for f in card.to_json()["features"]}
    scores = card.score(encoded)
    assert scores.points[0].tolist() == [shown[feature.name]["missing"] for feature in grid.features]
    assert scores.points[1, 3] == shown["house"]["other"]
    told = explain(card, dict.fromkeys(columns))
    assert [f["points"] for f in told["features"]] == scores.points[0].tolist()


def test_points_agree_with_the_probability_and_with_the_model(bundle):
    card, data = bundle.scorecard, records(2000, seed=5)
    encoded = card.grid.encode(data.columns)
    scores = card.score(encoded)
    total = scores.base + scores.points.sum(axis=1)
    scale = bundle.study.scale
    logit = np.log(scores.probability / (1 - scores.probability))
    np.testing.assert_allclose(scale.offset - scale.factor * logit, total, atol=1e-6)
    exact = scale.offset - scale.factor * log_odds(bundle.theta, encoded, card.grid)
    assert np.abs(exact - total).max() <= len(card.grid.features) + 0.5


def test_a_saved_card_keeps_its_scale(trained, bundle):
    done, _ = trained
    assert bundle.study.scale == done.study.scale
    assert bundle.study.scale.pdo == 40
    odds = bundle.scorecard.probability_of(np.array([600, 640]))
    good = (1 - odds) / odds
    assert good[1] / good[0] == pytest.approx(2)  # 40 points double the odds, after saving too


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_one_row_is_scored_like_two(bundle, tmp_path, rows, kind):
    table = table_of(records(2, seed=3))
    both, some = tmp_path / f"both.{kind}", tmp_path / f"some.{kind}"
    for path, part in ((both, table), (some, table.slice(0, rows))):
        if kind == "csv":
            pa.csv.write_csv(part, path)
        else:
            pyarrow.parquet.write_table(part, path)
        score_file(bundle, path, path.with_suffix(".out.parquet"), purpose="consumer_credit")
    all_of_it = pyarrow.parquet.read_table(both.with_suffix(".out.parquet")).to_pylist()
    assert pyarrow.parquet.read_table(some.with_suffix(".out.parquet")).to_pylist() == all_of_it[:rows]


_SCORE = r"""
import re, sys
from pathlib import Path
from assay.models.bundle import read_bundle
from assay.models.scoring import score_file
bundle, source, target = (Path(name) for name in sys.argv[1:])
done = score_file(read_bundle(bundle), source, target, purpose="consumer_credit")
# Not ru_maxrss: it begins with what the process that forked this one had.
print(done.rows, re.search(r"VmHWM:\s+([0-9]+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
def test_many_rows_take_no_more_memory_than_few(trained, tmp_path):
    done, _ = trained
    path = tmp_path / "toy.bundle"
    publish(path, study=done.study, trained=done.trained, identity=done.identity, created=time.time())
    peaks = {}
    for rows in (150_000, 1_200_000):
        pyarrow.parquet.write_table(table_of(records(rows, seed=4)), tmp_path / "people.parquet")
        command = [
            sys.executable,
            "-c",
            _SCORE,
            str(path),
            str(tmp_path / "people.parquet"),
            str(tmp_path / "o.csv"),
        ]
        scored, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert int(scored) == rows
        peaks[rows] = int(peak)
    assert peaks[1_200_000] < 1.35 * peaks[150_000]


def test_no_feature_and_no_cell_is_dropped_even_where_nobody_is():
    grid = Grid.of(STUDY)
    holders = {name: records(300, seed=seed) for seed, name in enumerate("abc")}
    for each in holders.values():
        each.columns["DELAY"][:] = 1.0  # all in one cell of five
    card = federate(with_epsilon(SUMMED, 8.0), holders).trained.card
    shown = card.to_json()["features"]
    assert [f["name"] for f in shown] == [f.name for f in STUDY.features]
    assert [len(f["cells"]) for f in shown] == [f.cells for f in grid.features]


def test_explanations_add_up_for_everybody(bundle):
    data = records(200, seed=6)
    for row in range(200):
        told = explain(bundle.scorecard, {name: values[row] for name, values in data.columns.items()})
        points = sum(feature["points"] for feature in told["features"])
        assert told["base_points"] + points + told["capped"] == told["score"]


def test_a_small_group_is_named_and_never_looks_fair(bundle):
    data = records(1000, seed=7)
    few = np.where(np.arange(1000) < 30, 1, 0).astype(np.int64)  # 30 of one sex
    study = parse_study(
        TEXT.replace('SEX = ["f", "m"] }', 'SEX = ["f", "m"] }\ngate = { max_tpr_gap = 1.0 }')
    )
    card = replace(bundle.scorecard, study=study)
    tally, encoded = AuditTally(study=study, grid=card.grid), card.grid.encode(data.columns)
    exact = ClippedTally(tally, encoded, data.labels, None, {"SEX": few})(card.theta)
    audit = audit_of(tally, card, exact, 0.0)
    assert audit["fairness"]["too_small"] == ["SEX m: n too small"]
    assert audit["fairness"]["passed"] is False  # although no gap can be above 1
    groups = {group["group"]: group for group in audit["groups"][0]["groups"]}
    assert "approval_rate" not in groups["m"]
    assert groups["f"]["approval_rate"]["value"] is not None


def test_every_round_of_a_training_is_told(trained):
    done, steps = trained
    kinds = [step.kind for step in steps]
    assert kinds == ["offer", "counts", *["round"] * done.trained.rounds, "calibration", "audit"]
    spent = [step.epsilon for step in steps]
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(8.0, rel=1e-6)


def test_another_version_is_found_at_the_offer_before_anything_is_spent(tmp_path):
    one = holder(tmp_path)
    with pytest.raises(Refused, match="Install the same version of assay at both") as refused:
        one.answer(Offer(run=RUN, study=TEXT, version=MODEL_VERSION + 1))
    assert decline_code(refused.value) == "version"
    assert one._ledger.open_runs() == ()


def test_what_a_holder_sends_holds_nothing_exact_about_its_own_lift_or_bad_rate(tmp_path, monkeypatch):
    """Holders compete: their counts and rates are secrets. Every number that leaves carries noise."""
    data = records(600)
    exact = ClippedCounts(
        AdditiveClippedSum(
            STUDY_GRID.encode(data.columns),
            data.labels,
            size=STUDY_GRID.size,
            patterns=STUDY_GRID.patterns,
            l2_clip_norm=STUDY_GRID.sensitivity,
        ),
        l2_clip_norm=STUDY_GRID.sensitivity,
    )(np.zeros(STUDY_GRID.width))
    sent = released(holder(tmp_path, data=data))
    apart = np.abs(sent.values * sent.unit - exact)
    # Noise of standard deviation s is below s/1000 less often than one time in 1000, per value.
    assert np.median(apart) > 1.0
    assert not re.search(r"rows|bad_rate|auroc", " ".join(vars(sent)))


STUDY_GRID = Grid.of(STUDY)


def released(one) -> Release:
    from assay.privacy.messages import CountsRequest

    one.answer(Offer(run=RUN, study=TEXT))
    return one.answer(CountsRequest(run=RUN))
