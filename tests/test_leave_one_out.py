"""One record never changes how the others are read: their encoded rows are the same with and without it.

The accounting charges for what the rows of one person change. A type that is guessed from a whole column
would let one cell move the rows of everybody.
"""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from assay.client import databases
from assay.client.records import Records, load_records
from assay.client.sources import DataSource, open_source
from assay.models.encoding import Grid
from assay.models.study import parse_study
from assay.privacy.errors import BadData, BadInput

STUDY = parse_study("""
[study]
name = "leave-one-out"
purpose = "consumer_credit"
contexts = ["credit_card_application"]
[outcome]
column = "bad"
meaning = "missed a payment"
[person]
column = "id"
[[features]]
name = "key"
column = "KEY"
component = "identity"
kind = "numeric"
domain = [0, 2000]
[[features]]
name = "amount"
column = "AMOUNT"
component = "spending"
kind = "numeric"
domain = [0, 10]
[[features]]
name = "house"
column = "HOUSE"
component = "identity"
kind = "categorical"
levels = ["own", "1.50", "3", "007"]
[privacy]
epsilon = 1.0
delta = 1e-6
trust = "local"
""")
GRID = Grid.of(STUDY)
NAMES = ("bad", "id", "KEY", "AMOUNT", "HOUSE", "CLOSED")
Row = tuple[object, ...]
HOSTILE_KEY = 1999

CODES = ["5", "5.0", "X1", "007", "1.50", "1.5", "1e5", "-0", "none", "nan", "9" * 25, "1" + "0" * 18]
TEXTS = [*CODES, "own", " own", "", "3", "3.0", "é", "TRUE", "2024-01-01", "1e+05"]
AMOUNTS = ["", "1", "2.5", "3.0", "007", "1e2", ".5", "9" * 30]
# What no number column may hold: the whole source is then refused, which changes no row.
NO_AMOUNTS = ["x", "inf", "1e309", "1e+309"]
MARKS = ["0", "0.0", "1", "1.0", "n/a", "", "00", "2", "1e+00"]
# An SQLite column without a declared type holds anything, cell by cell.
LOOSE = [*TEXTS[1:], 5, 5.0, 2**60, 2**53 + 1, 1e16, 1e300, 0.1, -0.0, None, 7]


def row_of(
    texts: Sequence[object], amounts: Sequence[object], marks: Sequence[object]
) -> st.SearchStrategy[Row]:
    present = [cell for cell in texts if cell is not None and str(cell).strip()] or ["5"]
    return st.tuples(
        st.sampled_from(["0", "1"]), st.sampled_from(present), st.just(0),
        st.sampled_from(amounts), st.sampled_from(texts), st.sampled_from(marks),
    )  # fmt: skip


def write_csv(directory: Path, rows: Sequence[Row]) -> dict[str, str]:
    with (directory / "r.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([NAMES, *rows])
    return {"kind": "csv", "path": "r.csv"}


def write_parquet(directory: Path, rows: Sequence[Row]) -> dict[str, str]:
    columns = dict(zip(NAMES, zip(*rows, strict=True), strict=True))
    arrays = [pa.array([str(cell) for cell in columns[name]], pa.string()) for name in NAMES]
    pq.write_table(pa.table(arrays, names=list(NAMES)), directory / "r.parquet")
    return {"kind": "parquet", "path": "r.parquet"}


def write_sqlite(directory: Path, rows: Sequence[Row]) -> dict[str, str]:
    path = directory / "r.sqlite"
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"create table records ({', '.join(NAMES)})")
        connection.executemany("insert into records values (?, ?, ?, ?, ?, ?)", rows)
    return {"kind": "sqlite", "path": "r.sqlite"}


Write = Callable[[Path, Sequence[Row]], dict[str, str]]
WRITERS: dict[str, Write] = {"csv": write_csv, "parquet": write_parquet, "sqlite": write_sqlite}
QUERIES = [
    None,
    "select * from records",
    "select * from records where CLOSED <> 1",
    "select * from records where CLOSED = 0 or AMOUNT > 2",
    "select bad, id, KEY, AMOUNT, coalesce(HOUSE, CLOSED) as HOUSE from records where max(KEY, 0) >= 0",
]


@dataclass(frozen=True)
class View:
    """What the protocol uses of everybody but the hostile record."""

    keys: list[float]
    rows: bytes
    persons: list[int]

    @classmethod
    def of(cls, records: Records) -> View:
        others = records.columns["KEY"] != HOSTILE_KEY
        encoded = GRID.encode(records.columns)
        parts: list[NDArray[np.generic]] = [
            encoded.low[others],
            encoded.upper[others],
            records.labels[others],
        ]
        assert records.persons is not None
        codes: dict[int, int] = {}
        persons = [codes.setdefault(code, len(codes)) for code in records.persons[others].tolist()]
        return cls(records.columns["KEY"][others].tolist(), b"".join(map(bytes, parts)), persons)


