"""The file behind the ledger: a SQLite table whose rows are signed, chained by hash, and durable.

===============  ====================================================================================
durable          WAL with ``synchronous=FULL``: a commit that returned survives a power cut
one writer       an exclusive lock on ``<path>.lock``, freed by the operating system when the process ends
private          the file, its WAL and its lock are created with mode 0600
chained          every row names the SHA-256 of the row before it
written once     every row is signed (context "ledger") with a key of its own, the **release key**, which
                 the row before it names in ``next_key``; row 1 is signed with the holder's identity
not shortened    a head signed by the identity (context "ledger-head") names the last row, replaced in the
                 same transaction
===============  ====================================================================================

The release key ratchets forward: the key of the next row is drawn when a row is written, and takes the place
of the key that signed it in the same transaction. The write-ahead log, which holds the page as it was, is
emptied behind every release and close (:meth:`LedgerStore.fold`); the payloads that a close erased go with
it. So neither the identity key nor today's files are enough to write another row in the place of the last
release or of any row before it, and two different rows signed by one release key prove that a ledger was
continued twice, from a copy.
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

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from assay.privacy.errors import BadInput, Tampered, Unavailable
from assay.privacy.files import PRIVATE_FILE, require_private
from assay.privacy.keys import Identity, canonical_json, verify

__all__ = ["COLUMNS", "LedgerStore", "create_private", "row_hash"]

SCHEMA_VERSION = 2
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
    "noise_share",
    "question",
    "outcome",
    "payload_sha256",
    "log_head",
    "time",
    "next_key",
)
"""The signed columns; ``signature`` and ``payload`` (bound by ``payload_sha256``) stand beside them."""
_LISTED = ", ".join((*COLUMNS, "signature"))

_NAMES = ", ".join((*COLUMNS, "payload", "signature"))
_INSERT = f"INSERT INTO ledger ({_NAMES}) VALUES ({', '.join('?' * (len(COLUMNS) + 2))})"  # noqa: S608 - constants

_SCHEMA = """
CREATE TABLE ledger (
    seq INTEGER PRIMARY KEY, prev_hash TEXT NOT NULL, kind TEXT NOT NULL, study TEXT NOT NULL,
    run TEXT NOT NULL, round INTEGER, mechanism TEXT, sensitivity REAL, noise_multiplier REAL,
    sample_rate REAL, steps INTEGER, noise_share REAL, question TEXT, outcome TEXT, payload_sha256 TEXT,
    log_head TEXT, time REAL NOT NULL, next_key TEXT NOT NULL, signature BLOB NOT NULL, payload BLOB
) STRICT;
CREATE UNIQUE INDEX once_per_round ON ledger (run, round, kind) WHERE kind IN ('charge', 'release', 'open');
CREATE UNIQUE INDEX closed_once ON ledger (run) WHERE kind = 'close';
CREATE TABLE head (
    one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL, signature BLOB NOT NULL
) STRICT;
CREATE TABLE release_key (one INTEGER PRIMARY KEY CHECK (one = 1), private BLOB NOT NULL) STRICT;
"""


class LedgerStore:
    """An open ledger file. Safe to use from several threads of one process."""

    def __init__(self, database: sqlite3.Connection, name: str, identity: Identity, held: int | None) -> None:
        self._db, self._name, self._identity, self._held = database, name, identity, held
        self._mutex = threading.RLock()
        # The first row's predecessor: binds the chain to its holder.
        self._genesis = hashlib.sha256(b"assay ledger v2" + identity.public).hexdigest()

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
        store = cls(database, name, identity, held)
        if held is not None:
            store.fold()  # what a crash left
        return store

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
        """Bring the write-ahead log home: it holds release keys and payloads that are gone by now.

        It also makes a copy of the one file a copy of the ledger. Not behind every row, since it costs three
        more disk flushes. Where a reader is in the way, the log stays for the next time: a release does not
        wait for somebody who looks at the list.
        """
        with self._mutex:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("PRAGMA busy_timeout = 0")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.execute(f"PRAGMA busy_timeout = {int(_BUSY_S * 1000)}")

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

    def rows(self, after: int = 0) -> list[sqlite3.Row]:
        """Return the rows behind row ``after``, oldest first, without payloads; inside a transaction."""
        query = f"SELECT {_LISTED} FROM ledger WHERE seq > ? ORDER BY seq"  # noqa: S608 - our names
        return self._db.execute(query, (after,)).fetchall()

    def head(self) -> tuple[int, str]:
        """Return number and hash of the last row, ``(0, genesis)`` where there is none; in a transaction."""
        head = self._db.execute("SELECT seq, hash FROM head").fetchone()
        return (head["seq"], head["hash"]) if head else (0, self._genesis)

    def holds(self, seq: int, digest: str) -> bool:
        """Say whether row ``seq`` is there and has this hash; row 0 is the genesis. In a transaction."""
        last, newest = self.head()
        if seq == last:
            return digest == newest
        follower = self._db.execute("SELECT prev_hash FROM ledger WHERE seq = ?", (seq + 1,)).fetchone()
        return follower is not None and digest == follower["prev_hash"]

    def row(self, run: str, number: int, kind: str) -> sqlite3.Row | None:
        """Return the charge, release or opening of round ``number``, if any; inside a transaction."""
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
        seq, last = self.head()
        # Drawn for the one row behind this one. Rolled back with it, so that no key signs two rows.
        following = Ed25519PrivateKey.generate()
        row = dict.fromkeys(COLUMNS) | values
        row |= {"seq": seq + 1, "prev_hash": last, "payload_sha256": _digest(payload)}
        row["next_key"] = following.public_key().public_bytes_raw().hex()
        body = _body(row)
        signature = self._signer(seq).sign("ledger", body)
        self._db.execute(_INSERT, [*(row[column] for column in COLUMNS), payload, signature])
        digest = row_hash(row)
        signature = self._identity.sign("ledger-head", _head_body(seq + 1, digest))
        self._db.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?)", (seq + 1, digest, signature))
        self._db.execute("INSERT OR REPLACE INTO release_key VALUES (1, ?)", (following.private_bytes_raw(),))

    def erase_releases(self, run: str) -> None:
        """Erase the payloads of a run's releases, behind its close; inside a writing transaction."""
        self._db.execute("UPDATE ledger SET payload = NULL WHERE run = ? AND kind = 'release'", (run,))

    def _signer(self, seq: int) -> Identity:
        """Return the key that signs the row behind row ``seq``."""
        if seq == 0:
            return self._identity
        stored = self._db.execute("SELECT private FROM release_key").fetchone()
        return Identity(Ed25519PrivateKey.from_private_bytes(stored["private"]))

    def verify(self) -> None:
        """Check every signature, hash and link, the stored payloads, the head and the release key.

        Raises:
            Tampered: names the first row that is not what the holder wrote.
        """
        with self.transaction(write=False):
            seq, last, key, missing = self._verify_rows()
            with _damage_named(f"{self._name}: the head"):
                self._verify_head(seq, last, self._db.execute("SELECT * FROM head").fetchone())
            with _damage_named(f"{self._name}: the release key"):
                self._verify_release_key(seq, key)
            if missing is not None:  # after the head: where the close was cut off, the head says so
                raise Tampered(f"{self._name}: row {missing}: the released bytes are missing")
            # The indexes too: they say whether a round was charged and released before.
            found = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise Tampered(f"{self._name}: damaged: {found}")

    def _verify_rows(self) -> tuple[int, str, bytes, int | None]:
        """Check row after row, so that no more than one payload is in memory.

        Returns:
            Number and hash of the last row, the public key that signs the next, and the first release whose
            payload is erased though its run has no close.
        """
        seq, last, key = 0, self._genesis, self._identity.public
        erased: dict[str, int] = {}  # by run, the first
        for row in self._db.execute("SELECT * FROM ledger ORDER BY seq"):
            seq += 1
            what = f"{self._name}: row {seq}"
            if row["seq"] != seq:
                raise Tampered(f"{what} is missing")
            with _damage_named(what):
                body = _body(row)
                verify(key, "ledger", body, row["signature"], what=what)
                if row["prev_hash"] != last:
                    raise Tampered(f"{what} does not follow the row before it")
                if row["kind"] == "close":
                    erased.pop(row["run"], None)
                if row["kind"] == "release" and row["payload"] is None:
                    erased.setdefault(row["run"], seq)
                elif row["payload_sha256"] != _digest(row["payload"]):
                    raise Tampered(f"{what}: the released bytes are not those that were signed")
                last, key = row_hash(row), bytes.fromhex(row["next_key"])
        return seq, last, key, min(erased.values(), default=None)

    def _verify_release_key(self, seq: int, key: bytes) -> None:
        if not seq:
            return
        stored = self._db.execute("SELECT private FROM release_key").fetchone()
        private = bytes(stored["private"]) if stored else b""
        if len(private) != 32 or Identity(Ed25519PrivateKey.from_private_bytes(private)).public != key:
            raise Tampered(f"{self._name}: the release key is not the one that row {seq} names")

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


