"""Records in an SQLite file, and SQL queries over CSV and Parquet files. Nothing here can write.

A driver's message may quote a cell, so it travels only as ``BadData.value``.
"""

from __future__ import annotations

import difflib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from assay.client.cells import Rows, sql_values
from assay.client.sources import DataSource, Reader
from assay.models.tabular import require_file
from assay.privacy.errors import AssayError, BadData, Unavailable

__all__ = [
    "BATCH_ROWS",
    "CONNECT_TIMEOUT_S",
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
        with self._errors(), closing(connection.execute(statement)) as cursor:
            self.columns: tuple[str, ...] = tuple(column[0] for column in cursor.description)

    def fetch(self, names: Sequence[str]) -> pa.Table:
        """Return these columns of the statement's rows."""
        rows = Rows(names, self.where)
        with (
            self._errors(),
            closing(self._connection.execute(projection(names, self._statement))) as cursor,
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

    Each cell of a CSV file becomes a number or stays text by itself (:mod:`assay.client.cells`); a Parquet
    column keeps the type that the file declares.

    Raises:
        BadData: the query does not fit the file.
    """
    connection = sqlite3.connect(":memory:")
    try:
        _fill(connection, reader, _used_columns(reader, settings), typed=settings.kind == "parquet")
        return _SqliteReader(connection, statement_of(settings), reader.where, settings.query_timeout_s)
    except AssayError:
        connection.close()
        raise
    finally:
        reader.close()


def _used_columns(reader: Reader, settings: DataSource) -> list[str]:
    """Let SQLite plan the query on an empty table, without running it, and say which columns it reads."""
    used: set[str | None] = set()

    def watch(action: int, table: str | None, column: str | None, *_: str | None) -> int:
        if action == sqlite3.SQLITE_READ:
            used.add(column)
        return _authorize(action)

    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute(f"create table records ({', '.join(map(_quoted, reader.columns))})")
            connection.set_authorizer(watch)
            connection.execute(f"explain {statement_of(settings)}").close()
        except sqlite3.Error as error:
            raise bad_query(reader.where, str(error)) from None
    # A query such as "select 1" reads no column, but it still needs the rows.
    return [name for name in reader.columns if name in used] or [reader.columns[0]]


def _fill(connection: sqlite3.Connection, reader: Reader, names: list[str], *, typed: bool) -> None:
    table = reader.fetch(names)
    if typed:
        columns = [_sql_column(table.column(name), name, reader.where) for name in names]
        table = pa.table(columns, names=names)
    # Only text that the file declares makes SQLite compare as text: the text of a CSV file declares nothing.
    texts = {field.name for field in table.schema if typed and pa.types.is_string(field.type)}
    declared = (f"{_quoted(name)}{' text' if name in texts else ''}" for name in reader.columns)
    connection.execute(f"create table records ({', '.join(declared)})")
    insert = f"insert into records ({', '.join(map(_quoted, names))}) values ({', '.join('?' * len(names))})"  # noqa: S608
    first_row = 1
    with connection:
        for batch in table.to_batches(max_chunksize=BATCH_ROWS):
            cells = [column.to_pylist() for column in batch.columns]
            if not typed:
                cells = [
                    sql_values(column, name, reader.where, first_row=first_row)
                    for name, column in zip(names, cells, strict=True)
                ]
            connection.executemany(insert, zip(*cells, strict=True))
            first_row += batch.num_rows


def _sql_column(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Return int64, float64 or text, which is what SQLite can hold; the column's type alone decides which."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise BadData(f"column {name!r}", where=where, allowed=f"plain numbers or text, not {kind}")
    if pa.types.is_floating(kind) or (pa.types.is_decimal(kind) and kind.scale > 0):
        return _finite(column.cast(pa.float64(), safe=False), name, where)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            # float64 would hold them, and give two identifiers one value.
            raise BadData(
                f"column {name!r}", where=where, allowed="whole numbers of 64 bits", remedy="Store it as text"
            ) from None
    return column.cast(pa.string())


def _finite(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Refuse NaN, which SQLite would store as NULL: it must not become "missing" in silence."""
    wrong = pc.fill_null(pc.invert(pc.is_finite(column)), False).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise BadData(
            f"row {row + 1}, column {name!r}", where=where, allowed="a finite number or an empty cell"
        )
    return column