def load(directory: Path, source: Mapping[str, str]) -> Records:
    with open_source(DataSource(directory=directory, **source)) as opened:  # type: ignore[arg-type]
        return load_records(opened, STUDY)


def settings_of(source: dict[str, str], query: str | None) -> dict[str, str]:
    if query is not None:
        return {**source, "query": query}
    return {**source, "table": "records"} if source["kind"] == "sqlite" else source


def keyed(rows: Sequence[Row]) -> list[Row]:
    return [(*row[:2], key, *row[3:]) for key, row in enumerate(rows)]


def check(
    directory: Path, write: Write, query: str | None, rows: Sequence[Row], hostile: Row, place: int
) -> None:
    """Compare the others with and without the hostile record, which may stand anywhere."""
    others = keyed(rows)
    without = View.of(load(directory, settings_of(write(directory, others), query)))
    hostile = (*hostile[:2], HOSTILE_KEY, *hostile[3:])
    mixed = [*others[:place], hostile, *others[place:]]
    source = settings_of(write(directory, mixed), query)
    with suppress(BadData):
        # Only a cell that is no number may refuse the source; that changes no row.
        assert View.of(load(directory, source)) == without
        return
    assert hostile[3] in NO_AMOUNTS


# The first record passes every query above.
FIRST: Row = ("0", "5", 0, "3", "3", "0")


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("kind", ["csv", "parquet", "sqlite"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_hostile_record_changes_no_other(
    kind: str, query: str | None, data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "BATCH_ROWS", 3)
    loose = kind == "sqlite"
    texts, marks = (LOOSE, [*MARKS, 0, 1, 1.0, None]) if loose else (TEXTS, MARKS)
    amounts = [*AMOUNTS, 1, 2.5, None] if loose else AMOUNTS
    # Few different cells: often all of them look like numbers and only the hostile one does not.
    few = [
        data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=2)) for pool in (texts, amounts, marks)
    ]
    rows = data.draw(st.lists(row_of(*few), max_size=8))
    hostile = data.draw(row_of(texts, [*amounts, *NO_AMOUNTS], marks))
    # A filter moves the row that a later message names: there the hostile record comes first.
    place = 0 if query else data.draw(st.integers(0, len(rows) + 1))
    check(tmp_path, WRITERS[kind], query, [FIRST, *rows], hostile, place)


def crowd(**cells: object) -> list[Row]:
    row = dict(zip(NAMES, FIRST, strict=True)) | cells
    return [(*(f"p{i}" if name == "id" else row[name] for name in NAMES),) for i in range(1500)]


def test_one_word_in_a_text_column_of_a_query_changes_no_other_cell(tmp_path: Path) -> None:
    hostile: Row = ("0", "h", 0, "1", "none", "0")
    check(tmp_path, write_csv, "select * from records", crowd(HOUSE="1.50"), hostile, 1500)


def test_one_word_in_a_filter_column_lets_no_other_record_through(tmp_path: Path) -> None:
    hostile: Row = ("0", "h", 0, "1", "own", "n/a")
    rows = [*crowd(), *crowd(CLOSED="1")]
    check(tmp_path, write_csv, "select * from records where CLOSED <> 1", rows, hostile, 1500)


@pytest.mark.parametrize("query", [None, "select * from records"])
def test_one_identifier_of_another_type_splits_and_joins_nobody(query: str | None, tmp_path: Path) -> None:
    rows = [(*row[:1], 5 if i % 2 else 5.0, *row[2:]) for i, row in enumerate(crowd())]
    check(tmp_path, write_sqlite, query, rows, ("0", "X1", 0, "1", "own", "0"), 700)
    assert load(tmp_path, settings_of(write_sqlite(tmp_path, keyed(rows)), query)).persons_count == 1


@pytest.mark.parametrize("query", [None, "select * from records"])
@pytest.mark.parametrize("kind", ["csv", "parquet", "sqlite"])
def test_whole_numbers_and_their_decimals_are_one_person(
    kind: str, query: str | None, tmp_path: Path
) -> None:
    identifiers = ["5", "5.0", "5.00", " 5", *([5, 5.0] if kind == "sqlite" else [])]
    rows = [("0", identifier, 0, "1", "own", "0") for identifier in identifiers]
    source = settings_of(WRITERS[kind](tmp_path, keyed(rows)), query)
    assert load(tmp_path, source).persons_count == 1


