"""The coordinator's database ``assay.sqlite``: roster, runs, what they go on from, progress and models.

Every method is one durable transaction; several processes and threads may use the file at once.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from assay.privacy.errors import AssayError, BadInput
from assay.privacy.keys import canonical_json
from assay.server.database import Database
from assay.server.records import ACTIVE, STATES, Checkpoint, Collected, Event, Member, Model, Run, Session

__all__ = ["Registry"]

KEPT_CHECKPOINTS = 2
_APPLICATION_ID = 0x41535359  # "ASSY"
_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE roster (
    seq INTEGER PRIMARY KEY, name TEXT NOT NULL, identity_public TEXT NOT NULL UNIQUE,
    transport_public TEXT NOT NULL UNIQUE, certificate_pem TEXT NOT NULL, serial TEXT NOT NULL,
    fingerprint TEXT NOT NULL, admitted_at INTEGER NOT NULL, revoked_at INTEGER, signature BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX roster_name ON roster (name) WHERE revoked_at IS NULL;
CREATE TABLE roster_head (only INTEGER PRIMARY KEY CHECK (only = 1), signature BLOB NOT NULL) STRICT;
CREATE TABLE runs (
    seq INTEGER PRIMARY KEY, run TEXT NOT NULL UNIQUE, name TEXT NOT NULL, study TEXT NOT NULL,
    digest TEXT NOT NULL, state TEXT NOT NULL, rounds INTEGER, round INTEGER, holders TEXT NOT NULL,
    created REAL NOT NULL, started REAL, ended REAL, message TEXT NOT NULL
) STRICT;
CREATE INDEX runs_state ON runs (state);
CREATE TABLE checkpoints (
    run TEXT NOT NULL REFERENCES runs (run), round INTEGER NOT NULL, state BLOB NOT NULL,
    PRIMARY KEY (run, round)
) STRICT;
CREATE TABLE sessions (
    run TEXT NOT NULL REFERENCES runs (run), session INTEGER NOT NULL, holders TEXT NOT NULL,
    tally BLOB NOT NULL, PRIMARY KEY (run, session)
) STRICT;
CREATE TABLE collected (
    run TEXT PRIMARY KEY REFERENCES runs (run), round INTEGER NOT NULL, sent TEXT NOT NULL,
    total BLOB NOT NULL
) STRICT;
CREATE TABLE heads (identity_public TEXT PRIMARY KEY, heads TEXT NOT NULL, seen REAL NOT NULL) STRICT;
CREATE TABLE run_events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL REFERENCES runs (run), time REAL NOT NULL,
    kind TEXT NOT NULL, detail TEXT NOT NULL
) STRICT;
CREATE INDEX run_events_run ON run_events (run, seq);
CREATE TABLE models (
    name TEXT NOT NULL, version INTEGER NOT NULL, run TEXT NOT NULL UNIQUE REFERENCES runs (run),
    path TEXT NOT NULL, sha256 TEXT NOT NULL, created REAL NOT NULL, expires REAL NOT NULL,
    purpose TEXT NOT NULL, label TEXT NOT NULL, PRIMARY KEY (name, version)
) STRICT;
"""