def row_hash(row: sqlite3.Row | dict[str, Any]) -> str:
    """Return the SHA-256 of a row, 64 hexadecimal digits: what the row behind it and the head name."""
    return hashlib.sha256(_body(row)).hexdigest()


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
            create_private(path)
        require_private(path)
        target = f"{path.as_uri()}?mode={'ro' if read_only else 'rw'}"
    database = sqlite3.connect(
        target, timeout=_BUSY_S, isolation_level=None, check_same_thread=False, uri=True
    )
    database.row_factory = sqlite3.Row
    return database


def create_private(path: Path) -> None:
    """Create a file that only its owner can read, durably; one that exists is left as it is."""
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
            remedy="Use the version of Assay that wrote it, or set up and admit a new holder directory",
        )  # fmt: skip
    if not read_only:
        database.execute("PRAGMA journal_mode = WAL")
        # With NORMAL an acknowledged charge can be lost in a power cut.
        database.execute("PRAGMA synchronous = FULL")
        # A replaced release key and an erased payload are overwritten with zeros, not left on a free page.
        database.execute("PRAGMA secure_delete = ON")
    if new:
        database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    with contextlib.closing(sqlite3.connect(":memory:")) as example:
        example.executescript(_SCHEMA)
        if _tables(database) != _tables(example):  # a dropped index, a trigger, a renamed column
            raise Tampered(f"{name}: the tables are not those of a ledger")


def _tables(database: sqlite3.Connection) -> list[tuple[Any, ...]]:
    listed = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name")
    return [tuple(row) for row in listed]


@contextlib.contextmanager
def _damage_named(what: str) -> Iterator[None]:
    """Say in Assay's terms that a column holds what no ledger writes there."""
    try:
        yield
    except (TypeError, ValueError):
        raise Tampered(f"{what} is damaged") from None


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
