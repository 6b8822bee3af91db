"""Records in an SQLite file, and SQL queries over CSV and Parquet files. Nothing here can write.

A driver's message may quote a cell, so it travels only as ``BadData.value``.
"""

from __future__ import annotations

import difflib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assay.client.sources import DataSource, Reader
from assay.models.tabular import require_file
from assay.privacy.errors import AssayError, BadData, Unavailable

__all__ = [
    "BATCH_ROWS",
    "CONNECT_TIMEOUT_S",
    "Rows",
    "bad_query",
    "open_sqlite",
    "projection",
    "query_file",
    "statement_of",
    "too_slow",
]

BATCH_ROWS = 10_000
CONNECT_TIMEOUT_S = 10
_READ_ONLY = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_STEPS_BETWEEN_CLOCK_LOOKS = 10_000


class Rows:
    """Rows of Python values, gathered into Arrow columns: booleans, numbers or text, null for None."""

    def __init__(self, names: Sequence[str], where: str) -> None:
        self._names, self._where = names, where
        self._batches: list[list[pa.Array]] = [[] for _ in names]

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Take a batch of rows, at least one."""
        for name, batches, values in zip(self._names, self._batches, zip(*rows, strict=True), strict=True):
            batches.append(self._array(name, values))

    def table(self) -> pa.Table:
        """Return all rows."""
        columns = [pa.chunked_array(_one_type(batches)) for batches in self._batches]
        return pa.table(columns, names=list(self._names))

    def _array(self, name: str, values: Sequence[Any]) -> pa.Array:
        kinds = {type(value) for value in values} - {type(None)}
        if kinds & {bytes, bytearray, memoryview, list, dict, tuple}:
            raise BadData(
                f"column {name!r}",
                where=self._where,
                allowed="plain numbers or text, not bytes, arrays or documents",
                remedy="Select one value per cell",
            )
        try:
            if kinds <= {bool} or kinds <= {int}:
                return pa.array(values)
            if kinds <= {bool, int, float, Decimal}:
                return pa.array([None if value is None else float(value) for value in values], pa.float64())
        except (OverflowError, pa.ArrowInvalid):
            raise BadData(f"column {name!r}", where=self._where, allowed="numbers within float64") from None
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _one_type(arrays: list[pa.Array]) -> list[pa.Array]:
    kinds = {array.type for array in arrays} - {pa.null()}
    if not kinds:
        return arrays or [pa.nulls(0)]
    mixed = pa.string() if pa.string() in kinds else pa.float64()
    wanted = kinds.pop() if len(kinds) == 1 else mixed
    return [array.cast(wanted, safe=False) for array in arrays]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def projection(names: Sequence[str], statement: str) -> str:
    """Narrow a statement to the wanted columns; the line feed ends a comment at its end."""
    # The names are identifiers, quoted; the statement is the holder's own and runs read-only.
    return f"select {', '.join(map(_quoted, names))} from (\n{statement}\n) as records"  # noqa: S608


def statement_of(settings: DataSource) -> str:
    """Return the query, or the SELECT of the table, without a semicolon at its end."""
    if settings.query is not None:
        return settings.query.strip().rstrip(";")
    # PostgreSQL tables may be given as schema.table.
    parts = (settings.table or "").split(".") if settings.kind == "postgres" else [settings.table or ""]
    return f"select * from {'.'.join(map(_quoted, parts))}"  # noqa: S608


class _SqliteReader:
    """One SELECT over an SQLite connection that is told to refuse everything else."""

    def __init__(
        self, connection: sqlite3.Connection, statement: str, where: str, timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.where = where
        self._connection, self._statement = connection, statement
        deadline = clock() + timeout_s
        self._late: Callable[[], bool] = lambda: clock() > deadline
        self._timeout_s = timeout_s
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(self._late, _STEPS_BETWEEN_CLOCK_LOOKS)
        with self._errors(), _closing(connection.execute(statement)) as cursor:
            self.columns: tuple[str, ...] = tuple(column[0] for column in cursor.description)

    def fetch(self, names: Sequence[str]) -> pa.Table:
        """Return these columns of the statement's rows."""
        rows = Rows(names, self.where)
        with (
            self._errors(),
            _closing(self._connection.execute(projection(names, self._statement))) as cursor,
        ):
            while batch := cursor.fetchmany(BATCH_ROWS):
                rows.add(batch)
        return rows.table()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if self._late():
                raise too_slow(self.where, self._timeout_s) from None
            raise bad_query(self.where, str(error)) from None


@contextmanager
def _closing(cursor: sqlite3.Cursor) -> Iterator[sqlite3.Cursor]:
    try:
        yield cursor
    finally:
        cursor.close()


