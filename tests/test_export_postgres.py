"""The SQL export on a real PostgreSQL server gives exactly the points and the score that Assay gives."""

from __future__ import annotations

import numpy as np
import pytest
from export_support import (
    AMOUNT,
    COLUMNS,
    EXAMPLES,
    HOUSE,
    NOW,
    PAIRS,
    PURPOSE,
    REGION,
    STATUS,
    TEXT,
    bundle_of,
    read_as_a_file,
    synthetic,
    taiwan,
)
from test_postgres import server  # noqa: F401

from assay.models.export import export_model

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unicode(server):  # noqa: F811
    """The address of a database in UTF-8, as nearly all are; that of the fixture is in none."""
    address = {"host": server.host, "port": server.port, "user": "owner"}
    with psycopg.connect(**address, dbname="postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE people ENCODING 'UTF8' TEMPLATE template0")
    return {**address, "dbname": "people"}


@pytest.fixture
def database(unicode):
    """A connection whose tables are gone after the test."""
    with psycopg.connect(**unicode, autocommit=True) as connection:
        yield connection


def query_of(bundle, folder, table, **given):
    path = folder / "card.sql"
    given = {"form": "sql", "purpose": PURPOSE, "dialect": "postgresql", "clock": lambda: NOW, **given}
    export_model(bundle, path, table=table, **given)
    return path.read_text()


def stored(database, columns, types):
    """Store the columns beside the number of the row; NaN becomes NULL."""
    named = ", ".join('"' + name.replace('"', '""') + f'" {types.get(name, "text")}' for name in columns)
    database.execute(f"CREATE TEMPORARY TABLE records (place integer, {named})")
    values = [[None if v is None or v != v else v for v in column.tolist()] for column in columns.values()]
    with database.cursor().copy("COPY records FROM STDIN") as copy:
        for row in zip(range(len(values[0])), *values, strict=True):
            copy.write_row(row)


def scored(database, query):
    """The result in the order in which the rows were stored, column -> values."""
    cursor = database.execute(query.encode())
    names = [column.name for column in cursor.description]
    rows = sorted(cursor.fetchall(), key=lambda row: row[names.index("place")])
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def same(found, scores, names):
    assert list(found["score"]) == scores.score.tolist()
    assert list(found["base_points"]) == scores.base.tolist()
    assert list(found["capped"]) == scores.capped.tolist()
    for j, name in enumerate(names):
        assert list(found[f"points_{name}"]) == scores.points[:, j].tolist(), name
    np.testing.assert_allclose(found["probability"], scores.probability, rtol=1e-9)


def names_of(bundle):
    return [term.name for term in bundle.scorecard.grid.terms]


@pytest.mark.parametrize("category", ["text", "double precision", "numeric(9, 2)", "integer"])
def test_postgresql_scores_real_records(category, database, tmp_path):
    bundle = bundle_of((EXAMPLES / "study.toml").read_text() + PAIRS, tmp_path / "real.bundle", seed=1)
    columns = taiwan()
    types = {f.column: "double precision" if f.ordered else category for f in bundle.study.features}
    stored(database, columns, types)
    if category == "integer":
        retyped = 'ALTER "PAY_0" TYPE smallint, ALTER "LIMIT_BAL" TYPE numeric, ALTER "BILL_AMT1" TYPE bigint'
        database.execute(f"ALTER TABLE records {retyped}")
    query = query_of(bundle, tmp_path, "records", columns=["place", *columns])
    scores = bundle.scorecard.score(bundle.scorecard.grid.encode(columns))
    assert len(scores.score) == 10_000
    same(scored(database, query), scores, names_of(bundle))


@pytest.mark.parametrize("columns", [COLUMNS, (AMOUNT, STATUS), (HOUSE, REGION)], ids=len)
def test_postgresql_scores_whatever_is_there(columns, database, tmp_path):
    bundle = bundle_of(TEXT, tmp_path / "made.bundle", seed=2)
    cells = {name: values for name, values in synthetic().items() if name in columns}
    types = {name: "double precision" for name, values in cells.items() if values.dtype != object}
    stored(database, cells, types)
    query = query_of(bundle, tmp_path, "records", columns=["place", *columns], platform="shop")
    scores = bundle.scorecard.score(bundle.scorecard.grid.encode(read_as_a_file(cells)))
    same(scored(database, query), scores, names_of(bundle))


@pytest.mark.parametrize(
    ("column", "value"),
    [(AMOUNT, "Infinity"), (AMOUNT, "NaN"), (STATUS, "1.5"), (STATUS, "-Infinity"), (STATUS, "1e17")],
)
def test_postgresql_gives_no_number_to_a_value_that_is_refused(column, value, database, tmp_path):
    bundle = bundle_of(TEXT, tmp_path / "made.bundle", seed=2)
    cells = {name: np.array([1.0, 1.0], dtype=object) for name in (AMOUNT, STATUS)}
    cells[column][0] = value
    stored(database, cells, {AMOUNT: "double precision", STATUS: "double precision"})
    found = scored(database, query_of(bundle, tmp_path, "records", columns=["place", AMOUNT, STATUS]))
    assert (found["score"][0], found["probability"][0], found["capped"][0]) == (None, None, None)
    assert found["score"][1] is not None


def test_an_extreme_total_does_not_overflow(database, tmp_path):
    text = TEXT + "\n[scale]\npdo = 1.5\nlow = -1000000\nhigh = 1000000\n"
    bundle = bundle_of(text, tmp_path / "made.bundle", seed=2)
    object.__setattr__(bundle.scorecard, "points", np.full(bundle.scorecard.grid.size, 900_000))
    stored(database, {AMOUNT: np.array([1.0]), STATUS: np.array([2.0])}, {AMOUNT: "float8", STATUS: "float8"})
    found = scored(database, query_of(bundle, tmp_path, "records", columns=["place", AMOUNT, STATUS]))
    assert found["score"] == (1_000_000,)
    assert 0 <= found["probability"][0] < 1e-300
