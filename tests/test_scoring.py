"""Scoring a file: one row out per row in, exact to the point, and nothing half written."""

import gzip
import json
import math
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from assay.models.bundle import read_bundle, write_bundle
from assay.models.cli import model_app
from assay.models.encoding import Grid
from assay.models.explain import explain
from assay.models.label import privacy_label
from assay.models.scorecard import BANDS, Scorecard
from assay.models.scoring import read_record, score_file
from assay.models.study import parse_study
from assay.privacy.errors import BadData, BadInput, Refused
from assay.privacy.keys import Identity

STUDY = parse_study("""
[study]
name = "card"
purpose = "consumer_credit"
contexts = ["card_application"]
[outcome]
column = "default"
meaning = "missed a payment"
[person]
column = "id"
[[features]]
name = "limit"
column = "LIMIT"
component = "third_party"
kind = "numeric"
domain = [10, 1000]
transform = "log"
label = "Credit limit"
changeable = true
[[features]]
name = "status"
column = "PAY"
component = "payment_history"
kind = "integer"
domain = [-2, 8]
[[features]]
name = "kind"
column = "KIND"
component = "identity"
kind = "categorical"
levels = ["1", "2"]
[privacy]
epsilon = 1
""")
GRID = Grid.of(STUDY)
THETA = np.append(np.random.default_rng(0).normal(size=GRID.size), np.full(GRID.patterns, -2.0))
CARD = Scorecard.of(STUDY, GRID, THETA, np.ones(GRID.width))
ROWS = "id,LIMIT,PAY,KIND,unused\n007,100,0,1,x\nb,,8,2,y\nc,1e9,-2,9,\nd,55.5,,,\n"


@pytest.fixture
def bundle_file(tmp_path):
    now = time.time()
    write_bundle(
        tmp_path / "card.bundle",
        study=STUDY,
        theta=THETA,
        scorecard=CARD,
        label=privacy_label(STUDY, rounds=30, holders=3),
        metrics={},
        identity=Identity.generate(),
        created=now,
        expires=now + 1000,
    )
    return tmp_path / "card.bundle"


@pytest.fixture
def bundle(bundle_file):
    return read_bundle(bundle_file)


def score(bundle, tmp_path, text=ROWS, source="in.csv", target="out.csv", **given):
    path = tmp_path / source
    if isinstance(text, pa.Table):
        pa.parquet.write_table(text, path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if source.endswith(".gz") else text.encode())
    done = score_file(bundle, path, tmp_path / target, **({"purpose": "consumer_credit"} | given))
    out = tmp_path / target
    table = pa.csv.read_csv(
        out, convert_options=pa.csv.ConvertOptions(column_types={"id": pa.string()})
    ) if target.endswith(".csv") else pa.parquet.read_table(out)  # fmt: skip
    return done, table


def leftovers(tmp_path):
    return sorted(p.name for p in tmp_path.iterdir() if p.suffix not in (".bundle",))


def test_the_columns_are_the_documented_ones_in_order(bundle, tmp_path):
    done, table = score(bundle, tmp_path)
    assert table.column_names == [
        "id", "score", "probability", "band", "points_limit", "points_status", "points_kind", "base_points",
        "capped", "reason_1", "reason_2", "reason_3", "reason_4",
    ]  # fmt: skip
    assert (done.rows, done.absent) == (4, ())
    assert table["id"].to_pylist() == ["007", "b", "c", "d"]


def test_every_row_adds_up_and_is_the_explained_score(bundle, tmp_path):
    _, table = score(bundle, tmp_path)
    for number, row in enumerate(table.to_pylist(), start=1):
        points = row["points_limit"] + row["points_status"] + row["points_kind"]
        assert row["base_points"] + points + row["capped"] == row["score"]
        explained = explain(CARD, read_record(GRID, tmp_path / "in.csv", number))
        assert explained["score"] == row["score"]
        assert explained["probability"] == pytest.approx(row["probability"], rel=1e-12)
        assert explained["band"] == row["band"]
        words = [row[f"reason_{place}"] for place in (1, 2, 3)]
        assert [reason["words"] for reason in explained["reasons"]] == words
        assert row["band"] in dict(BANDS)
        assert not row["reason_4"]