def _authorize(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _READ_ONLY else sqlite3.SQLITE_DENY


def bad_query(where: str, message: str) -> BadData:
    """Return the error of a statement that the database refuses; ``message`` is shown as a cell is."""
    return BadData(
        "data.query or data.table",
        where=where,
        value=message,
        allowed="a SELECT that the database can run, read-only",
    )


def too_slow(where: str, timeout_s: float) -> Unavailable:
    """Return the error of a query that takes too long."""
    return Unavailable(
        f"{where}: no answer within {timeout_s:g} s; raise data.query_timeout_s or select less"
    )


def open_sqlite(settings: DataSource) -> Reader:
    """Open an SQLite file read-only; it is never created or changed.

    Raises:
        BadData: the file is missing or no SQLite file, or the table or query is not there.
    """
    path = settings.file
    if not require_file(path).startswith(b"SQLite format 3\0"):
        raise BadData(
            "file", where=path, allowed="an SQLite 3 file", remedy="Look at data.kind and data.path"
        )
    connection = _connect_read_only(path)
    try:
        if settings.table is not None:
            _require_table(connection, settings.table, path)
        return _SqliteReader(connection, statement_of(settings), str(path), settings.query_timeout_s)
    except AssayError:
        connection.close()
        raise


def _connect_read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=CONNECT_TIMEOUT_S)


def _require_table(connection: sqlite3.Connection, table: str, path: Path) -> None:
    try:
        rows = connection.execute("select name from sqlite_master where type in ('table', 'view')").fetchall()
    except sqlite3.Error as error:
        raise bad_query(str(path), str(error)) from None
    tables = [name for (name,) in rows]
    if table not in tables:
        nearest = difflib.get_close_matches(table, tables, n=1, cutoff=0.0)
        remedy = f"The nearest one is {nearest[0]!r}" if nearest else "It has none at all"
        raise BadData("data.table", value=table, where=path, allowed="a table that exists", remedy=remedy)


def query_file(reader: Reader, settings: DataSource) -> Reader:
    """Put the columns that a query uses into a database in memory and run it there.

    Numbers in a CSV file become numbers, unless a cell of the column has a leading zero (``007`` is a
    code, not the number 7) or is no number: then the whole column stays text.

    Raises:
        BadData: the query does not fit the file.
    """
    connection = sqlite3.connect(":memory:")
    try:
        used = _used_columns(connection, reader, settings)
        _fill(connection, reader, used)
        return _SqliteReader(connection, statement_of(settings), reader.where, settings.query_timeout_s)
    except AssayError:
        connection.close()
        raise
    finally:
        reader.close()


def _used_columns(connection: sqlite3.Connection, reader: Reader, settings: DataSource) -> list[str]:
    """Let SQLite plan the query on an empty table, without running it, and say which columns it reads."""
    used: set[str | None] = set()

    def watch(action: int, table: str | None, column: str | None, *_: str | None) -> int:
        if action == sqlite3.SQLITE_READ:
            used.add(column)
        return _authorize(action)

    try:
        connection.execute(f"create table records ({', '.join(map(_quoted, reader.columns))})")
        connection.set_authorizer(watch)
        connection.execute(f"explain {statement_of(settings)}").close()
        connection.set_authorizer(None)
    except sqlite3.Error as error:
        raise bad_query(reader.where, str(error)) from None
    # A query such as count(*) reads no column, but it still needs the rows.
    return [name for name in reader.columns if name in used] or [reader.columns[0]]


def _fill(connection: sqlite3.Connection, reader: Reader, names: list[str]) -> None:
    table = reader.fetch(names)
    ready = pa.table([_sql_values(table.column(name), name, reader.where) for name in names], names=names)
    insert = f"insert into records ({', '.join(map(_quoted, names))}) values ({', '.join('?' * len(names))})"  # noqa: S608
    with connection:
        for batch in ready.to_batches(max_chunksize=BATCH_ROWS):
            connection.executemany(insert, _tuples(batch))


def _tuples(batch: pa.RecordBatch) -> Iterable[tuple[Any, ...]]:
    return zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _sql_values(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Return whole numbers, float64 or text, which is what SQLite can hold."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = _numbers_if_all_are(column)
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.int64())
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_uint64(kind):
        column = column.cast(pa.float64(), safe=False)
    elif not pa.types.is_integer(kind):
        if pa.types.is_nested(kind) or pa.types.is_binary(kind):
            raise BadData(f"column {name!r}", where=where, allowed=f"plain numbers or text, not {kind}")
        column = column.cast(pa.string())
    if pa.types.is_floating(column.type):
        # SQLite would store NaN as NULL: a literal NaN must not become "missing" in silence.
        wrong = pc.fill_null(pc.invert(pc.is_finite(column)), False).to_numpy()
        if wrong.any():
            row = int(wrong.argmax())
            raise BadData(
                f"row {row + 1}, column {name!r}", where=where, allowed="a finite number or an empty cell"
            )
    return column


def _numbers_if_all_are(column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = pc.utf8_trim_whitespace(column)
    if pc.any(pc.match_substring_regex(text, r"^[+-]?0\d")).as_py():
        return column
    for kind in (pa.int64(), pa.float64()):
        try:
            return text.cast(kind)
        except pa.ArrowInvalid:
            continue
    return column
