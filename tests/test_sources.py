"""Reading records: just the wanted columns, read-only, and one line for everything that is wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
import sqlite3
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.client.sources import DataSource, open_source
from assay.models.tabular import ParquetReader
from assay.privacy.errors import AssayError, BadData, BadInput, Unavailable

COLUMNS = {"amount": [1.5, None, -3.0], "count": [1, 2, None], "kind": ["a", None, "b c"]}
WANTED = {"amount": "number", "count": "integer", "kind": "text"}
CSV = b"amount,count,kind,unused\n1.5,1,a,x\n,2,,y\n-3,,b c,z\n"


def write_csv(directory: Path) -> dict[str, str]:
    (directory / "r.csv").write_bytes(CSV)
    return {"kind": "csv", "path": "r.csv"}


def write_gzip(directory: Path) -> dict[str, str]:
    (directory / "r.csv.gz").write_bytes(gzip.compress(CSV))
    return {"kind": "csv", "path": "r.csv.gz"}


def write_parquet(directory: Path) -> dict[str, str]:
    pq.write_table(pa.table({**COLUMNS, "unused": ["x", "y", "z"]}), directory / "r.parquet")
    return {"kind": "parquet", "path": "r.parquet"}


def write_sqlite(directory: Path) -> dict[str, str]:
    connection = sqlite3.connect(directory / "r.sqlite")
    connection.execute("create table records (amount real, count integer, kind text, unused)")
    connection.executemany("insert into records values (?, ?, ?, 'x')", zip(*COLUMNS.values(), strict=True))
    connection.commit()
    connection.close()
    return {"kind": "sqlite", "path": "r.sqlite", "table": "records"}


WRITERS: list[Callable[[Path], dict[str, str]]] = [write_csv, write_gzip, write_parquet, write_sqlite]


def read(directory: Path, wanted: dict[str, str] = WANTED, **source: str) -> dict[str, list[object]]:
    with open_source(DataSource(directory=directory, **source)) as opened:
        return {name: values.tolist() for name, values in opened.read(wanted).items()}


def refuse(directory: Path, wanted: dict[str, str] = WANTED, **source: str) -> BadInput:
    """Return the refusal, having checked that it is one line and ends the command with 2."""
    with pytest.raises(BadInput) as caught:
        read(directory, wanted, **source)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return caught.value


def refuse_csv(directory: Path, content: bytes, wanted: dict[str, str], name: str = "r.csv") -> BadInput:
    (directory / name).write_bytes(content)
    return refuse(directory, wanted, kind="csv", path=name)


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_gives_the_same_columns(write: Callable[[Path], dict[str, str]], tmp_path: Path) -> None:
    found = read(tmp_path, **write(tmp_path))
    np.testing.assert_array_equal(found["amount"], [1.5, np.nan, -3.0])
    np.testing.assert_array_equal(found["count"], [1.0, 2.0, np.nan])
    assert found["kind"] == ["a", None, "b c"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_query_selects_and_renames(write: Callable[[Path], dict[str, str]], tmp_path: Path) -> None:
    source = write(tmp_path)
    source.pop("table", None)
    query = "select amount * 2 as double, kind from records where count > 1 or amount < 0 -- a comment"
    found = read(tmp_path, {"double": "number", "kind": "text"}, **source, query=query)
    np.testing.assert_array_equal(found["double"], [np.nan, -6.0])
    assert found["kind"] == [None, "b c"]


@pytest.mark.parametrize("write", WRITERS)
def test_reading_changes_no_byte_and_leaves_no_file(
    write: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    source = write(tmp_path)
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    read(tmp_path, **source)
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("write", WRITERS)
def test_a_missing_column_is_named_with_the_nearest_one(
    write: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    message = str(refuse(tmp_path, {"amuont": "number"}, **write(tmp_path)))
    assert "'amuont'" in message
    assert "'amount'" in message


@pytest.mark.parametrize(
    "query",
    [
        "delete from records",
        "with gone as (select 1) delete from records",
        "select 1; delete from records",
        "select 1 as amount) as x; delete from records; --",
        "update records set amount = 0",
        "attach 'other.sqlite' as other",
        "pragma writable_schema = 1",
        "",
        "-- select\ndrop table records",
        "select load_extension('x')",
        "create table more (a)",
    ],
)
@pytest.mark.parametrize("write", [write_csv, write_sqlite])
def test_a_query_that_is_no_single_select_is_refused(
    write: Callable[[Path], dict[str, str]], query: str, tmp_path: Path
) -> None:
    source = write(tmp_path)
    source.pop("table", None)
    before = sorted(tmp_path.iterdir())
    refuse(tmp_path, **source, query=query)
    assert sorted(tmp_path.iterdir()) == before
    assert read(tmp_path, **write_csv(tmp_path))["kind"] == ["a", None, "b c"]


@pytest.mark.parametrize(
    "query",
    ["select ';' as kind", "select 'a' as kind /* ; */ ;", "with x as (select 'y' as kind) select * from x"],
)
def test_a_semicolon_in_a_literal_or_comment_is_harmless(query: str, tmp_path: Path) -> None:
    assert len(read(tmp_path, {"kind": "text"}, **write_csv(tmp_path), query=query)["kind"]) == 1


def test_a_query_over_a_file_loads_only_the_columns_it_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from assay.models.tabular import CsvReader

    fetched: list[tuple[str, ...]] = []
    fetch = CsvReader.fetch
    monkeypatch.setattr(
        CsvReader, "fetch", lambda self, names: fetched.append(tuple(names)) or fetch(self, names)
    )
    read(tmp_path, {"n": "integer"}, **write_csv(tmp_path), query="select count as n from records")
    assert fetched == [("count",)]


def test_a_query_that_reads_no_column_still_sees_every_row(tmp_path: Path) -> None:
    source = write_csv(tmp_path)
    assert read(tmp_path, {"n": "integer"}, **source, query="select 1 as n from records") == {"n": [1.0] * 3}


def test_a_code_with_a_leading_zero_stays_text_in_a_query(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("code,value\n007,10\n123,9\n")
    found = read(
        tmp_path, {"code": "text"}, kind="csv", path="r.csv", query="select code from records where value > 9"
    )
    assert found == {"code": ["007"]}  # compared as a number: as text, '10' > 9 and '9' > 9 are both true


@pytest.mark.parametrize("cell", ["1e+309", "-1.5e309", "9" * 400 + ".0"])
def test_a_query_over_a_file_does_not_hide_infinity(cell: str, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(f"a,b\n1,2\n{cell},3\n")
    message = str(
        refuse(tmp_path, {"b": "number"}, kind="csv", path="r.csv", query="select b from records where a > 0")
    )
    assert "row 2, column 'a'" in message


def test_a_query_over_a_file_does_not_turn_nan_into_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0, float("nan")]}), tmp_path / "r.parquet")
    message = str(
        refuse(tmp_path, {"a": "number"}, kind="parquet", path="r.parquet", query="select a from records")
    )
    assert "row 2, column 'a'" in message


def test_a_slow_query_ends_at_its_time_out(tmp_path: Path) -> None:
    copies = ", ".join(f"records r{i}" for i in range(30))
    endless = f"select r0.amount as amount from {copies} where r0.count + r29.count > 100"
    source = DataSource(directory=tmp_path, kind="csv", path="r.csv", query=endless, query_timeout_s=0.2)
    write_csv(tmp_path)
    with pytest.raises((BadData, Unavailable), match=r"within 0\.2 s"), open_source(source):
        pass


BAD_CSV = {
    "empty file": (b"", "not empty"),
    "header only": (b"a,b\n", "at least one record"),
    "header without line end": (b"a,b", "at least one record"),
    "blank lines only": (b"\n\n\n", "at least one record"),
    "duplicate column": (b"a,b,a\n1,2,3\n", "column 'a'"),
    "UTF-16 with mark": ("a,b\n1,2\n".encode("utf-16"), "UTF-8"),
    "UTF-16 without mark": ("a,b\n1,2\n".encode("utf-16-le"), "NUL"),
    "NUL byte": (b"a,b\n1,2\n1,\0\n", "NUL"),
    "Latin-1 cell": (b"a,b\n1,2\n3,4\n5,\xe9\n", "row 3"),
    "Latin-1 header": (b"a,b,\xe9\n1,2,3\n", "UTF-8"),
    "too many cells": (b"a,b\n1,2\n1,2,3\n", "row 2"),
    "too few cells": (b"a,b\n1,2\n3\n", "row 2"),
    "quote left open": (b'a,b\n1,2\n3,"4\n5,6\n', "quote"),
    "semicolons": (b"a;b\n1;2\n", "';'"),
    "tabs": (b"a\tb\n1\t2\n", "commas"),
    "Parquet": (b"PAR1aaaaPAR1", 'kind = "parquet"'),
    "SQLite": (b"SQLite format 3\0", 'kind = "sqlite"'),
    "spreadsheet": (b"PK\x03\x04aaaa", "export it as CSV"),
    "gzip without the name": (gzip.compress(b"a,b\n1,2\n"), ".csv.gz"),
    "word in a number column": (b"a,b\n1,2\nx,2\n", "row 2, column 'a'"),
    "formula": (b"a,b\n1,2\n=cmd|' /C calc'!A0,2\n", "row 2, column 'a'"),
    "thousands separator": (b'a,b\n1,2\n"1,000",2\n', "row 2, column 'a'"),
    "decimal comma": (b'a,b\n1,2\n"1,5",2\n', "row 2, column 'a'"),
    "date": (b"a,b\n0000-00-00,2\n", "row 1, column 'a'"),
    "NaN": (b"a,b\n1,2\nNaN,2\n", "row 2, column 'a'"),
    "nan": (b"a,b\n1,2\nnan,2\n", "row 2, column 'a'"),
    "inf": (b"a,b\n1,2\n-inf,2\n", "row 2, column 'a'"),
    "too large": (b"a,b\n1,2\n1e309,2\n", "row 2, column 'a'"),
    "fraction in an integer column": (b"a,b\n1,2\n1,2.5\n", "row 2, column 'b'"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_a_bad_csv_file_is_refused(case: str, tmp_path: Path) -> None:
    content, expected = BAD_CSV[case]
    error = refuse_csv(tmp_path, content, {"a": "number", "b": "integer"})
    assert expected in str(error)
    assert "r.csv" in str(error)


GOOD_CSV = {
    "byte order mark": b"\xef\xbb\xbfa,b\n1,2\n3,4\n",
    "mixed line ends": b"a,b\r\n1,2\n3,4\r\n",
    "no line end at the end": b"a,b\n1,2\n3,4",
    "empty lines": b"a,b\n1,2\n\n3,4\n\n",
    "quoted": b'"a","b"\n"1","2"\n"3","4"\n',
    "line end in an unused cell": b'note,a,b\n"x\ny",1,2\n"say ""hi""",3,4\n',
    "spaces": b"a,b\n 1, 2\n3 ,4\n",
}