@pytest.mark.parametrize("source", ["in.csv", "in.csv.gz", "in.parquet"])
@pytest.mark.parametrize("target", ["out.csv", "out.parquet"])
def test_the_format_does_not_change_a_score(bundle, tmp_path, source, target):
    _, wanted = score(bundle, tmp_path)
    text = ROWS
    if source == "in.parquet":
        text = pa.table(
            {
                "id": ["007", "b", "c", "d"],
                "LIMIT": [100, None, 1e9, 55.5],
                "PAY": pa.array([0, 8, -2, None], pa.int8()),
                "KIND": pa.array([1.0, 2.0, 9.0, None]),
            }
        )
    _, table = score(bundle, tmp_path, text, source, target)
    for name in ("id", "score", "probability", "band", "points_kind", "capped", "reason_1"):
        assert table[name].to_pylist() == wanted[name].to_pylist()


def test_one_row_works_as_well_as_many(bundle, tmp_path):
    many = "id,LIMIT,PAY,KIND\n" + "".join(f"{i},{i % 900},{i % 11 - 2},{i % 3}\n" for i in range(200_000))
    done, table = score(bundle, tmp_path, many)
    assert done.rows == table.num_rows == 200_000
    assert table["id"].to_pylist() == [str(i) for i in range(200_000)]
    for i in (0, 99_999, 199_999):
        _, one = score(bundle, tmp_path, f"id,LIMIT,PAY,KIND\n{i},{i % 900},{i % 11 - 2},{i % 3}\n")
        assert one.to_pylist() == table.slice(i, 1).to_pylist()


def test_absent_feature_columns_are_named_and_their_components_count_nothing(bundle, tmp_path):
    done, table = score(bundle, tmp_path, "LIMIT\n100\n")
    assert done.absent == ("PAY", "KIND")
    assert "id" not in table.column_names
    assert table["points_status"][0].as_py() == 0
    assert table["base_points"][0].as_py() == CARD.bases[GRID.pattern_of(["LIMIT"]) - 1]
    with_empty = score(bundle, tmp_path, "LIMIT,PAY,KIND\n100,,\n")[1]
    assert with_empty["points_status"][0].as_py() == CARD.points[GRID.features[1].missing]
    assert with_empty["base_points"][0].as_py() == CARD.base_points


def test_quotes_and_line_breaks_in_a_person_column_survive(bundle, tmp_path):
    _, table = score(bundle, tmp_path, 'id,LIMIT\n"a, ""b""\nc",5\n')
    assert table["id"].to_pylist() == ['a, "b"\nc']


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("id,LIMIT\n", "at least one record"),
        ("a,b\n1,2\n", "columns"),
        ("LIMIT,LIMIT\n1,2\n", "'LIMIT'"),
        ("LIMIT,PAY\n1,0\n2,x\n", "row 2, column 'PAY'"),
        ("LIMIT,PAY\n1,0\n2,1.5\n", "row 2, column 'PAY'"),
        ("LIMIT,PAY\nnan,0\n", "row 1, column 'LIMIT'"),
        ("LIMIT,PAY\ninf,0\n", "row 1, column 'LIMIT'"),
        ("LIMIT,PAY\n1e999,0\n", "row 1, column 'LIMIT'"),
        ("LIMIT,PAY\n1,2,3\n", "row 1"),
        ('LIMIT,PAY\n1,"2\n', "quote"),
        ("LIMIT;PAY\n1;2\n", "commas"),
        ("LIMIT,PAY\n" + "1,0\n" * 70_000 + "1,bad\n", "row 70001, column 'PAY'"),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_leaves_nothing_behind(bundle, tmp_path, text, part):
    with pytest.raises(BadData) as caught:
        score(bundle, tmp_path, text)
    assert part in str(caught.value)
    assert "in.csv" in str(caught.value)
    assert caught.value.exit_code == 2
    assert leftovers(tmp_path) == ["in.csv"]


def test_an_earlier_result_survives_a_failure(bundle, tmp_path):
    (tmp_path / "out.csv").write_text("before")
    with pytest.raises(BadData):
        score(bundle, tmp_path, "LIMIT\n1\nx\n")
    assert (tmp_path / "out.csv").read_text() == "before"