@pytest.mark.parametrize("query", [None, "select * from records"])
@pytest.mark.parametrize("kind", ["csv", "parquet", "sqlite"])
def test_long_and_padded_identifiers_stay_apart(kind: str, query: str | None, tmp_path: Path) -> None:
    identifiers = ["5", "05", "+5", "5e0", str(2**53), str(2**53 + 1), "9" * 20, "9" * 19 + "8"]
    rows = [("0", identifier, 0, "1", "own", "0") for identifier in identifiers]
    source = settings_of(WRITERS[kind](tmp_path, keyed(rows)), query)
    assert load(tmp_path, source).persons_count == len(identifiers)


@pytest.mark.parametrize("query", [None, "select * from records"])
@pytest.mark.parametrize("kind", [pa.decimal128(20, 0), pa.uint64(), pa.int64()])
def test_long_numbers_of_a_parquet_column_stay_apart(
    kind: pa.DataType, query: str | None, tmp_path: Path
) -> None:
    numbers = pa.array([2**53, 2**53 + 1], pa.int64()).cast(kind)
    table = pa.table({"bad": [0, 1], "id": numbers, "KEY": [1, 2]})
    pq.write_table(table, tmp_path / "r.parquet")
    assert load(tmp_path, settings_of({"kind": "parquet", "path": "r.parquet"}, query)).persons_count == 2


def test_a_whole_number_that_sqlite_cannot_hold_is_refused_in_a_query(tmp_path: Path) -> None:
    table = pa.table({"bad": [0], "id": pa.array([2**63], pa.uint64()), "KEY": [1]})
    pq.write_table(table, tmp_path / "r.parquet")
    source = {"kind": "parquet", "path": "r.parquet"}
    assert load(tmp_path, source).persons_count == 1
    with pytest.raises(BadData, match="column 'id'"):
        load(tmp_path, {**source, "query": "select * from records"})


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)))
@example(cells=[2**53 + 1, 0.1, 5e-324, -0.0])
def test_numbers_of_mixed_types_keep_every_bit(cells: list[float], tmp_path: Path) -> None:
    cells = [0, *cells]
    path = tmp_path / "n.sqlite"
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table t (a)")
        connection.executemany("insert into t values (?)", [(cell,) for cell in cells])
    with open_source(DataSource(directory=tmp_path, kind="sqlite", path="n.sqlite", table="t")) as source:
        assert source.read({"a": "number"})["a"].tolist() == [float(cell) for cell in cells]


# --- queries that look at several rows -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("select KEY, count(*) as n from records", "count"),
        ("select KEY from records GROUP  BY KEY", "group by"),
        ("select distinct KEY from records", "distinct"),
        ('select/**/distinct "from" from records', "distinct"),
        ("select * from records order by AMOUNT limit 10", "limit"),
        ("select * from records offset 3", "offset"),
        ("select * from records fetch first 3 rows only", "fetch first"),
        ("select AMOUNT - avg (AMOUNT) over () as AMOUNT from records", "avg"),
        ("select row_number() over (order by KEY) as KEY from records", "over"),
        ("select rank() over w as KEY from records window w as (order by KEY)", "over"),
        ("select KEY from records union all select KEY from records", "union"),
        ("select KEY from records except select 1", "except"),
        ("select KEY from records intersect select 1", "intersect"),
        ("select * from records where AMOUNT = (select max(AMOUNT) from records)", "max"),
        ("select * from records where AMOUNT > (select min(abs(max(AMOUNT, 1))) from records)", "min"),
        ("select string_agg(HOUSE, ',') as HOUSE from records", "string_agg"),
        ("select percentile_cont(0.5) within group (order by AMOUNT) as a from records", "percentile_cont"),
        ("select * from records where rowid < 100", "rowid"),
        ("select * from records tablesample system (10)", "tablesample"),
        ("with a as (select sum(AMOUNT) as s from records) select * from records, a", "sum"),
    ],
)
def test_a_query_over_several_rows_is_refused_by_its_word(query: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="row by row") as caught:
        DataSource(directory=tmp_path, kind="csv", path="r.csv", query=query)
    assert caught.value.value == word
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "query",
    [
        "select * from records where CLOSED = 0",
        "select * from records order by KEY",
        'select "LIMIT", `offset`, [union], count, a.over, discount(x) from records a',
        "select max(a, b) as a, min(abs(a), max(b, c)) as b from records",
        "select 'group by' as a -- limit 3\n from records /* distinct */",
        "select * from records where a is not distinct from b",
        "with a as (select KEY * 2 as double from records) select * from a join b on a.id = b.id",
        "select countable, overdue, limit_bal, summary from records",
    ],
)
def test_a_query_that_works_row_by_row_is_taken(query: str, tmp_path: Path) -> None:
    assert DataSource(directory=tmp_path, kind="sqlite", path="r.sqlite", query=query).query == query
