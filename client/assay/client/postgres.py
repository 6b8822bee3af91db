"""Records in PostgreSQL, read in one read-only transaction through a server-side cursor.

A password is in the address alone: the address goes to the driver, and messages name user, host and
database. The driver's own messages may quote a cell, so they travel only as ``BadData.value``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from assay.client.cells import Rows
from assay.client.databases import (
    BATCH_ROWS,
    CONNECT_TIMEOUT_S,
    bad_query,
    projection,
    statement_of,
    too_slow,
)
from assay.client.sources import DataSource, Reader
from assay.privacy.errors import AssayError, BadData, BadInput, Unavailable

__all__ = ["open_postgres"]

# A connection that went silent is noticed after 30 + 3 * 10 seconds.
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
# PostgreSQL's object identifier of the type boolean, the same in every server.
_BOOLEAN = 16


def open_postgres(settings: DataSource) -> Reader:
    """Connect to PostgreSQL for one read-only transaction.

    Raises:
        BadInput: psycopg is not installed, or the address is none.
        BadData: the table or query is not there.
        Unavailable: the server does not answer, or does not let this user in.
    """
    try:
        import psycopg
    except ImportError:
        raise BadInput(
            "data.kind", value="postgres", allowed="csv, parquet or sqlite on this machine",
            remedy="For PostgreSQL run: pip install 'assay[postgres]'",
        ) from None  # fmt: skip
    address = settings.address()
    parts = _address_parts(address)
    where = _place(parts)
    try:
        connection = psycopg.connect(
            address,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="assay",
            client_encoding="utf8",
            **_KEEPALIVE,
        )
    except psycopg.Error as error:
        raise Unavailable(f"{where}: no connection; {_without_password(str(error), parts)}") from None
    try:
        return _PostgresReader(connection, statement_of(settings), where, settings.query_timeout_s)
    except AssayError:
        connection.close()
        raise


def _address_parts(address: str) -> dict[str, Any]:
    from psycopg import Error, conninfo

    try:
        parts: dict[str, Any] = conninfo.conninfo_to_dict(address)
    except Error:
        parts = {"port": "none"}
    # An "@" or "/" in a password that is not percent-encoded moves part of it into the host, port or
    # database, and from there it would get into messages.
    shown = "".join(str(parts.get(name, "")) for name in ("user", "host", "dbname"))
    if "@" in shown or not re.fullmatch(r"[0-9,]*", str(parts.get("port", ""))):
        raise BadInput(
            "data.url",
            allowed="postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
            remedy='In the password write "@" as %40, "/" as %2F, ":" as %3A and "%" as %25',
        )
    return parts


def _place(parts: dict[str, Any]) -> str:
    user, host = parts.get("user", ""), parts.get("host", "localhost")
    return f"postgresql://{user}{'@' if user else ''}{host}/{parts.get('dbname', '')}"


def _without_password(message: str, parts: dict[str, Any]) -> str:
    line = message.strip().splitlines()[0] if message.strip() else "unknown reason"
    for secret in (parts.get("password"), parts.get("sslpassword")):
        line = line.replace(str(secret), "***") if secret else line
    return line


class _PostgresReader:
    """One SELECT through a server-side cursor, in a transaction that the server keeps read-only."""

    def __init__(
        self, connection: Any, statement: str, where: str, timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.where = where
        self._connection, self._statement = connection, statement
        self._clock, self._timeout_s = clock, timeout_s
        self._deadline = clock() + timeout_s
        connection.read_only = True
        with self._errors():
            milliseconds = str(max(1, int(timeout_s * 1000)))
            connection.execute("select set_config('statement_timeout', %s, false)", (milliseconds,))
            with connection.cursor(name="columns") as cursor:
                cursor.execute(statement)
                self.columns: tuple[str, ...] = tuple(column.name for column in cursor.description)

    def fetch(self, names: Sequence[str]) -> pa.Table:
        """Return these columns of the statement's rows."""
        with self._errors(), self._connection.cursor(name="records") as cursor:
            cursor.execute(projection(names, self._statement))
            booleans = {column.name for column in cursor.description if column.type_code == _BOOLEAN}
            rows = Rows(names, self.where, booleans=booleans)
            while batch := cursor.fetchmany(BATCH_ROWS):
                rows.add(batch)
                if self._clock() > self._deadline:
                    raise too_slow(self.where, self._timeout_s)
        return rows.table()

    def close(self) -> None:
        """End the transaction and close the connection."""
        self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import psycopg

        try:
            yield
        except UnicodeDecodeError:
            raise BadData("text of the query or table", where=self.where, allowed="UTF-8 text") from None
        except psycopg.errors.QueryCanceled:
            raise too_slow(self.where, self._timeout_s) from None
        except psycopg.OperationalError:
            raise Unavailable(f"{self.where}: the connection was lost; try again") from None
        except psycopg.Error as error:
            raise bad_query(self.where, error.diag.message_primary or type(error).__name__) from None
