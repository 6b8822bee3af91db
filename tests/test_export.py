"""Every export gives, from itself alone, exactly the points and the score that Assay gives."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from export_support import (
    AMOUNT,
    BALANCE,
    COLUMNS,
    EXAMPLES,
    EXPIRES,
    HOUSE,
    INCOME,
    NOW,
    PAIRS,
    PLAIN,
    PURPOSE,
    RATED,
    REGION,
    STATUS,
    TEXT,
    FromCsv,
    FromJson,
    bundle_of,
    read_as_a_file,
    record,
    synthetic,
    taiwan,
)
from typer.testing import CliRunner

from assay.models import export_sql
from assay.models.export import export_model
from assay.models.export_onnx import REFUSED
from assay.privacy.errors import BadInput, Refused, Unavailable
from assay.simulations.main import build

READERS = {"json": FromJson, "csv": FromCsv}
SETS = {
    "all": COLUMNS,
    "two components": (AMOUNT, BALANCE, STATUS),
    "one column of each": (AMOUNT, STATUS, HOUSE, INCOME),
    "text only": (REGION,),
    "whole numbers only": (STATUS,),
}
sets = pytest.mark.parametrize("columns", SETS.values(), ids=SETS)


@pytest.fixture(scope="module", params=["", PAIRS], ids=["features", "features and pairs"])
def real(request, tmp_path_factory):
    text = (EXAMPLES / "study.toml").read_text() + request.param
    return bundle_of(text, tmp_path_factory.mktemp("real") / "real.bundle", seed=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return bundle_of(TEXT, tmp_path_factory.mktemp("made") / "made.bundle", seed=2)


@pytest.fixture(scope="module")
def people():
    return taiwan()


@pytest.fixture(scope="module")
def cells():
    return synthetic()


def write(bundle, form, folder, **given):
    path = folder / f"card.{form}"
    export_model(bundle, path, form=form, purpose=PURPOSE, clock=lambda: NOW, **given)
    return path


def only(columns, names):
    return {name: columns[name] for name in names}


def expected(bundle, columns, platform="shop"):
    """What Assay gives, with the columns of other platforms left out."""
    there = {
        f.column: columns[f.column]
        for f in bundle.study.features
        if f.column in columns and f.platform in (None, platform)
    }
    return bundle.scorecard.score(bundle.scorecard.grid.encode(there))


def in_sqlite(query, columns, more=()):
    """Run the query on a table of the columns; rows as they were put in."""
    with sqlite3.connect(":memory:") as connection:
        names = [*columns, *(name for name, _ in more)]
        quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
        connection.execute(f"CREATE TABLE records ({quoted})")
        values = [
            [None if v is None or v != v else v for v in column.tolist()] for column in columns.values()
        ]
        values += [list(column) for _, column in more]
        marks = ", ".join("?" for _ in names)
        connection.executemany(f"INSERT INTO records VALUES ({marks})", zip(*values, strict=True))
        connection.row_factory = sqlite3.Row
        return connection.execute(query).fetchall()


def same_rows(rows, scores, names):
    assert [row["score"] for row in rows] == scores.score.tolist()
    assert [row["base_points"] for row in rows] == scores.base.tolist()
    assert [row["capped"] for row in rows] == scores.capped.tolist()
    for j, name in enumerate(names):
        assert [row[f"points_{name}"] for row in rows] == scores.points[:, j].tolist(), name
    np.testing.assert_allclose([row["probability"] for row in rows], scores.probability, rtol=1e-9)


def names_of(bundle):
    """Features, then pairs: whatever has a column of points."""
    return [term.name for term in bundle.scorecard.grid.terms]


def in_onnx(path, bundle, columns):
    """Run the model on typed columns; texts with "" for missing."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = {f.column: f.name for f in bundle.study.features}
    feed = {
        names[column]: np.array(["" if v is None else v for v in values], dtype=object)
        if values.dtype == object
        else values
        for column, values in columns.items()
    }
    return dict(zip(("score", "probability"), session.run(["score", "probability"], feed), strict=True))