@pytest.mark.parametrize(
    ("source", "data"), [("in.parquet", ROWS), ("in.csv", pa.table({"LIMIT": [1.0]})), ("in.xlsx", ROWS)]
)
def test_a_file_that_is_not_what_its_name_says_is_refused(bundle, tmp_path, source, data):
    with pytest.raises(BadData):
        score(bundle, tmp_path, data, source)


@pytest.mark.parametrize("column", ["id", "LIMIT", "KIND"])
def test_a_nested_column_is_refused(bundle, tmp_path, column):
    table = pa.table({"PAY": [1], column: pa.array([[1]])})
    with pytest.raises(BadData, match=f"column '{column}'"):
        score(bundle, tmp_path, table, "in.parquet")
    assert leftovers(tmp_path) == ["in.parquet"]


def test_a_stored_nan_is_refused_like_a_written_one(bundle, tmp_path):
    for row in (2, 70_001):  # in the first batch and in a later one
        values = pa.array([1.0] * (row - 1) + [math.nan])
        with pytest.raises(BadData, match=f"row {row}, column 'LIMIT'"):
            score(bundle, tmp_path, pa.table({"LIMIT": values}), "in.parquet")


@pytest.mark.parametrize(
    ("purpose", "code"),
    [("microloan", "D03"), ("fraud_detection", "D08"), ("voting", "D02"), ("nonsense", "purpose")],
)
def test_another_purpose_is_refused_before_anything_is_read(bundle, tmp_path, purpose, code):
    with pytest.raises(Refused) as caught:
        score_file(bundle, tmp_path / "none.csv", tmp_path / "out.csv", purpose=purpose)
    assert (caught.value.code, caught.value.exit_code) == (code, 3)


def test_an_expired_bundle_scores_nobody(bundle, tmp_path):
    with pytest.raises(Refused, match="expired"):
        score(bundle, tmp_path, clock=lambda: time.time() + 2000)
    assert leftovers(tmp_path) == ["in.csv"]


@pytest.mark.parametrize("target", ["out.txt", "out", "nowhere/out.csv", "in.csv"])
def test_an_output_that_cannot_be_written_is_refused(bundle, tmp_path, target):
    with pytest.raises(BadInput, match="output"):
        score(bundle, tmp_path, target=target)
    assert (tmp_path / "in.csv").read_text() == ROWS


def run(*arguments):
    return CliRunner().invoke(model_app, [str(argument) for argument in arguments])


def test_the_command_scores_and_says_how_many(bundle_file, tmp_path):
    (tmp_path / "in.csv").write_text("LIMIT\n5\n6\n")
    result = run("score", bundle_file, "--input", tmp_path / "in.csv", "--output", tmp_path / "o.csv",
                 "--purpose", "consumer_credit", "--json")  # fmt: skip
    assert result.exit_code == 0
    assert json.loads(result.stdout)["rows"] == 2
    assert "PAY, KIND" in result.stderr


@pytest.mark.parametrize(
    ("purpose", "text", "code"), [("voting", ROWS, 3), ("consumer_credit", "LIMIT\nx\n", 2)]
)
def test_the_command_ends_with_one_line_and_the_documented_code(bundle_file, tmp_path, purpose, text, code):
    (tmp_path / "in.csv").write_text(text)
    result = run("score", bundle_file, "--input", tmp_path / "in.csv", "--output", tmp_path / "o.csv",
                 "--purpose", purpose)  # fmt: skip
    assert result.exit_code == code
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o.csv").exists()


def test_the_command_explains_one_row(bundle_file, tmp_path):
    (tmp_path / "in.csv").write_text(ROWS)
    result = run("explain", bundle_file, "--input", tmp_path / "in.csv", "--row", "3", "--json")
    explained = json.loads(result.stdout)
    assert explained["row"] == 3
    assert explained["features"][2]["value"] == "9 (counted as other)"
    assert "Main reasons" in run("explain", bundle_file, "--input", tmp_path / "in.csv").stdout
    past = run("explain", bundle_file, "--input", tmp_path / "in.csv", "--row", "5")
    assert past.exit_code == 2
    assert "1 to 4" in past.stderr


def test_a_model_that_is_held_back_scores_nobody(bundle, tmp_path):
    with pytest.raises(Refused, match="held back") as refused:
        score(replace(bundle, held=("the gate",)), tmp_path)
    assert refused.value.code == "held"
    assert not (tmp_path / "out.csv").exists()
