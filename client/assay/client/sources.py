"""Where a holder's records lie, and how just the wanted columns of them are read.

    DataSource (settings)  ->  open_source  ->  Source.read(wanted)  ->  {column: numpy array}

Four kinds of source share one small protocol, :class:`Reader`. Everything that may be wrong with the
records is a :class:`BadData`: one line that names file, row or column, and what to do. A cell is shown
only as ``BadData.value``, which logs and messages leave out.

A record is read by a rule that does not depend on other records: by the type that the source declares, the
kind that the study asks for, and the cell itself (:mod:`assay.client.cells`). The privacy accounting
assumes it, and it assumes the same of the holder's own query, table or view: each row comes from the data
of one person, without aggregate, window, DISTINCT, LIMIT, dependence on the order of rows, or a subquery
over other persons (:mod:`assay.client.queries`). A join is fine as long as it joins data of one person.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from assay.client.queries import require_row_by_row, require_single_select
from assay.privacy.errors import BadData, BadInput

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DataSource", "Reader", "Source", "open_source"]

KINDS = ("csv", "parquet", "sqlite", "postgres")
# A longer cell is not a category, a number or an identifier, and would let a small file fill the memory.
MAX_CELL_BYTES = 1024
MAX_TIMEOUT_S = 86_400


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The ``[data]`` section of ``client.toml``.

    Attributes:
        directory: what a relative ``path`` is relative to.
        kind: ``"csv"``, ``"parquet"``, ``"sqlite"`` or ``"postgres"``.
        path: the file; not for postgres.
        url: ``postgresql://...``; never shown, since it may hold a password.
        url_env: name of the environment variable that holds the url instead.
        table: table or ``schema.table`` (sqlite, postgres), instead of ``query``.
        query: one SELECT or WITH statement that works row by row; for csv and parquet the table is called
            ``records``.
        query_timeout_s: longest time a query may take, above 0, at most a day.
    """

    directory: Path
    kind: str
    path: str | None = None
    url: str | None = field(default=None, repr=False)
    url_env: str | None = None
    table: str | None = None
    query: str | None = None
    query_timeout_s: float = 600

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput("kind", value=self.kind, allowed=f"one of {', '.join(KINDS)}")
        for name in ("path", "url", "url_env", "table", "query"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip() or "\0" in value):
                raise BadInput(name, allowed="a non-empty string")
        self._check_place()
        if self.query is not None:
            require_single_select(self.query)
            require_row_by_row(self.query)
        timeout = self.query_timeout_s
        number = (
            isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and math.isfinite(timeout)
        )
        if not number or not 0 < timeout <= MAX_TIMEOUT_S:
            raise BadInput(
                "query_timeout_s", value=timeout, allowed=f"seconds, above 0, at most {MAX_TIMEOUT_S}"
            )

    def _check_place(self) -> None:
        database = self.kind in ("sqlite", "postgres")
        if self.kind == "postgres":
            self._exactly_one("url", "url_env")
            self._none_of("path")
            if self.url is not None and not self.url.startswith(("postgresql://", "postgres://")):
                raise BadInput("url", allowed="postgresql://USER@HOST/DATABASE")
        else:
            self._exactly_one("path")
            self._none_of("url", "url_env")
        if database:
            self._exactly_one("table", "query")
        else:
            self._none_of("table")

    def _exactly_one(self, *names: str) -> None:
        if sum(getattr(self, name) is not None for name in names) != 1:
            wanted = " or ".join(names)
            raise BadInput(names[0], allowed=f"{wanted}, exactly one of them, for kind {self.kind}")

    def _none_of(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise BadInput(name, allowed=f"nothing for kind {self.kind}", remedy="Remove it")

    @property
    def file(self) -> Path:
        """The record file of a csv, parquet or sqlite source."""
        return self.directory / (self.path or "")

    def address(self) -> str:
        """Return the database address. It may hold a password: it goes to the driver and nowhere else.

        Raises:
            BadInput: the environment variable ``url_env`` is not set or holds no address.
        """
        if self.url is not None:
            return self.url
        name = self.url_env or ""
        address = os.environ.get(name, "")
        if not address.startswith(("postgresql://", "postgres://")):
            raise BadInput(
                "url_env",
                value=name,
                allowed="an environment variable that holds postgresql://USER@HOST/DATABASE",
                remedy="Set it for the process that reads the records",
            )
        return address


class Reader(Protocol):
    """What each kind of source does. Raises :class:`BadData` for everything that is wrong with it.

    Attributes:
        where: what messages call the source; holds no password.
        columns: names of its columns, in its order.
    """

    where: str
    columns: tuple[str, ...]

    def fetch(self, names: Sequence[str]) -> pa.Table:
        """Return these columns, in this order, for all rows; ``names`` is not empty and all exist."""

    def close(self) -> None:
        """Give back files and connections."""


class Source:
    """An open source.

    Attributes:
        where: what messages call it; holds no password.
        columns: names of its columns, each once.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.where = reader.where
        self.columns = reader.columns
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise BadData(
                    f"column {name!r}",
                    where=self.where,
                    allowed="each column name once",
                    remedy="Rename or drop the second one",
                )

    def require(self, name: str) -> None:
        """Refuse a source that has no column of this name.

        Raises:
            BadData: with the nearest column that exists.
        """
        if name not in self.columns:
            nearest = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.0)
            hint = f"the nearest one is {nearest[0]!r}" if nearest else "there is none at all"
            raise BadData(f"column {name!r}", where=self.where, allowed="a column that exists", remedy=hint)

    def read(self, wanted: Mapping[str, str]) -> dict[str, NDArray[Any]]:
        """Read these columns and no others.

        Args:
            wanted: column name to ``"number"`` or ``"integer"`` (float64 [N], NaN = missing), ``"label"``
                (float64 [N] of 0 and 1), ``"text"`` or ``"date"`` (object [N] of str, None = missing); at
                least one column.

        Raises:
            BadData: a column is missing or holds something else, or there are no rows.
        """
        from assay.models.columns import typed_column

        for name in wanted:
            self.require(name)
        table = self._reader.fetch(tuple(wanted))
        if table.num_rows == 0:
            raise BadData("rows", where=self.where, allowed="at least one record")
        for name in wanted:
            _check_cells(name, table.column(name), self.where)
        return {
            name: typed_column(table.column(name), name, kind, where=self.where)
            for name, kind in wanted.items()
        }


def _check_cells(name: str, column: pa.ChunkedArray, where: str) -> None:
    """Refuse nested and binary columns, and cells that are too long; looks at dictionaries undecoded."""
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_nested(plain) or pa.types.is_binary(plain) or pa.types.is_large_binary(plain):
        raise BadData(
            f"column {name!r}",
            where=where,
            allowed=f"plain numbers or text, not {plain}",
            remedy="Store one value per cell",
        )
    if not (pa.types.is_string(plain) or pa.types.is_large_string(plain)):
        return
    start = 0
    for chunk in column.chunks:
        texts = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        longest = pc.max(pc.binary_length(texts)).as_py()
        if longest is not None and longest > MAX_CELL_BYTES:
            raise BadData(
                f"column {name!r}, rows {start + 1} to {start + len(chunk)}",
                where=where,
                allowed=f"cells of at most {MAX_CELL_BYTES} bytes",
            )
        start += len(chunk)


@contextmanager
def open_source(settings: DataSource) -> Iterator[Source]:
    """Open a source for reading, and close it at the end of the ``with`` block.

    Raises:
        BadInput: the settings name nothing that can be read (:class:`BadData`: it is not what it must be).
        Unavailable: a database does not answer in time.
    """
    reader = _reader(settings)
    try:
        yield Source(reader)
    finally:
        reader.close()


def _reader(settings: DataSource) -> Reader:
    from assay.client import databases
    from assay.models import tabular

    if settings.kind == "postgres":
        from assay.client import postgres

        return postgres.open_postgres(settings)
    if settings.kind == "sqlite":
        return databases.open_sqlite(settings)
    reader = (
        tabular.CsvReader(settings.file) if settings.kind == "csv" else tabular.ParquetReader(settings.file)
    )
    return reader if settings.query is None else databases.query_file(reader, settings)