class Registry:
    """The open database.

    Every method is one transaction, durable when it returns; :meth:`writing` joins several. Methods
    may be called from any thread.

    Raises, from every method:
        Unavailable: the disk is full or read-only, or another process held the database too long.
        Tampered: the file is damaged.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open ``path``, or make it with mode 0600.

        Raises:
            BadInput: others could read it, or it is no registry of this version.
        """
        self._clock = clock
        self._db = Database(path, schema=_SCHEMA, application_id=_APPLICATION_ID, version=_SCHEMA_VERSION)

    def close(self) -> None:
        """Close the database; a second call does nothing."""
        self._db.close()

    def writing(self) -> AbstractContextManager[None]:
        """One transaction over everything in the body; see :meth:`Database.writing`."""
        return self._db.writing()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Roster -------------------------------------------------------------------------------------

    def roster(self) -> tuple[tuple[Member, ...], bytes | None]:
        """Return every line of the roster in order, and the signature over the whole of it.

        They are what the file says; :class:`assay.server.roster.Roster` verifies them.
        """
        with self.writing():
            rows = self._db.rows("SELECT * FROM roster ORDER BY seq")
            head = self._db.rows("SELECT signature FROM roster_head")
        return tuple(Member(**dict(row)) for row in rows), bytes(head[0]["signature"]) if head else None

    def put_member(self, member: Member, head: bytes) -> None:
        """Write one line of the roster, new or changed, and the new signature over the whole."""
        columns = vars(member)
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        with self.writing():
            self._db.execute("DELETE FROM roster WHERE seq = ?", member.seq)
            self._db.execute(f"INSERT INTO roster ({names}) VALUES ({marks})", *columns.values())  # noqa: S608 - our names
            self._db.execute("INSERT OR REPLACE INTO roster_head VALUES (1, ?)", head)

    # Runs ---------------------------------------------------------------------------------------

    def add_run(self, *, name: str, study: str, digest: str) -> Run:
        """Queue a run of a study and return it with its new name."""
        run = secrets.token_hex(16)
        with self.writing():
            self._db.execute(
                "INSERT INTO runs (run, name, study, digest, state, holders, created, message)"
                " VALUES (?, ?, ?, ?, 'queued', '[]', ?, '')",
                run,
                name,
                study,
                digest,
                self._clock(),
            )
            return self.run(run)

    def run(self, run: str) -> Run:
        """Return one run.

        Raises:
            BadInput: there is no such run.
        """
        rows = self._db.rows("SELECT * FROM runs WHERE run = ?", run)
        if not rows:
            raise BadInput(
                "run", value=run, allowed="a run of this coordinator", remedy="See: assay server status DIR"
            )
        return _run(rows[0])

    def runs(self, state: str | None = None) -> tuple[Run, ...]:
        """Return all runs, or those in one state, oldest first."""
        return tuple(
            _run(row)
            for row in self._db.rows("SELECT * FROM runs WHERE ?1 IS NULL OR state = ?1 ORDER BY seq", state)
        )

    def next_queued(self) -> Run | None:
        """Return the run that has waited longest, or None. It stays queued until its state is set."""
        queued = self.runs("queued")
        return queued[0] if queued else None

    def set_state(self, run: str, state: str, message: str = "") -> Run:
        """Move a run on; the state it already has changes nothing.

        Raises:
            AssayError: no run goes from its present state to ``state``.
        """
        with self.writing():
            before = self.run(run)
            if before.state == state:
                return before
            if state not in STATES[before.state]:
                raise AssayError(f"run {run}: no way from {before.state} to {state}")
            column = "started" if state == "running" else "ended"
            self._db.execute(
                f"UPDATE runs SET state = ?, message = ?, {column} = ? WHERE run = ?",  # noqa: S608 - our names
                state,
                message,
                self._clock(),
                run,
            )
            if state not in ACTIVE:
                for table in ("sessions", "collected"):
                    self._db.execute(f"DELETE FROM {table} WHERE run = ?", run)  # noqa: S608 - our names
            return self.run(run)

    def set_holders(self, run: str, holders: Sequence[str]) -> None:
        """Note who takes part in an active run."""
        with self.writing():
            self._require_active(run)
            text = canonical_json(list(holders)).decode()
            self._db.execute("UPDATE runs SET holders = ? WHERE run = ?", text, run)

    def set_rounds(self, run: str, rounds: int) -> None:
        """Note how many gradient rounds an active run has; they are chosen once.

        Raises:
            AssayError: another number was chosen before.
        """
        with self.writing():
            if self._require_active(run).rounds not in (None, rounds):
                raise AssayError(f"run {run}: the number of its rounds is chosen once")
            self._db.execute("UPDATE runs SET rounds = ? WHERE run = ?", rounds, run)

    # Checkpoints --------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Store what a run continues from after a round, together with the run's round counter.

        Repeating the last round replaces its bytes; only the last two rounds are kept.

        Raises:
            AssayError: the run is not running, or has passed that round already.
        """
        run, number = checkpoint.run, checkpoint.round
        with self.writing():
            found = self.run(run)
            if found.state != "running" or (found.round is not None and number < found.round):
                raise AssayError(
                    f"run {run}: round {number} cannot be stored after round {found.round}, {found.state}"
                )
            self._db.execute(
                "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?)", run, number, checkpoint.state
            )
            self._db.execute("UPDATE runs SET round = ? WHERE run = ?", number, run)
            self._db.execute(
                "DELETE FROM checkpoints WHERE run = ?1 AND round NOT IN"
                " (SELECT round FROM checkpoints WHERE run = ?1 ORDER BY round DESC LIMIT ?2)",
                run,
                KEPT_CHECKPOINTS,
            )

    def latest_checkpoint(self, run: str) -> Checkpoint | None:
        """Return the checkpoint of the run's last stored round, or None before the first."""
        rows = self._db.rows("SELECT * FROM checkpoints WHERE run = ? ORDER BY round DESC LIMIT 1", run)
        return Checkpoint(**dict(rows[0])) if rows else None

    # Secure aggregation -------------------------------------------------------------------------

    def save_session(self, session: Session) -> None:
        """Store a session of a running run: its holders, again with their keys, again with the shares.

        Earlier sessions of the run are over and go.

        Raises:
            AssayError: the run is not running, or the session is known with other holders.
        """
        run, holders = session.run, canonical_json(dict(session.holders)).decode()
        with self.writing():
            self._require_running(run)
            known = self.session(run, session.session)
            if known is not None and known.holders != session.holders:
                raise AssayError(f"run {run}: session {session.session} was begun with other holders")
            self._db.execute(
                "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?)",
                *(run, session.session, holders, session.tally),
            )
            self._db.execute("DELETE FROM sessions WHERE run = ? AND session < ?", run, session.session)

    def session(self, run: str, number: int) -> Session | None:
        """Return a stored session, or None."""
        rows = self._db.rows("SELECT * FROM sessions WHERE run = ? AND session = ?", run, number)
        return Session(**{**dict(rows[0]), "holders": json.loads(rows[0]["holders"])}) if rows else None

    def save_collected(self, collected: Collected) -> None:
        """Store what is opened in a round of a running run, before anybody is asked to open it.

        That of an earlier round is over and goes.

        Raises:
            AssayError: the run is not running, or something else was stored for the round.
        """
        run, number = collected.run, collected.round
        with self.writing():
            self._require_running(run)
            if self.collected(run, number) not in (None, collected):
                raise AssayError(f"run {run}: what is opened in round {number} is decided once")
            sent = canonical_json(dict(collected.sent)).decode()
            self._db.execute(
                "INSERT OR REPLACE INTO collected VALUES (?, ?, ?, ?)", run, number, sent, collected.total
            )

    def collected(self, run: str, number: int) -> Collected | None:
        """Return what :meth:`save_collected` stored for a round, or None."""
        rows = self._db.rows("SELECT * FROM collected WHERE run = ? AND round = ?", run, number)
        return Collected(**{**dict(rows[0]), "sent": json.loads(rows[0]["sent"])}) if rows else None

    # Ledgers of the holders ---------------------------------------------------------------------

    def save_heads(self, heads: Mapping[str, str]) -> None:
        """Store where holders' ledgers and audit logs were seen, by the holder's identity key (hex)."""
        with self.writing():
            for identity_public, text in heads.items():
                self._db.execute(
                    "INSERT OR REPLACE INTO heads VALUES (?, ?, ?)", identity_public, text, self._clock()
                )

    def heads(self) -> dict[str, str]:
        """Return ``Heads.text`` of every holder that was ever seen, by its identity key (hex)."""
        rows = self._db.rows("SELECT identity_public, heads FROM heads")
        return {row["identity_public"]: row["heads"] for row in rows}

    # Progress -----------------------------------------------------------------------------------

    def add_event(self, run: str, kind: str, detail: Mapping[str, Any]) -> None:
        """Append one line to a run's progress."""
        with self.writing():
            self._db.execute(
                "INSERT INTO run_events (run, time, kind, detail) VALUES (?, ?, ?, ?)",
                run,
                self._clock(),
                kind,
                canonical_json(dict(detail)).decode(),
            )

    def events_since(self, run: str, seq: int = 0) -> tuple[Event, ...]:
        """Return the lines of a run's progress after ``seq``, oldest first."""
        rows = self._db.rows("SELECT * FROM run_events WHERE run = ? AND seq > ? ORDER BY seq", run, seq)
        return tuple(Event(**{**dict(row), "detail": json.loads(row["detail"])}) for row in rows)

    # Models -------------------------------------------------------------------------------------

    def add_model(
        self,
        run: str,
        *,
        path: str,
        sha256: str,
        created: float,
        expires: float,
        purpose: str,
        label: Mapping[str, Any],
    ) -> Model:
        """Register the bundle of a running run under its study's name and the next version.

        A run has one model. Doing it again, as after a crash before the run was marked done, keeps
        the version and replaces the rest.

        Raises:
            AssayError: the run is not running.
        """
        with self.writing():
            found = self._require_running(run)
            known = self._db.rows("SELECT version FROM models WHERE run = ?", run)
            last = self._db.rows(
                "SELECT coalesce(max(version), 0) AS last FROM models WHERE name = ?", found.name
            )
            version = known[0]["version"] if known else last[0]["last"] + 1
            text = canonical_json(dict(label)).decode()
            self._db.execute(
                "INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                *(found.name, version, run, path, sha256, created, expires, purpose, text),
            )
            return _model(self._db.rows("SELECT * FROM models WHERE run = ?", run)[0])

    def models(self) -> tuple[Model, ...]:
        """Return every registered model, by name and version."""
        return tuple(_model(row) for row in self._db.rows("SELECT * FROM models ORDER BY name, version"))

    def _require_running(self, run: str) -> Run:
        found = self.run(run)
        if found.state != "running":
            raise AssayError(f"run {run}: it is {found.state}, and only a running one goes on")
        return found

    def _require_active(self, run: str) -> Run:
        found = self.run(run)
        if found.state not in ACTIVE:
            raise AssayError(f"run {run}: it is {found.state} and does not change any more")
        return found


def _run(row: sqlite3.Row) -> Run:
    values = {key: row[key] for key in row.keys() if key != "seq"}  # noqa: SIM118 - a Row is no mapping
    return Run(**{**values, "holders": tuple(json.loads(row["holders"]))})


def _model(row: sqlite3.Row) -> Model:
    return Model(**{**dict(row), "label": json.loads(row["label"])})
