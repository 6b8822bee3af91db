"""A holder's durable account of privacy loss: what was reserved, charged and released, and what is left.

One ledger serves all studies and restarts of a holder. The order is reserve, charge, compute, release:

===========  =======================================================================================
reserve      before the first round, for the whole run: refused whole if a cap would be passed
charge       before anything is computed from records; durable when the call returns; no refunds
release      the bytes that leave; the same (run, round) gives the same bytes and is charged once
open         the one list of survivors whose sum this holder helps to open; a round is opened once
close        what was reserved and not charged is free again, and the bytes released are erased
===========  =======================================================================================

Under secure aggregation the bytes of a release are integers *before* masking, with a share of the noise
only. They are kept while a question may be asked again and no longer: a copy of the ledger that is handed to
an auditor, or stolen, holds those of runs that were open. Of a closed run it holds their hash, which the row
signs.

The rows are signed and chained (``ledger_store``), so that :meth:`Ledger.verify` notices an edited, deleted,
swapped or forged row, also one signed anew with the identity key, and a tail that was cut off.

A whole older copy of the file put back in its place is genuine in itself. It is noticed by whoever has seen
a later row: the coordinator, which names the head it saw with offers, closes and the questions that spend
(:meth:`Ledger.require_prefix`), and the audit log beside the ledger. Not noticed at all: a ledger written
anew from its first row by somebody who holds the identity key, where nobody kept a head; and a system clock
set forward, which lets the rolling year end early. A clock set back changes nothing: time in the ledger
never runs backwards.
"""

from __future__ import annotations

import math
import time as system_time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Row
from typing import Any, NamedTuple

from assay.privacy.accounting import Event, epsilon_of
from assay.privacy.errors import BadInput, Refused
from assay.privacy.keys import Identity
from assay.privacy.ledger_account import (
    Limits,
    RunAccount,
    committed,
    left_of,
    priced,
    replay,
    require_open,
    require_room,
)
from assay.privacy.ledger_store import COLUMNS, LedgerStore, row_hash

__all__ = ["RESTORED", "YEAR_S", "Landmark", "Ledger", "LedgerSummary", "Limits"]

YEAR_S = 365 * 86400.0
RESTORED = (
    "it was restored from an older copy, or its directory was cloned. Put the newest copy back; if there is "
    "none, set up a new holder directory and have it admitted in this one's place"
)
"""What is wrong, and the remedy, where somebody has seen a later history than the one at hand."""


@dataclass(frozen=True, kw_only=True)
class LedgerSummary:
    """What a ledger says, for people and for ``--json``. Epsilons come from plans, never from records.

    Attributes:
        entries: one dictionary per row, oldest first, without released bytes.
        spent_epsilon: charged within the last 365 days, all studies.
        reserved_epsilon: the same once every open run has used all it reserved.
        limit_epsilon: the cap on it.
        studies: charged so far, by study, whenever.
        open_runs: runs that hold a reservation.
    """

    entries: tuple[dict[str, Any], ...]
    spent_epsilon: float
    reserved_epsilon: float
    limit_epsilon: float
    studies: dict[str, float]
    open_runs: tuple[str, ...]


class Landmark(NamedTuple):
    """A row that has an entry in the audit log.

    Attributes:
        seq: its number.
        kind: ``"release"``, ``"open"`` or ``"close"``.
        run: the run.
        round: the round; None for a close.
        row_sha256: hash of the whole row, 64 hexadecimal digits. It covers the hash of what was released, and
            a random key, so that nobody who sees it without the row can try out what was released.
        outcome: how a run ended; None for the others.
    """

    seq: int
    kind: str
    run: str
    round: int | None
    row_sha256: str
    outcome: str | None


