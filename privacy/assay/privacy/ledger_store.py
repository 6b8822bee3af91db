"""The file behind the ledger: a SQLite table whose rows are signed, chained by hash, and durable.

===============  ====================================================================================
durable          WAL with ``synchronous=FULL``: a commit that returned survives a power cut
one writer       an exclusive lock on ``<path>.lock``, freed by the operating system when the process ends
private          the file, its WAL and its lock are created with mode 0600
chained          every row names the SHA-256 of the row before it and is signed (context "ledger")
not shortened    a signed head (context "ledger-head") names the last row, replaced in the same transaction
===============  ====================================================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assay.privacy.errors import BadInput, Tampered, Unavailable
from assay.privacy.files import PRIVATE_FILE, require_private
from assay.privacy.keys import Identity, canonical_json, verify

__all__ = ["COLUMNS", "LedgerStore"]

SCHEMA_VERSION = 1
_BUSY_S = 10.0

COLUMNS = (
    "seq",
    "prev_hash",
    "kind",
    "study",
    "run",
    "round",
    "mechanism",
    "sensitivity",
    "noise_multiplier",
    "sample_rate",
    "steps",
    "outcome",
    "payload_sha256",
    "time",
)
_LISTED = ", ".join((*COLUMNS, "signature"))
"""The signed columns; ``signature`` and ``payload`` (bound by ``payload_sha256``) stand beside them."""

_NAMES = ", ".join((*COLUMNS, "payload", "signature"))
_INSERT = f"INSERT INTO ledger ({_NAMES}) VALUES ({', '.join('?' * (len(COLUMNS) + 2))})"  # noqa: S608 - constants

_SCHEMA = """
CREATE TABLE ledger (
    seq INTEGER PRIMARY KEY, prev_hash TEXT NOT NULL, kind TEXT NOT NULL, study TEXT NOT NULL,
    run TEXT NOT NULL, round INTEGER, mechanism TEXT, sensitivity REAL, noise_multiplier REAL,
    sample_rate REAL, steps INTEGER, outcome TEXT, payload_sha256 TEXT, time REAL NOT NULL,
    signature BLOB NOT NULL, payload BLOB
) STRICT;
CREATE UNIQUE INDEX once_per_round ON ledger (run, round, kind) WHERE kind IN ('charge', 'release');
CREATE UNIQUE INDEX closed_once ON ledger (run) WHERE kind = 'close';
CREATE INDEX of_run ON ledger (run, seq);
CREATE TABLE head (
    one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL, signature BLOB NOT NULL
) STRICT;
"""


class LedgerStore:
    """An open ledger file. Safe to use from several threads of one process."""

    def __init__(self, database: sqlite3.Connection, name: str, identity: Identity, held: int | None) -> None:
        self._db, self._name, self._identity, self._held = database, name, identity, held
        self._mutex = threading.RLock()
        # The first row's predecessor: binds the chain to its holder.
        self._genesis = hashlib.sha256(b"assay ledger v1" + identity.public).hexdigest()

    @classmethod
    def open(cls, name: str, identity: Identity, *, read_only: bool) -> LedgerStore:
        """Open the file ``name`` (or ``":memory:"``), creating it unless ``read_only``.

        Raises:
            BadInput: not a ledger, one of a newer Assay, missing (``read_only``) or readable by others.
            Tampered: not a readable SQLite file.
            Unavailable: another process holds it, or the file cannot be read or written.
        """
        held = None if read_only or name == ":memory:" else _lock(Path(name))
        database = None
        try:
            with _storage_errors(name):
                database = _connect(name, read_only=read_only)
                _prepare(database, name, read_only=read_only)
        except BaseException:
            if database is not None:
                database.close()
            if held is not None:
                os.close(held)
            raise
        return cls(database, name, identity, held)

    def close(self) -> None:
        """Close the file and let go of the lock."""
        with self._mutex:
            if self._held is not None:
                self.fold()
            self._db.close()
            if self._held is not None:
                os.close(self._held)
                self._held = None

    def fold(self) -> None:
        """Bring the write-ahead log home, so that a copy of the one file is a copy of the ledger.

        Where a reader is in the way, the log stays for the next time; nothing depends on it.
        """
        with self._mutex, contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextlib.contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[None]:
        """Do all of the block durably, or none of it; a reading block sees one moment."""
        with self._mutex, _storage_errors(self._name):
            self._db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def rows(self, run: str | None = None) -> list[sqlite3.Row]:
        """Return all rows, or those of one run, oldest first, without payloads; inside a transaction."""
        if run is None:
            return self._db.execute(f"SELECT {_LISTED} FROM ledger ORDER BY seq").fetchall()  # noqa: S608 - our names
        query = f"SELECT {_LISTED} FROM ledger WHERE run = ? ORDER BY seq"  # noqa: S608 - our names
        return self._db.execute(query, (run,)).fetchall()

    def row(self, run: str, number: int, kind: str) -> sqlite3.Row | None:
        """Return the charge or the release of round ``number``, if there is one; inside a transaction."""
        query = "SELECT * FROM ledger WHERE run = ? AND round = ? AND kind = ?"
        found: sqlite3.Row | None = self._db.execute(query, (run, number, kind)).fetchone()
        return found

    def last_time(self) -> float:
        """Return the time of the newest row, minus infinity where there is none; inside a transaction."""
        newest = self._db.execute("SELECT time FROM ledger ORDER BY seq DESC LIMIT 1").fetchone()
        return newest["time"] if newest else -math.inf

    def append(self, *, payload: bytes | None = None, **values: Any) -> None:
        """Write one signed row and the head that names it; inside a writing transaction.

        Args:
            payload: bytes to keep beside the row.
            values: columns of :data:`COLUMNS`; those not given stay empty.
        """
        head = self._db.execute("SELECT seq, hash FROM head").fetchone()
        seq, last = (head["seq"], head["hash"]) if head else (0, self._genesis)
        row = dict.fromkeys(COLUMNS) | values
        row |= {"seq": seq + 1, "prev_hash": last, "payload_sha256": _digest(payload)}
        body = _body(row)
        signature = self._identity.sign("ledger", body)
        self._db.execute(_INSERT, [*(row[column] for column in COLUMNS), payload, signature])
        digest = hashlib.sha256(body).hexdigest()
        signature = self._identity.sign("ledger-head", _head_body(seq + 1, digest))
        self._db.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?)", (seq + 1, digest, signature))

    def verify(self) -> None:
        """Check every signature, hash and link, the stored payloads and the head.

        Raises:
            Tampered: names the first row that is not what the holder wrote.
        """
        with self.transaction(write=False):
            seq, last = self._verify_rows()
            self._verify_head(seq, last, self._db.execute("SELECT * FROM head").fetchone())

    def _verify_rows(self) -> tuple[int, str]:
        """Check row after row, so that no more than one payload is in memory; return the last one's hash."""
        seq, last = 0, self._genesis
        for row in self._db.execute("SELECT * FROM ledger ORDER BY seq"):
            seq += 1
            what = f"{self._name}: row {seq}"
            if row["seq"] != seq:
                raise Tampered(f"{what} is missing")
            verify(self._identity.public, "ledger", _body(row), row["signature"], what=what)
            if row["prev_hash"] != last:
                raise Tampered(f"{what} does not follow the row before it")
            if row["payload_sha256"] != _digest(row["payload"]):
                raise Tampered(f"{what}: the released bytes are not those that were signed")
            last = hashlib.sha256(_body(row)).hexdigest()
        return seq, last

    def _verify_head(self, seq: int, last: str, head: sqlite3.Row | None) -> None:
        if head is None:
            if seq:
                raise Tampered(f"{self._name}: the head is missing after row {seq}")
            return
        body = _head_body(head["seq"], head["hash"])
        verify(self._identity.public, "ledger-head", body, head["signature"], what=f"{self._name}: the head")
        if head["seq"] > seq:
            raise Tampered(f"{self._name}: row {seq + 1} is missing; the head names row {head['seq']}")
        if (head["seq"], head["hash"]) != (seq, last):
            raise Tampered(f"{self._name}: row {head['seq'] + 1} stands after the head")


