"""One SQLite file that survives power cuts and is shared by threads and processes.

What is acknowledged is durable: write-ahead log with ``synchronous=FULL``, since with NORMAL an
acknowledged commit can be lost. One connection per process, one thread at a time; processes take
turns with ``BEGIN IMMEDIATE``.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assay.privacy.errors import BadInput, Tampered, Unavailable
from assay.privacy.files import PRIVATE_FILE, require_private

__all__ = ["Database"]

BUSY_S = 10.0


class Database:
    """The open file.

    Raises, from every method:
        Unavailable: the disk is full or read-only, or another process held the file too long.
        Tampered: the file is damaged.
    """

    def __init__(self, path: Path, *, schema: str, application_id: int, version: int) -> None:
        """Open ``path``, or make it with mode 0600 and the statements of ``schema``.

        Raises:
            BadInput: others could read it, or it is not of this application and version.
        """
        self._path = path
        self._lock = threading.RLock()
        self._depth = 0
        if not path.exists():
            # SQLite gives its -wal and -shm files the mode of the database.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE))
        require_private(path)
        with self._errors():
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(schema, application_id, version)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, schema: str, application_id: int, version: int) -> None:
        self._db.row_factory = sqlite3.Row
        for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            self.execute(f"PRAGMA {setting}")
        with self.writing():
            found = tuple(self.rows(f"PRAGMA {name}")[0][0] for name in ("application_id", "user_version"))
            if found == (0, 0) and not self.rows("SELECT 1 FROM sqlite_master"):
                for statement in schema.split(";"):
                    self.execute(statement)
                self.execute(f"PRAGMA application_id={application_id}")
                self.execute(f"PRAGMA user_version={version}")
            elif found != (application_id, version):
                older = found[0] == application_id and found[1] < version
                raise BadInput(
                    "database",
                    value=str(self._path),
                    allowed=f"version {version} of Assay's own",
                    remedy=f"It is of version {found[1]}: use the Assay that wrote it, or a new directory"
                    if older
                    else "Use the version of Assay that wrote it, or restore it from a backup",
                )

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._db.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction over everything in the body: all of it is durable afterwards, or none of it.

        Nests; other threads and processes wait until the outermost body ends.
        """
        with self._lock:
            if self._depth:
                yield
                return
            self.execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
                self.execute("COMMIT")
            finally:
                self._depth = 0
                # Still open means that the body or the commit failed.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def execute(self, statement: str, *values: object) -> None:
        """Run one statement."""
        self.rows(statement, *values)

    def rows(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """Run one statement and return all its rows."""
        with self._lock, self._errors():
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise Unavailable(
                f"{self._path}: {error}. Check space and permissions, then try again"
            ) from error
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise  # a defect of ours, not of the file
        except sqlite3.DatabaseError as error:
            raise Tampered(f"{self._path}: {error}. Restore it from a backup") from error