@pytest.mark.parametrize("case", GOOD_CSV)
def test_a_csv_file_may_vary_within_its_format(case: str, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(GOOD_CSV[case])
    found = read(tmp_path, {"a": "number", "b": "integer"}, kind="csv", path="r.csv")
    assert found == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


def test_a_line_end_in_a_cell_may_fall_on_any_block_boundary(tmp_path: Path) -> None:
    rows = 200_000
    (tmp_path / "r.csv").write_text("note,a\n" + "".join(f'"x\n\n{i},y\n\n",{i}\n' for i in range(rows)))
    assert (tmp_path / "r.csv").stat().st_size > 4 << 20
    assert read(tmp_path, {"a": "integer"}, kind="csv", path="r.csv")["a"] == list(range(rows))


def test_two_open_quotes_do_not_swallow_a_row(tmp_path: Path) -> None:
    content = b'a,b\n1,"2\n3,4\n5,"6\n7,8\n'
    error = refuse_csv(tmp_path, content, {"a": "number", "b": "integer"})
    assert "r.csv" in str(error)


@pytest.mark.parametrize("size", [2000, 3 << 20, 64 << 20])
def test_a_huge_cell_is_refused_and_does_not_fill_the_memory(size: int, tmp_path: Path) -> None:
    content = b"a,b\n1,2\n3," + b"x" * size + b"\n"
    (tmp_path / "r.csv").write_bytes(content)
    del content
    tracemalloc.start()
    error = refuse(tmp_path, {"b": "text"}, kind="csv", path="r.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(str(error)) < 500
    assert peak < 48 << 20


def test_a_cell_is_shown_only_as_value(tmp_path: Path) -> None:
    error = refuse_csv(tmp_path, b"a,b\n1,2\nsecret-cell,2\n", {"a": "number", "b": "integer"})
    assert isinstance(error, BadData)
    assert "secret-cell" in str(error)
    assert "secret-cell" not in error.without_cell()


@pytest.mark.parametrize(
    "content", [b"a,b\n1,secret,cell\n", b"a,b\n1,secret\xe9cell\n", b'a,b\n1,"secret\n', b"a,b\nsecret\n"]
)
def test_a_broken_row_is_not_quoted(content: bytes, tmp_path: Path) -> None:
    assert "secret" not in str(refuse_csv(tmp_path, content, {"a": "number", "b": "text"}))


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(CSV * 1000)
    for damaged in (whole[: len(whole) // 2], whole[:30] + b"\xff" * 8 + whole[38:], b"a,b\n1,2\n"):
        assert "gzip" in str(refuse_csv(tmp_path, damaged, WANTED, name="r.csv.gz"))


def test_a_file_that_is_missing_or_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    for kind, extra in (("csv", {}), ("parquet", {}), ("sqlite", {"table": "t"})):
        assert "gone" in str(refuse(tmp_path, kind=kind, path="gone", **extra))
        assert "directory" in str(refuse(tmp_path, kind=kind, path="dir", **extra))
        (tmp_path / "empty").write_bytes(b"")
        assert "not empty" in str(refuse(tmp_path, kind=kind, path="empty", **extra))
    assert not (tmp_path / "gone").exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.text(alphabet='a,b"1\n\r\0é;.-', max_size=60).map(str.encode))
def test_no_bytes_make_the_csv_reader_fail_in_another_way(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes(b"a,b\n" + data)
    with suppress(AssayError):
        found = read(tmp_path, {"a": "number", "b": "text"}, kind="csv", path="f.csv")
        assert np.isfinite([cell for cell in found["a"] if cell == cell]).all()


# --- Parquet -----------------------------------------------------------------------------------------


def parquet(directory: Path, **columns: object) -> None:
    pq.write_table(pa.table(columns), directory / "r.parquet")


def refuse_parquet(directory: Path, wanted: dict[str, str]) -> str:
    return str(refuse(directory, wanted, kind="parquet", path="r.parquet"))


@pytest.mark.parametrize(
    "column",
    [pa.array([[1], [2]]), pa.array([{"x": 1}, {"x": 2}]), pa.array([b"1", b"2"])],
    ids=["list", "struct", "binary"],
)
def test_a_nested_or_binary_parquet_column_is_refused_by_name(column: pa.Array, tmp_path: Path) -> None:
    parquet(tmp_path, a=column, b=[1, 2])
    assert "column 'a'" in refuse_parquet(tmp_path, {"a": "number"})
    assert read(tmp_path, {"b": "integer"}, kind="parquet", path="r.parquet") == {"b": [1.0, 2.0]}


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    parquet(tmp_path, a=list(range(1000)))
    whole = (tmp_path / "r.parquet").read_bytes()
    for size in (3, 4, 8, len(whole) // 2, len(whole) - 1):
        (tmp_path / "r.parquet").write_bytes(whole[:size])
        assert "whole Parquet file" in refuse_parquet(tmp_path, {"a": "number"})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(min_value=0), value=st.integers(0, 255))
def test_a_flipped_byte_in_a_parquet_file_never_escapes_as_another_error(
    position: int, value: int, tmp_path: Path
) -> None:
    table = pa.table({"a": [1.5, 2.5], "b": ["x", None]})
    pq.write_table(table, tmp_path / "f.parquet", write_page_checksum=True)
    content = bytearray((tmp_path / "f.parquet").read_bytes())
    content[position % len(content)] = value
    (tmp_path / "f.parquet").write_bytes(content)
    with suppress(AssayError):
        read(tmp_path, {"a": "number", "b": "text"}, kind="parquet", path="f.parquet")


def test_memory_does_not_grow_with_the_row_groups_of_a_parquet_file(tmp_path: Path) -> None:
    """32 row groups of half a megabyte: with the last of them, those before it are gone."""
    values = np.random.default_rng(0).random(1 << 21)  # does not compress
    pq.write_table(pa.table({"amount": values}), tmp_path / "r.parquet", row_group_size=1 << 16)
    before = pa.total_allocated_bytes()
    for batch in ParquetReader(tmp_path / "r.parquet").batches(["amount"]):
        held, rows = pa.total_allocated_bytes() - before, batch.num_rows
        assert rows == 1 << 16
        assert held < 4 << 20


def test_an_encrypted_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.parquet").write_bytes(b"PARE" + b"x" * 50 + b"PARE")
    assert "encrypted" in refuse_parquet(tmp_path, {"a": "number"})


def test_duplicate_parquet_columns_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, tmp_path / "r.parquet")
    assert "each column" in refuse_parquet(tmp_path, {"a": "number"})


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    parquet(tmp_path, a=pa.array([], pa.float64()))
    assert "at least one record" in refuse_parquet(tmp_path, {"a": "number"})


@pytest.mark.parametrize("cell", [float("nan"), float("inf")])
def test_a_literal_nan_or_infinity_in_parquet_is_refused(cell: float, tmp_path: Path) -> None:
    parquet(tmp_path, a=[1.0, cell])
    assert "row 2, column 'a'" in refuse_parquet(tmp_path, {"a": "number"})


def test_a_dictionary_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    cells = pa.DictionaryArray.from_arrays(pa.array(np.zeros(40_000, np.int32)), pa.array(["x" * (1 << 16)]))
    pq.write_table(pa.table({"a": cells}), tmp_path / "r.parquet", store_schema=False)  # 2.6 GB of text
    assert (tmp_path / "r.parquet").stat().st_size < 1 << 20
    before = pa.default_memory_pool().max_memory()
    assert "1024 bytes" in refuse_parquet(tmp_path, {"a": "text"})
    assert pa.default_memory_pool().max_memory() - before < 256 << 20


def test_a_parquet_file_that_gives_fewer_rows_than_it_states_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet(tmp_path, a=[1.0] * 100_000)
    batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda self, **rest: [next(batches(self, **rest))])
    assert "another number of rows" in refuse_parquet(tmp_path, {"a": "number"})


def test_only_the_wanted_parquet_columns_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path, a=[1.0, 2.0], b=["x", "y"])
    asked: list[list[str]] = []
    batches = pq.ParquetFile.iter_batches

    def watch(self: pq.ParquetFile, *, columns: list[str], **rest: int) -> object:
        asked.append(columns)
        return batches(self, columns=columns, **rest)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watch)
    read(tmp_path, {"b": "text"}, kind="parquet", path="r.parquet")
    assert asked == [["b"]]