def _body(row: sqlite3.Row | dict[str, Any]) -> bytes:
    """Return the bytes of a row that are hashed and signed: every column but payload and signature."""
    return canonical_json({column: row[column] for column in COLUMNS})


def _head_body(seq: int, digest: str) -> bytes:
    return canonical_json({"hash": digest, "seq": seq})


def _digest(payload: bytes | None) -> str | None:
    return None if payload is None else hashlib.sha256(payload).hexdigest()


def _lock(path: Path) -> int:
    """Take the lock file beside ``path``; the operating system frees it when the process ends."""
    try:
        held = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
    except OSError as error:
        raise Unavailable(f"{path}: the ledger cannot be locked: {error.strerror}") from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise Unavailable(f"{path} is held by another process; stop the other daemon first") from None
    return held


def _connect(name: str, *, read_only: bool) -> sqlite3.Connection:
    if name == ":memory:":
        target = name
    else:
        path = Path(name).absolute()
        if not read_only:
            # Created before SQLite sees it, so that it and its WAL are never readable by others.
            _create(path)
        require_private(path)
        target = f"{path.as_uri()}?mode={'ro' if read_only else 'rw'}"
    database = sqlite3.connect(
        target, timeout=_BUSY_S, isolation_level=None, check_same_thread=False, uri=True
    )
    database.row_factory = sqlite3.Row
    return database


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE))
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _prepare(database: sqlite3.Connection, name: str, *, read_only: bool) -> None:
    """Set durability, and create the tables in a new file or check the version of an old one."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    new = version == 0 and tables == 0 and not read_only
    if not new and version != SCHEMA_VERSION:
        raise BadInput(
            "ledger version", value=version, allowed=str(SCHEMA_VERSION), where=name,
            remedy="Use the version of Assay that wrote it, or a newer one",
        )  # fmt: skip
    if not read_only:
        database.execute("PRAGMA journal_mode = WAL")
        # With NORMAL an acknowledged charge can be lost in a power cut.
        database.execute("PRAGMA synchronous = FULL")
    if new:
        database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


@contextlib.contextmanager
def _storage_errors(name: str) -> Iterator[None]:
    """Say in Assay's terms what SQLite found: a machine that cannot store, or a file that is broken."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise Unavailable(
            f"{name}: the ledger cannot be read or written ({error}); nothing is done"
        ) from None
    except sqlite3.DatabaseError as error:
        raise Tampered(f"{name}: not a readable ledger ({error})") from None