class Ledger:
    """One holder's ledger, open. Safe to use from several threads of one process.

    Only one process may hold it for writing; any number may read it meanwhile. Use as a context manager
    or call :meth:`close`.
    """

    def __init__(
        self, store: LedgerStore, clock: Callable[[], float], log_head: Callable[[], str] | None
    ) -> None:
        self._store, self._clock, self._log_head = store, clock, log_head
        # What the rows up to row ``_seen`` amount to: a charge replays the rows behind it, not all of them.
        self._runs: dict[str, RunAccount] = {}
        self._seen = (0, "")

    @classmethod
    def open(
        cls,
        path: Path | str,
        identity: Identity,
        clock: Callable[[], float] = system_time.time,
        *,
        read_only: bool = False,
        log_head: Callable[[], str] | None = None,
    ) -> Ledger:
        """Open the ledger at ``path``, creating it (mode 0600) unless ``read_only``.

        A ledger opened for writing is verified first, so that a tampered one is never continued.

        Args:
            path: the file, or ``":memory:"``.
            identity: the holder's; every row is signed by it.
            clock: seconds since 1970, UTC.
            read_only: take no lock and change nothing; for looking while the daemon runs.
            log_head: says how far the audit log is (``AuditLog.head``); every row then names it, so that the
                log cannot be shortened or rewritten below the newest row. None: there is no log.

        Raises:
            BadInput: not a ledger, one of another version, missing (``read_only``) or readable by others.
            Tampered: the ledger does not verify.
            Unavailable: another process holds it, or the file cannot be read or written.
        """
        store = LedgerStore.open(str(path), identity, read_only=read_only)
        try:
            if not read_only:
                store.verify()
        except BaseException:
            store.close()
            raise
        return cls(store, clock, log_head)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let go of the lock."""
        self._store.close()

    def reserve(self, *, study: str, run: str, planned: Sequence[Event], limits: Limits) -> None:
        """Set the whole cost of a run aside, or refuse it whole.

        Asked again for the same run with the same plan, it changes nothing.

        Raises:
            Refused: a cap would be passed (``"budget"``), the run is closed (``"closed"``), or was
                reserved with another study or plan (``"changed"``). Nothing is written.
        """
        if not planned:
            raise BadInput("planned", value="no event", allowed="at least one event")
        with self._store.transaction():
            runs = self._states()
            known = runs.get(run)
            if known is not None:
                if known.closed:
                    raise Refused(f"run {run} is closed; start a new run", code="closed")
                if known.study != study or known.planned != list(planned):
                    raise Refused(f"run {run} is reserved with another study or plan", code="changed")
                return
            own = [state for state in runs.values() if state.study == study]
            require_room("study", committed(own), planned, limits.epsilon_per_study, limits.delta)
            recent = committed(runs.values(), since=self._now() - YEAR_S)
            require_room("year", recent, planned, limits.epsilon_per_year, limits.delta)
            for event in planned:
                self._append(kind="reserve", study=study, run=run, **priced(event))

    def charge(
        self,
        *,
        run: str,
        round: int,  # noqa: A002 - what it is called on the wire
        mechanism: str,
        sensitivity: float,
        event: Event,
        question: str = "",
        noise_share: float = 1.0,
    ) -> bytes | None:
        """Record the cost of one release before it is computed; durable when this returns.

        Args:
            run: a reserved run.
            round: at least 0; together with ``run`` it names the release.
            mechanism: one word, e.g. ``"gaussian"``.
            sensitivity: the clip norm the noise is a multiple of; above 0, finite.
            event: what the release costs.
            question: names what was asked, e.g. the hash of model and holders; kept with the charge.
            noise_share: part of the noise variance that this holder adds itself; above 0, at most 1.

        Returns:
            The bytes released earlier for this (run, round), which must be sent again instead of new
            ones; None where there are none yet. A round charged before is not charged again, and a closed
            run gives nothing again.

        Raises:
            Refused: the run is unknown (``"unknown"``) or closed (``"closed"``), the round was charged
                with another cost or for another question (``"changed"``), or the run's reservation is
                used up (``"budget"``).
        """
        if not 0 < sensitivity < math.inf:
            raise BadInput("sensitivity", value=sensitivity, allowed="a finite number above 0")
        if not 0 < noise_share <= 1:
            raise BadInput("noise_share", value=noise_share, allowed="a number above 0, at most 1")
        if isinstance(round, bool) or not isinstance(round, int) or round < 0:
            raise BadInput("round", value=round, allowed="a whole number of at least 0")
        cost = {"mechanism": mechanism, "sensitivity": float(sensitivity), **priced(event)}
        cost |= {"noise_share": float(noise_share), "question": question}
        with self._store.transaction():
            state = self._run(run)
            require_open(run, state)  # first: what a closed run released is erased
            charged = self._store.row(run, round, "charge")
            if charged is not None:
                _require_same(charged, cost)
                released = self._store.row(run, round, "release")
                if released is not None:
                    return bytes(released["payload"])
            else:
                if not state.has_room_for(event):
                    raise Refused(f"run {run} has used up what it reserved", code="budget")
                self._append(kind="charge", study=state.study, run=run, round=round, **cost)
        return None

    def release(self, *, run: str, round: int, payload: bytes) -> bytes:  # noqa: A002
        """Store what is about to leave for a charged round; durable when this returns.

        Returns:
            The bytes to send: ``payload``, or what was stored for this (run, round) before.

        Raises:
            Refused: the run is unknown or the round was never charged (``"unknown"``), or the run is closed
                (``"closed"``).
        """
        with self._store.transaction():
            state = self._run(run)
            require_open(run, state)  # first: what a closed run released is erased
            stored = self._store.row(run, round, "release")
            if stored is not None:
                return bytes(stored["payload"])
            if self._store.row(run, round, "charge") is None:
                raise Refused(f"round {round} of run {run} was not charged", code="unknown")
            self._append(kind="release", study=state.study, run=run, round=round, payload=payload)
        self._store.fold()
        return payload

    def open_round(self, *, run: str, round: int, survivors: str) -> None:  # noqa: A002
        """Write down whose sum this holder helps to open; durable when this returns.

        A second opening of a round with another list would tell two sums apart, hence one holder's part.
        The same list again changes nothing.

        Args:
            run: an open run.
            round: a released round of it.
            survivors: the list as text; the same list is always the same text.

        Raises:
            Refused: the round was opened with another list (``"changed"``), was not released
                (``"unknown"``), or the run is unknown (``"unknown"``) or closed (``"closed"``).
        """
        payload = survivors.encode()
        with self._store.transaction():
            state = self._run(run)
            opened = self._store.row(run, round, "open")
            if opened is not None:
                if bytes(opened["payload"]) != payload:
                    raise Refused(
                        f"round {round} of run {run} was opened for other survivors", code="changed"
                    )
                return
            if self._store.row(run, round, "release") is None:
                raise Refused(f"round {round} of run {run} was not released", code="unknown")
            require_open(run, state)
            self._append(kind="open", study=state.study, run=run, round=round, payload=payload)

    def close_run(self, *, run: str, outcome: str) -> None:
        """End a run: what it reserved and did not charge is free again, and what it released is erased.

        Closing twice changes nothing.

        Raises:
            Refused: the run is unknown (``"unknown"``).
        """
        with self._store.transaction():
            state = self._run(run)
            if not state.closed:
                self._append(kind="close", study=state.study, run=run, outcome=outcome)
                self._store.erase_releases(run)
        self._store.fold()

    def charged(self, run: str) -> tuple[Event, ...]:
        """Return what has been charged for a run so far, oldest first; an accountant starts from it.

        Raises:
            Refused: the run is unknown (``"unknown"``).
        """
        with self._store.transaction(write=False):
            return tuple(event for _, event in self._run(run).charged)

    def charged_rounds(self, run: str) -> dict[int, Event]:
        """Return what each round of a run has been charged with so far.

        Raises:
            Refused: the run is unknown (``"unknown"``).
        """
        with self._store.transaction(write=False):
            return dict(self._run(run).rounds)

    def open_runs(self) -> tuple[str, ...]:
        """Return the runs that hold a reservation."""
        with self._store.transaction(write=False):
            return tuple(run for run, state in self._states().items() if not state.closed)

    def remaining(self, limits: Limits, study: str | None = None) -> float:
        """Return the largest epsilon (at ``limits.delta``) a new run may still have.

        Exact where all releases are full-batch; an estimate once sampled steps are in the account.

        Args:
            limits: the caps.
            study: also respect the cap of this study; None: the year's alone.
        """
        with self._store.transaction(write=False):
            runs, since = list(self._states().values()), self._now() - YEAR_S
            recent = committed(runs, since=since)
            own = committed(state for state in runs if state.study == study)
        left = left_of(recent, limits.epsilon_per_year, limits.delta)
        if study is None:
            return left
        return min(left, left_of(own, limits.epsilon_per_study, limits.delta))

    def summary(self, limits: Limits) -> LedgerSummary:
        """Return every row and what they add up to."""
        with self._store.transaction(write=False):
            rows, since = self._store.rows(), self._now() - YEAR_S
        runs: dict[str, RunAccount] = {}
        replay(rows, runs)
        studies: dict[str, list[Event]] = {}
        recent: list[Event] = []
        for state in runs.values():
            studies.setdefault(state.study, []).extend(event for _, event in state.charged)
            recent.extend(event for when, event in state.charged if when > since)
        return LedgerSummary(
            entries=tuple(_entry(row) for row in rows),
            spent_epsilon=epsilon_of(recent, limits.delta),
            reserved_epsilon=epsilon_of(committed(runs.values(), since=since), limits.delta),
            limit_epsilon=limits.epsilon_per_year,
            studies={study: epsilon_of(events, limits.delta) for study, events in studies.items()},
            open_runs=tuple(run for run, state in runs.items() if not state.closed),
        )

    def head(self) -> tuple[int, str]:
        """Return number and hash of the newest row: 64 hexadecimal digits, ``(0, genesis)`` if empty."""
        with self._store.transaction(write=False):
            return self._store.head()

    def require_prefix(self, seq: int, digest: str) -> None:
        """Refuse to go on where the ledger does not contain a row that somebody else saw.

        Args:
            seq: number of the row; 0 stands for the empty ledger.
            digest: its hash, as :meth:`head` gave it.

        Raises:
            Refused: code ``"ledger"``. Nothing is written.
        """
        with self._store.transaction(write=False):
            if self._store.holds(seq, digest):
                return
            last, _ = self._store.head()
        raise Refused(
            f"the ledger, which ends at row {last}, does not contain row {seq} that the coordinator saw: "
            f"{RESTORED}",
            code="ledger",
        )

    def landmarks(self, after: int = 0) -> tuple[Landmark, ...]:
        """Return the rows behind row ``after`` that have an entry in the audit log, oldest first."""
        with self._store.transaction(write=False):
            rows = self._store.rows(after)
        return tuple(
            Landmark(row["seq"], row["kind"], row["run"], row["round"], row_hash(row), row["outcome"])
            for row in rows
            if row["kind"] in ("release", "open", "close")
        )

    def log_heads(self, after: int = 0) -> tuple[tuple[int, str | None], ...]:
        """Return the number of each row behind row ``after`` and the audit log head it names."""
        with self._store.transaction(write=False):
            rows = self._store.rows(after)
        return tuple((row["seq"], row["log_head"]) for row in rows)

    def verify(self) -> None:
        """Check every signature, hash and link, the stored payloads, the head and the release key.

        Raises:
            Tampered: names the first row that is not what the holder wrote.
        """
        self._store.verify()

    def _run(self, run: str) -> RunAccount:
        state = self._states().get(run)
        if state is None:
            raise Refused(f"run {run} is not reserved in this ledger", code="unknown")
        return state

    def _states(self) -> dict[str, RunAccount]:
        """Return what the rows amount to, run by run, in the order the runs were reserved; in a transaction.

        Rows that were rolled back are forgotten: their hash stands in no ledger.
        """
        if not self._store.holds(*self._seen):
            self._runs, self._seen = {}, (0, "")
        seen, self._seen = self._seen[0], (0, "")  # forgotten too if a row cannot be read
        replay(self._store.rows(seen), self._runs)
        self._seen = self._store.head()
        return self._runs

    def _now(self) -> float:
        """Return the time, never earlier than what the ledger has seen."""
        return max(float(self._clock()), self._store.last_time())

    def _append(self, *, payload: bytes | None = None, **values: Any) -> None:
        log_head = None if self._log_head is None else self._log_head()
        self._store.append(payload=payload, time=self._now(), log_head=log_head, **values)


def _require_same(charged: Row, cost: dict[str, Any]) -> None:
    """Refuse a round that was charged before with anything else than ``cost``."""
    changed = [key for key, value in cost.items() if charged[key] != value]
    if changed:
        what = "for another question" if changed == ["question"] else "with another cost"
        raise Refused(f"round {charged['round']} of run {charged['run']} was charged {what}", code="changed")


def _entry(row: Row) -> dict[str, Any]:
    return {column: row[column] for column in COLUMNS} | {"signature": row["signature"].hex()}