# --- SQLite ------------------------------------------------------------------------------------------


def sqlite(directory: Path, *statements: str) -> None:
    connection = sqlite3.connect(directory / "r.sqlite")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_sqlite_cells_of_several_types_are_judged_one_by_one(tmp_path: Path) -> None:
    sqlite(tmp_path, "create table t (a, b)", "insert into t values (1, 1), ('x', 2.5), (null, '3')")
    source = {"kind": "sqlite", "path": "r.sqlite", "table": "t"}
    assert read(tmp_path, {"a": "text", "b": "number"}, **source) == {
        "a": ["1", "x", None],
        "b": [1.0, 2.5, 3.0],
    }
    assert "row 2, column 'a'" in str(refuse(tmp_path, {"a": "number"}, **source))


def test_sqlite_types_may_change_after_the_first_batch(tmp_path: Path) -> None:
    rows = "with recursive c(x) as (select 1 union all select x + 1 from c where x < 25000) select x from c"
    sqlite(
        tmp_path,
        "create table t (a, b)",
        f"insert into t select x, null from ({rows})",
        "insert into t values (0.5, 'z')",
    )
    found = read(tmp_path, {"a": "number", "b": "text"}, kind="sqlite", path="r.sqlite", table="t")
    assert found["a"][24_998:] == [24_999.0, 25_000.0, 0.5]
    assert found["b"][-2:] == [None, "z"]
    query = "select coalesce(b, a) as c from t"
    codes = read(tmp_path, {"c": "text"}, kind="sqlite", path="r.sqlite", query=query)["c"]
    assert codes[-2:] == ["25000", "z"]