@pytest.mark.parametrize("form", READERS)
def test_a_table_of_points_scores_real_records(form, real, people, tmp_path):
    scorer, scores = READERS[form](write(real, form, tmp_path).read_text()), expected(real, people)
    assert len(scores.score) == 10_000
    for row in range(len(scores.score)):
        found = scorer(record(people, row))
        assert found["points"] == scores.points[row].tolist()
        assert (found["score"], found["capped"]) == (scores.score[row], scores.capped[row])
        assert found["probability"] == pytest.approx(scores.probability[row], rel=1e-9)


@sets
@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize("platform", [None, "shop"])
def test_a_table_of_points_scores_whatever_is_there(form, platform, columns, made, cells, tmp_path):
    scorer = READERS[form](write(made, form, tmp_path).read_text())
    typed = read_as_a_file(only(cells, columns))
    scores = expected(made, typed, platform)
    for row in range(600):
        found = scorer(record(typed, row), platform)
        assert found["points"] == scores.points[row].tolist()
        assert (found["score"], found["base"]) == (scores.score[row], scores.base[row])


def test_sqlite_scores_real_records(real, people, tmp_path):
    rows = in_sqlite(write(real, "sql", tmp_path).read_text(), people)
    same_rows(rows, expected(real, people), names_of(real))


@sets
@pytest.mark.parametrize("platform", [None, "shop"])
def test_sqlite_scores_whatever_is_there(columns, platform, made, cells, tmp_path):
    query = write(made, "sql", tmp_path, columns=columns, platform=platform).read_text()
    rows = in_sqlite(query, only(cells, columns))
    scores = expected(made, read_as_a_file(only(cells, columns)), platform)
    same_rows(rows, scores, names_of(made))


def test_sqlite_reads_a_text_from_a_column_of_numbers(made, tmp_path):
    values = np.array([3, 3.0, 0, -1.0, 10, 7, 3.5, None, 2.0], dtype=object)
    query = write(made, "sql", tmp_path, columns=[HOUSE]).read_text()
    texts = np.array(["3", "3", "0", "-1", "10", "7", "3.5", None, "2"], dtype=object)
    same_rows(in_sqlite(query, {HOUSE: values}), expected(made, {HOUSE: texts}), names_of(made))


@pytest.mark.parametrize("column", [AMOUNT, STATUS, HOUSE])
def test_sqlite_takes_an_empty_text_for_missing(column, made, tmp_path):
    query = write(made, "sql", tmp_path, columns=[column]).read_text()
    first, second, third = in_sqlite(query, {column: np.array(["", " ", None], dtype=object)})
    assert tuple(first) == tuple(second) == tuple(third)
    assert first["score"] is not None


def test_other_columns_go_into_the_result_of_a_query(made, cells, tmp_path):
    people = [f"person {i}" for i in range(len(cells[AMOUNT]))]
    query = write(made, "sql", tmp_path, platform="shop").read_text()
    rows = in_sqlite(query, cells, [("who", people), ("unused", people)])
    assert rows[0].keys()[:3] == ["who", "score", "probability"]
    assert [row["who"] for row in rows] == people
    query = write(made, "sql", tmp_path, columns=["un used", AMOUNT], table="main.records").read_text()
    rows = in_sqlite(query, only(cells, [AMOUNT]), [("un used", people)])
    assert [row["un used"] for row in rows] == people


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (AMOUNT, float("inf")),
        (AMOUNT, "5"),
        (AMOUNT, b"5"),
        (STATUS, 1.5),
        (STATUS, float("-inf")),
        (STATUS, 1e17),
    ],
)
def test_sql_gives_no_number_to_a_value_that_is_refused(column, value, made, tmp_path):
    query = write(made, "sql", tmp_path, columns=[AMOUNT, STATUS]).read_text()
    columns = {AMOUNT: np.array([1.0, 1.0], dtype=object), STATUS: np.array([1.0, 1.0], dtype=object)}
    columns[column][0] = value
    refused, other = in_sqlite(query, columns)
    assert (refused["score"], refused["probability"], refused["capped"]) == (None, None, None)
    assert other["score"] is not None