@pytest.mark.parametrize(
    ("insert", "expected"),
    [("insert into t values (x'00ff')", "column 'a'"), ("insert into t values (9e999)", "row 1, column 'a'")],
)
def test_sqlite_bytes_and_infinity_are_refused(insert: str, expected: str, tmp_path: Path) -> None:
    sqlite(tmp_path, "create table t (a)", insert)
    assert expected in str(refuse(tmp_path, {"a": "number"}, kind="sqlite", path="r.sqlite", table="t"))


def test_sqlite_text_that_is_not_utf8_shows_only_as_value(tmp_path: Path) -> None:
    sqlite(tmp_path, "create table t (a)", "insert into t values (cast(x'7365637265747fe9' as text))")
    error = refuse(tmp_path, {"a": "text"}, kind="sqlite", path="r.sqlite", table="t")
    assert isinstance(error, BadData)
    assert "secret" not in error.without_cell()


def test_a_table_that_is_not_there_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    sqlite(tmp_path, "create table accounts (a)")
    assert "'accounts'" in str(refuse(tmp_path, kind="sqlite", path="r.sqlite", table="acounts"))


def test_a_table_with_odd_names_is_read(tmp_path: Path) -> None:
    sqlite(tmp_path, 'create table "t ""; x" ("a b" , "c""d")', 'insert into "t ""; x" values (1, 2)')
    found = read(tmp_path, {"a b": "number", 'c"d': "number"}, kind="sqlite", path="r.sqlite", table='t "; x')
    assert found == {"a b": [1.0], 'c"d': [2.0]}


def test_duplicate_columns_of_a_query_are_refused(tmp_path: Path) -> None:
    sqlite(tmp_path, "create table t (a, b)", "insert into t values (1, 2)")
    error = refuse(tmp_path, {"a": "number"}, kind="sqlite", path="r.sqlite", query="select a, b as a from t")
    assert "each column" in str(error)


def test_a_damaged_sqlite_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    refuse(tmp_path, kind="sqlite", path="r.sqlite", table="t")
    (tmp_path / "r.sqlite").write_bytes(CSV)
    assert "SQLite 3 file" in str(refuse(tmp_path, kind="sqlite", path="r.sqlite", table="t"))


# --- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_settings", "named"),
    [
        ({"kind": "excel", "path": "x"}, "kind"),
        ({"kind": "csv"}, "path"),
        ({"kind": "csv", "path": "x", "table": "t"}, "table"),
        ({"kind": "csv", "path": "x", "url": "postgresql://h/d"}, "url"),
        ({"kind": "csv", "path": 3}, "path"),
        ({"kind": "csv", "path": ""}, "path"),
        ({"kind": "csv", "path": "a\0b"}, "path"),
        ({"kind": "sqlite", "path": "x"}, "table"),
        ({"kind": "sqlite", "path": "x", "table": "t", "query": "select 1"}, "table"),
        ({"kind": "postgres", "table": "t"}, "url"),
        ({"kind": "postgres", "url": "postgresql://h/d", "url_env": "E", "table": "t"}, "url"),
        ({"kind": "postgres", "url": "mysql://u:hunter2@h/d", "table": "t"}, "url"),
        ({"kind": "postgres", "url": "postgresql://h/d", "path": "x", "table": "t"}, "path"),
        ({"kind": "csv", "path": "x", "query": "select 1; select 2"}, "query"),
        ({"kind": "csv", "path": "x", "query": "delete from records"}, "query"),
        ({"kind": "csv", "path": "x", "query": "selection"}, "query"),
        ({"kind": "csv", "path": "x", "query_timeout_s": 0}, "query_timeout_s"),
        ({"kind": "csv", "path": "x", "query_timeout_s": float("nan")}, "query_timeout_s"),
        ({"kind": "csv", "path": "x", "query_timeout_s": True}, "query_timeout_s"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(
    given_settings: dict[str, object], named: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        DataSource(directory=tmp_path, **given_settings)  # type: ignore[arg-type]
    assert caught.value.setting == named
    assert "hunter2" not in str(caught.value)


def test_the_address_is_not_in_the_repr(tmp_path: Path) -> None:
    source = DataSource(directory=tmp_path, kind="postgres", url="postgresql://u:hunter2@h/d", table="t")
    assert "hunter2" not in repr(source)
    assert "hunter2" not in json.dumps(str(source))


def test_an_environment_variable_that_is_not_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = DataSource(directory=tmp_path, kind="postgres", url_env="ASSAY_PG_URL", table="t")
    monkeypatch.delenv("ASSAY_PG_URL", raising=False)
    with pytest.raises(BadInput, match="ASSAY_PG_URL"):
        source.address()
    monkeypatch.setenv("ASSAY_PG_URL", "hunter2")
    with pytest.raises(BadInput) as caught:
        source.address()
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("ASSAY_PG_URL", "postgresql://u:hunter2@h/d")
    assert source.address() == "postgresql://u:hunter2@h/d"