def test_a_column_that_the_table_does_not_have_is_an_error(made, cells, tmp_path):
    query = write(made, "sql", tmp_path, columns=[AMOUNT, REGION]).read_text()
    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        in_sqlite(query, only(cells, [AMOUNT]))


def test_sql_takes_for_blank_what_a_record_file_does():
    characters = [chr(code) for code in range(1, sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    left = pc.utf8_trim_whitespace(pa.array(characters)).to_pylist()
    assert tuple(ord(c) for c, kept in zip(characters, left, strict=True) if not kept) == export_sql._BLANKS


def test_onnx_scores_real_records(real, people, tmp_path):
    found, scores = in_onnx(write(real, "onnx", tmp_path), real, people), expected(real, people)
    assert (found["score"].dtype, found["probability"].dtype) == (np.int64, np.float64)
    np.testing.assert_array_equal(found["score"], scores.score)
    np.testing.assert_allclose(found["probability"], scores.probability, rtol=0, atol=1e-6)


@sets
@pytest.mark.parametrize("platform", [None, "shop"])
def test_onnx_scores_whatever_is_there(columns, platform, made, cells, tmp_path):
    path = write(made, "onnx", tmp_path, columns=columns, platform=platform)
    typed = read_as_a_file(only(cells, columns))
    scores = expected(made, typed, platform)
    there = {name: values for name, values in typed.items() if name != RATED or platform == "shop"}
    found = in_onnx(path, made, there)
    np.testing.assert_array_equal(found["score"], scores.score)
    np.testing.assert_allclose(found["probability"], scores.probability, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("column", "value"), [(AMOUNT, np.inf), (BALANCE, -np.inf), (STATUS, 1.5), (STATUS, np.inf)]
)
def test_onnx_gives_no_number_to_a_value_that_is_refused(column, value, made, tmp_path):
    names = [AMOUNT, BALANCE, STATUS]
    columns = {name: np.array([1.0, 1.0]) for name in names}
    columns[column][0] = value
    found = in_onnx(write(made, "onnx", tmp_path, columns=names), made, columns)
    assert found["score"][0] == REFUSED
    assert found["score"][1] >= made.study.scale.low
    assert np.isnan(found["probability"]).tolist() == [True, False]


def test_every_export_says_what_it_is_for(made, tmp_path):
    parsed = json.loads(write(made, "json", tmp_path).read_text())
    table = csv.DictReader(io.StringIO(write(made, "csv", tmp_path).read_text()))
    listed = {row["cell"]: row["meaning"] for row in table if row["kind"] == "about"}
    head = [
        line[3:] for line in write(made, "sql", tmp_path).read_text().splitlines() if line.startswith("--")
    ]
    model = onnx.load_from_string(write(made, "onnx", tmp_path).read_bytes())
    assert (parsed["purpose"], parsed["contexts"]) == (PURPOSE, ["here", "there"])
    comments = dict(line.split(": ", 1) for line in head if not line.startswith("rule"))
    for terms in (
        {**parsed, "contexts": "here, there"},
        listed,
        comments,
        {p.key: p.value for p in model.metadata_props},
    ):
        assert terms["purpose"] == PURPOSE
        assert terms["contexts"] == "here, there"
        assert terms["expires"] == "2096-10-02T07:06:40+00:00"
        assert terms["bundle_sha256"] == made.digest
        assert "Nothing in this export enforces that" in terms["notice"]


def test_the_same_bundle_gives_the_same_bytes(made, tmp_path):
    for form in ("json", "csv", "sql", "onnx"):
        first = write(made, form, tmp_path).read_bytes()
        assert write(made, form, tmp_path).read_bytes() == first


@pytest.mark.parametrize("form", ["json", "csv", "sql", "onnx"])
def test_no_export_for_another_purpose_or_context(form, made, tmp_path):
    for given, code in (
        ({"purpose": "rental_screening"}, "D03"),
        ({"purpose": "fraud_detection"}, "D08"),
        ({"purpose": PURPOSE, "context": "elsewhere"}, "D03"),
    ):
        with pytest.raises(Refused) as refused:
            export_model(made, tmp_path / "card", form=form, clock=lambda: NOW, **given)
        assert refused.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_no_export_of_an_expired_or_a_held_model(made, tmp_path):
    for bundle, now, code in (
        (made, EXPIRES, "expired"),
        (replace(made, held=("group SEX=1 fell below the gate",)), NOW, "held"),
    ):
        with pytest.raises(Refused) as refused:
            export_model(bundle, tmp_path / "card", form="json", purpose=PURPOSE, clock=lambda n=now: n)
        assert refused.value.code == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("form", "given", "words"),
    [
        ("xml", {}, "format is 'xml'; allowed: one of json, csv, sql, onnx"),
        ("json", {"columns": [AMOUNT]}, "columns is .*; allowed: nothing for format json"),
        ("csv", {"platform": "shop"}, "platform is 'shop'; allowed: nothing for format csv"),
        ("onnx", {"table": "t"}, "table is 't'; allowed: nothing for format onnx"),
        ("sql", {"dialect": "oracle"}, "dialect is 'oracle'; allowed: one of sqlite, postgresql"),
        ("sql", {"table": "a..b"}, "table is 'a..b'; allowed: a name"),
        ("sql", {"columns": [AMOUNT, AMOUNT]}, "columns is .*; allowed: each name once"),
        ("sql", {"columns": ["id"]}, "columns; allowed: at least one that is a feature"),
        ("sql", {"columns": [RATED]}, "columns; allowed: at least one that is a feature"),
        ("sql", {"columns": [AMOUNT, "points_amount"]}, "columns is 'points_amount'; allowed: no name"),
        (
            "onnx",
            {"columns": [AMOUNT, "id"]},
            "columns is .*'id'.*; allowed: columns of the study's features",
        ),
    ],
)
def test_an_argument_that_does_not_fit_is_refused(form, given, words, made, tmp_path):
    with pytest.raises(BadInput, match=words):
        write(made, form, tmp_path, **given)
    assert list(tmp_path.iterdir()) == []


def test_a_feature_named_as_an_output_is_refused(tmp_path):
    bundle = bundle_of(PLAIN.replace('name = "amount"', 'name = "score"'), tmp_path / "b.bundle")
    with pytest.raises(BadInput, match="feature is 'score'"):
        write(bundle, "onnx", tmp_path)


def test_without_onnx_the_command_says_what_to_install(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(Unavailable, match=r"not installed: pip install 'assay\[export\]'$"):
        write(made, "onnx", tmp_path)


def test_the_command_writes_a_query_and_says_which_columns_it_needs(tmp_path):
    bundle_of(TEXT, tmp_path / "card.bundle")
    arguments = ["model", "export", str(tmp_path / "card.bundle"), "--format", "sql", "--output"]
    arguments += [str(tmp_path / "card.sql"), "--purpose", PURPOSE, "--json"]
    more = ["--column", AMOUNT, "--column", HOUSE, "--table", "bank.people", "--dialect", "postgresql"]
    done = CliRunner().invoke(build(), [*arguments, *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["columns"] == [AMOUNT, HOUSE]
    assert result["missing_columns"] == [BALANCE]
    assert result["absent_components"] == ["compliance", "payment_history", "third_party"]
    assert 'FROM "bank"."people" AS records' in (tmp_path / "card.sql").read_text()
    refused = CliRunner().invoke(build(), [*arguments[:-2], "rental_screening"], catch_exceptions=False)
    assert refused.exit_code == 3
